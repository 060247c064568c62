"""The sections on groups of codes, indications and laboratory codes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from coordinator.evaluation import Estimate, mean_and_error
from tests.benchmarks.real.groups import ALONE, AMIS, LINKED, PAIRS, TWO_STAGE
from tests.benchmarks.real.labs import WITH
from tests.benchmarks.real.regimes import Row

Runs = Sequence[dict[str, Row]]
"""One table of methods for each seed."""
OURS = (LINKED, TWO_STAGE)
FACTS = "facts"

_PHECODES = """
## Code groups: phecodes

Do the codes of one disease come together, whatever a site calls them? A *phecode* (1.2) is a group of ICD codes that studies
use as one disease. AMI is between the phecodes and as many clusters of the rows that have one. AUC is of the cosine, for pairs
against pairs that are as likely by chance: the second code of a pair is exchanged for ten of another root that the same sites
hold and about as many patients have. *One code*: two names of it. *Same phecode*: other codes of it, *far* those of other
categories (first three characters) of the ICD. *Related*: other phecodes of the same root.

"{two}" is `fit_two_stage`. "{linked}" is the latent mean after `coordinator.linking.self_train`,
which `coordinator fit` publishes. "{alone}" is no method for a consortium: the mean cosine at the sites that hold both
codes, 0 where none does. Columns d: three fifths of the released ones, or all. A gain is over the best rival of each column,
chosen afterwards. hits are of codes without their standard code, as above, by cosine; those of "{linked}" by
its score, which also uses support and profile.

Where few codes are anchored (claims), self-training brings the names of one code together, and with them the clusters: that is
its gain. Other codes of a phecode it finds about as well as the rivals, related and far ones no better. Where two thirds of the
codes are shared (UCI), any method aligns the sites: SMILE with 9 dimensions groups codes about as the rivals do with all 15, far
and related ones a hundredth or two worse, and better than they do with 9 but for related ones. Only which standard code a
name means, it tells far better. What a site sees alone is behind in all.
"""
_INDICATIONS = """
## Drugs and what they treat: PharmacotherapyDB

Is a drug's vector nearer to the diseases that it treats (indications, disease-modifying or symptomatic) than to other diagnoses
that the same sites hold and about as many patients have? No method here is told of any relation, and cosine is all there is to
judge by: a drug is near to its indication as far as both are seen in the same company. *Of two sites*: pairs whose codes no
site holds both, which only aligned vectors can tell.

On UCI every method is below one half. Probably since an encounter has three diagnoses there, and a diabetes drug keeps the
company of whatever is coded beside diabetes. Co-occurrence does not tell what treats what; relations must be given
(`coordinator knowledge`).
"""
_LABS = """
## Laboratory codes: City of Hope's vectors as one more source

1,046 published vectors of LOINC codes, learnt on 79,081 patients of one institution and reduced to their 20 leading axes, join
the fit of the same three Synthea sites through the LOINC codes that a site released as they are. **Only some fifty codes are
shared**, and generated panels are little like real ones. *One category*: AUC of pairs of one City of Hope category (their own
labels: coarse, and in favour of their vectors) against pairs of others, matched as above. hits are of recoded LOINC codes
among LOINC codes. A gain is with the vectors over without, paired by seed.

Pairs of one category gain one or two hundredths with every method. Mapping gains nothing: hits@1 falls by one or two hundredths,
hits@5 rises by as much.
"""


def group_sections(studies: Mapping[str, Sequence[Mapping[str, dict[str, Row]]]]) -> str:
    """All sections; a study is data set -> for each seed the tables by name."""
    parts: list[str] = []
    named = {"two": TWO_STAGE, "linked": LINKED, "alone": ALONE}

    def runs(data: str, table: str) -> list[dict[str, Row]]:
        return [tables[table] for tables in studies.get(data, ())]

    if any(runs(data, "phecodes") for data in ("claims", "UCI")):
        parts.append(_PHECODES.format(**named))
    for data, text in (("claims", _claims), ("UCI", _uci)):
        if found := runs(data, "phecodes"):
            parts += [text(found), *methods_table(found, (*AMIS, *PAIRS, "hits@1", "hits@5")), ""]
    if any("indications" in tables for seeds in studies.values() for tables in seeds):
        parts.append(_INDICATIONS)
    for data, text in (("UCI", _uci_drugs), ("Synthea", _synthea_drugs)):
        if found := runs(data, "indications"):
            columns = [c for c in found[0][LINKED] if all(c in run[LINKED] for run in found)]
            parts += [text(found), *methods_table(found, columns), ""]
    if found := runs("Synthea", "labs"):
        parts += [_LABS, *_lab_table(found), ""]
    return "\n".join(parts)


def _fact(runs: Runs, name: str) -> float:
    return float(np.mean([run[FACTS].get(name) or 0.0 for run in runs]))


def _claims(runs: Runs) -> str:
    return f"""### Claims under three code systems

The sites of the first tables, default floors, 10 % anchors, no text.
{_pair_facts(runs)}"""


def _uci(runs: Runs) -> str:
    asked, among = _fact(runs, "queries"), _fact(runs, "candidates")
    return f"""### UCI, a third of the codes recoded

Diabetes 130-US hospitals, real encounters: three ICD-9-CM diagnoses and the antidiabetic drugs of each, whole-history counts,
default floors (patient counts rounded to 5). Patients are dealt out to three sites by the seed, and each site writes a third
of its codes, drawn anew, as opaque ids. No anchors, no text; {asked:.0f} recoded codes are sought among {among:.0f}.
{_pair_facts(runs)}"""


def _pair_facts(runs: Runs) -> str:
    counts = ", ".join(f"{_fact(runs, f'pairs, {kind}'):,.0f} {kind}" for kind in PAIRS)
    released, dim = _fact(runs, "released"), _fact(runs, "dim")
    rows, groups = _fact(runs, "codes"), _fact(runs, "phecodes")
    return f"""{released:.0f} codes a site, {dim:.0f} dimensions, {rows:.0f} rows with {groups:.0f} phecodes.
Pairs: {counts}; 20,000 at most are judged. {len(runs)} seeds.
"""


def _uci_drugs(runs: Runs) -> str:
    return f"""### UCI

{_drug_facts(runs)} All patients have diabetes and nearly all drugs
are for type 2 diabetes: the question is little more than whether its codes are nearest.
"""


def _synthea_drugs(runs: Runs) -> str:
    return f"""### Synthea

1,200 generated patients, 400 a site: too few for the default floors, so a code needs five patients and a pair two. A third of the
codes is recoded, as with UCI. {_drug_facts(runs)}
Prescriptions follow the generator's rules, so this says more of the arithmetic than of medicine.
"""


def _drug_facts(runs: Runs) -> str:
    pairs, drugs, diagnoses = (_fact(runs, k) for k in ("indicated", "drugs", "diagnoses"))
    return (
        f"{pairs:.0f} pairs of {drugs:.0f} rows of drugs and {diagnoses:.0f} of diagnoses. {len(runs)} seeds."
    )


def methods_table(runs: Runs, columns: Sequence[str]) -> list[str]:
    """Means and standard errors of every method, what ours gain over the best rival, and where they do not."""
    methods = [m for m in runs[0] if m != FACTS and all(m in run for run in runs)]
    lines = ["| Method | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    lines += [f"| {m} | " + " | ".join(_cell(runs, m, c) for c in columns) + " |" for m in methods]
    said = []
    for own in OURS:
        cells, lost = [], []
        for column in columns:
            rival = best_rival(runs, column)
            if rival is None:
                cells.append("")
                continue
            gain = difference(runs, own, rival, column)
            cells.append(f"{_signed(gain, len(runs))} ({rival})")
            if gain.mean <= 2 * gain.error:
                lost.append(column + (" (below it by two)" if gain.mean < -2 * gain.error else ""))
        lines.append(f"| {own}, gain over the best rival | " + " | ".join(cells) + " |")
        said += [f"{own}: {'; '.join(lost)}"] if lost else []
    if said:
        lines += ["", f"Not above the best rival by two standard errors. {'. '.join(said)}."]
    return lines


def best_rival(runs: Runs, column: str) -> str | None:
    """The rival with the greatest mean; None where none has the column."""
    found = [
        m for m in runs[0] if m not in {FACTS, ALONE, *OURS} and all(_value(run, m, column) for run in runs)
    ]
    return max(found, key=lambda m: _mean(runs, m, column).mean, default=None)


def difference(runs: Runs, one: str, other: str, column: str) -> Estimate:
    """Paired difference of two methods."""
    return mean_and_error([(_value(r, one, column) or 0.0) - (_value(r, other, column) or 0.0) for r in runs])


def _lab_table(runs: Runs) -> list[str]:
    columns = ("one category", "hits@1", "hits@5")
    shared, labs, asked, pairs = (_fact(runs, k) for k in ("shared", "labs", "queries", "pairs"))
    lines = [
        f"{shared:.0f} codes tie the vectors to the sites; {labs:.0f} LOINC codes were released, {asked:.0f} opaque names "
        f"of them are sought;\n{pairs:.0f} pairs of one category. {len(runs)} seeds.\n",
        "| Method | " + " | ".join(f"{c}, without | with | gain" for c in columns) + " |",
        "|" + "---|" * (3 * len(columns) + 1),
    ]
    for method in [m for m in runs[0] if all(f"{m} {WITH}" in run for run in runs)]:
        cells = []
        for column in columns:
            gain = difference(runs, f"{method} {WITH}", method, column)
            cells += [_cell(runs, m, column) for m in (method, f"{method} {WITH}")]
            cells.append(_signed(gain, len(runs)))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def shown(found: Estimate, sign: str = "") -> str:
    """Mean and standard error; of one seed the mean alone."""
    mean = f"{found.mean:{sign}.3f}"
    return mean if math.isnan(found.error) else f"{mean} ± {found.error:.3f}"


def _value(run: Mapping[str, Row], method: str, column: str) -> float | None:
    return run[method].get(column)


def _mean(runs: Runs, method: str, column: str) -> Estimate:
    return mean_and_error([_value(run, method, column) or 0.0 for run in runs])


def _cell(runs: Runs, method: str, column: str) -> str:
    if any(_value(run, method, column) is None for run in runs):
        return ""
    return shown(_mean(runs, method, column))


def _signed(gain: Estimate, n: int) -> str:
    text = shown(gain, "+")
    return f"**{text}**" if n > 2 and gain.mean > 2 * gain.error else text
