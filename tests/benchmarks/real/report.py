"""The results page: what was measured, as means over seeds with paired standard errors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from coordinator.evaluation import Estimate, mean_and_error
from tests.benchmarks.real.regimes import OURS, SCORES, Cell, Row
from tests.benchmarks.real.report_groups import shown

_DRUGS = """
## Drug names of 19 hospitals

eICU demo, 329 distinct names of 147 ingredients: the lexical encoder with 1,024 columns, nothing else. Queries and candidates
are the names; right are others of the same ingredient that another hospital typed. In the brand-generic rows, right candidates
that begin a word like the query are taken out: spelling cannot help there, apart from what is said of dose and form. There are
few such pairs.
"""
Measured = tuple[Cell, dict[str, Row]]
Key = tuple[bool, str, float]
FACTS = "facts"

_UNFLOORED = """Public data, counts as they are, 16 dimensions. A cell takes minutes and 2 GB, so that seeds are few: a row of one
seed has no error, and no gain of one or two seeds is bold. Most codes are rare here, and co-occurrence tells little of a rare
one. With titles the views add less to text than with floors, and nothing to its clusters: AMI is that of text alone or below it.
"""
_HEAD = """# Results on real data

Written by `SMILE_BENCH=full python -m tests.benchmarks.real --write`. Means over seeds ± one standard error; a seed draws
which samples each site has and which codes are anchored. A gain is paired by seed; **bold** where it exceeds two
standard errors over three seeds or more.

The data are CMS DE-SynPUF inpatient claims (synthetic beneficiaries, not for inference about the population). Three sites of
two disjoint samples each code in ICD-9-CM, in ICD-10-CM (the standard; recoded by the first GEM target) and in opaque local
ids. Queries are codes outside the standard that have no anchor of their own and whose standard code was released;
candidates are all released standard codes. AMI is over codes whose row no anchor touches. Titles are long on both sides, or
abbreviated on both; an opaque id has the description of the code that it stands for.

Two things make this task easier than hospitals are. The sites are random samples of one population, so that a code is about
as frequent at each: the rows "without support" say what is left where that does not hold. And one GEM recodes all
patients in the same way, where people would not.

Released patient counts are rounded to 5 here. The study's default of 100 is coarser: on three tuning splits without text it
lowered hits@1 from .229 to .188 with 10 % anchors, and from .202 to .158 with none.

"SMILE, all views" is `coordinator.linking` over SMILE's latent means, by which `coordinator fit` ranks (method two-stage; there
the text is the study's encoder, here TF-IDF of the titles). It has the same default weights everywhere
(`coordinator.ranking.DEFAULT_WEIGHTS`), which were chosen on other splits of the same six samples. Of the single views and of
the rivals the tables name the best by each score, chosen afterwards on the same seeds, which favours them. Rivals get the same
sources, the text as one more, and the same number of clusters; they do not see support. Standard errors are over splits and
draws of anchors of the same six samples. Where nothing links the sites (0 % anchors, no text) no rival applies.
"""


def page(measured: Iterable[Measured]) -> str:
    """The whole page."""
    cells: dict[Key, list[dict[str, Row]]] = defaultdict(list)
    for cell, table in sorted(measured, key=lambda m: m[0].seed):
        cells[cell.floors, cell.regime, cell.share].append(table)
    parts = [_HEAD]
    for floors in (True, False):
        own = {key: tables for key, tables in cells.items() if key[0] == floors}
        if own:
            parts += [_section(floors, own)]
    return "\n".join(parts)


def drug_names(measured: Mapping[str, Mapping[str, float]]) -> str:
    """The section on drug names."""
    lines = [_DRUGS, "| | Queries or pairs | hits@1 | hits@5 | MRR | AUC |", "|---|---|---|---|---|---|"]
    for name, row in measured.items():
        count = row.get("queries", row.get("pairs", 0.0))
        cells = [f"{row[k]:.3f}" if k in row else "" for k in ("hits@1", "hits@5", "MRR", "AUC")]
        lines.append(f"| {name} | {count:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def gain(tables: list[dict[str, Row]], rival: str, score: str) -> Estimate:
    """Paired difference of our method and another."""
    return mean_and_error([float(t[OURS][score] or 0.0) - float(t[rival][score] or 0.0) for t in tables])


def best(tables: list[dict[str, Row]], score: str, *, rivals: bool) -> str | None:
    """The single view, or the rival, with the greatest mean."""
    found = [
        name
        for name in tables[0]
        if (" + " in name) == rivals
        and name not in {OURS, FACTS}
        and not _is_ablation(name)
        and all(name in t for t in tables)
    ]
    return max(found, key=lambda name: float(np.mean([t[name][score] for t in tables])), default=None)


def _is_ablation(name: str) -> bool:
    return name.startswith(("without", "ranking by", "text by"))


def _section(floors: bool, cells: dict[Key, list[dict[str, Row]]]) -> str:
    first = next(iter(cells.values()))
    codes, mass = (np.mean([t[FACTS][k] for t in first]) for k in ("codes", "mass"))
    title = (
        "With the default floors, counts rounded to 5"
        if floors
        else "Without floors (a code needs two patients)"
    )
    lines = [f"## {title}\n", f"{codes:.0f} codes a site, {mass:.0%} of co-occurrence kept.\n"]
    if not floors:
        lines.append(_UNFLOORED)
    lines += [
        "| Regime | Anchors | Seeds | Queries / candidates | Method | hits@1 | hits@5 | MRR | AMI |",
        "|" + "---|" * 9,
    ]
    for (_, regime, share), tables in sorted(cells.items(), key=lambda c: (c[0][1], c[0][2])):
        facts = "{:.0f} / {:.0f}".format(
            *(np.mean([t[FACTS][k] for t in tables]) for k in ("queries", "candidates"))
        )
        lines.append(
            f"| {regime} | {share:.0%} | {len(tables)} | {facts} | {OURS} | "
            + " | ".join(_mean(tables, OURS, s) for s in SCORES)
            + " |"
        )
        for what, rivals in (("best single view", False), ("best rival", True)):
            names = [best(tables, score, rivals=rivals) for score in SCORES]
            if names[0] is None:
                lines.append(f"| | | | | {what}: none applies | | | | |")
                continue
            shown = [f"{_mean(tables, n, s)} ({n})" for n, s in zip(names, SCORES, strict=True) if n]
            lines.append(f"| | | | | {what} | " + " | ".join(shown) + " |")
            gains = [_gain(tables, n, s) for n, s in zip(names, SCORES, strict=True) if n]
            lines.append("| | | | | gain over it | " + " | ".join(gains) + " |")
    lines += ["", "### Every view, and what each part brings\n"]
    lines += ["| Regime | Anchors | Method | hits@1 | hits@5 | MRR | AMI |", "|" + "---|" * 7]
    for (_, regime, share), tables in sorted(cells.items(), key=lambda c: (c[0][1], c[0][2])):
        for name in tables[0]:
            if name != FACTS and " + " not in name and all(name in t for t in tables):
                lines.append(
                    f"| {regime} | {share:.0%} | {name} | "
                    + " | ".join(_mean(tables, name, s) for s in SCORES)
                    + " |"
                )
    return "\n".join(lines) + "\n"


def _mean(tables: list[dict[str, Row]], name: str, score: str) -> str:
    return shown(mean_and_error([float(t[name][score] or 0.0) for t in tables]))


def _gain(tables: list[dict[str, Row]], name: str, score: str) -> str:
    found = gain(tables, name, score)
    text = shown(found, "+")
    return f"**{text}**" if len(tables) > 2 and found.mean > 2 * found.error else text
