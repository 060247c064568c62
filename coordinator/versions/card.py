"""The model card of a version, `model-card.md`, and `datacite.json` beside it.

The headings are those of Mitchell et al. 2019 (Model Cards for Model Reporting), as far as they apply.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from coordinator.edition import Edition
from coordinator.mapping import MappingSet
from coordinator.scoring.curve import wilson
from coordinator.version import SOFTWARE
from coordinator.versions import CARD, DATACITE, datacite
from coordinator.versions.markdown import escaped, table
from protocol.study import StudySpec

_SURE, _EVEN = 0.9, 0.5


def write_card(folder: Path, edition: Edition, mappings: MappingSet) -> None:
    """Write both files.

    Args:
        folder: of the version.
        edition: the version.
        mappings: what the audience of this copy may see.
    """
    (folder / CARD).write_text(model_card(edition, mappings), encoding="utf-8")
    found = datacite.metadata(edition, _abstract(edition, mappings), _method(edition))
    text = json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True)
    (folder / DATACITE).write_text(text + "\n", encoding="utf-8")


def model_card(edition: Edition, mappings: MappingSet) -> str:
    """The card, in Markdown: no link, image or HTML of it comes from a site."""
    parts = [
        f"# {escaped(datacite.title(edition))}",
        escaped(edition.study.title),
        escaped(_abstract(edition, mappings), 2000),
        *_use(edition),
        *_data(edition),
        *_how(edition),
        *_metrics(edition, mappings),
        *_limits(edition),
        *_citation(edition),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _abstract(edition: Edition, mappings: MappingSet) -> str:
    study, sites = edition.study, sum(s.state == "received" for s in edition.sites)
    rows = [row for row in mappings.rows if not row.code.startswith(f"{study.standard}:")]
    mapped = sum(bool(row.standard_code) for row in rows)
    return (
        f"A map of {len(mappings.rows):,} medical codes of {sites} sites: clusters of codes that mean the same, a vector for "
        f"each code, and for {mapped:,} of {len(rows):,} codes outside the standard system {study.standard} a standard code "
        "with the probability that it is the right one. It was made from summary statistics that the sites released; no "
        "patient's record left a site."
    )


def _use(edition: Edition) -> list[str]:
    standard = edition.study.standard
    uses = [
        f"proposing {standard} codes for local codes, for people to review",
        "finding codes of several sites for one cohort or phenotype, and reviewing the list",
        "starting points for further mapping: vectors, neighbours, clusters",
    ]
    misuses = [
        "care of single patients, billing, or reporting, without review of each mapping that is used",
        "conclusions on how common a disease is at a site: counts are rounded, and rare codes withheld",
        "taking a code that is missing for a code without meaning: it was withheld, or never seen",
        "codes of sites that took no part",
    ]
    return ["## Intended use", _list(uses), "Not intended:", _list(misuses)]


def _data(edition: Edition) -> list[str]:
    study, privacy = edition.study, edition.study.privacy
    rows: list[list[object]] = []
    for site in edition.sites:
        s = site.statistics
        if s is None or site.state != "received":
            rows.append([site.site, site.state, "", "", "", site.detail])
            continue
        rows.append([site.site, site.state, s.patients, s.codes_released, s.codes_suppressed, ""])
    rule = (
        "over a patient's whole history"
        if study.counting.rule == "whole-history"
        else f"at most {study.counting.window_days} days apart"
    )
    floors = (
        f"Each site counted which codes occur {rule} in one patient's record, and released neither records nor counts of "
        f"pairs, but an embedding of its codes. Withheld are codes of fewer than {privacy.min_code_patients} patients and pairs "
        f"of fewer than {privacy.min_pair_patients} ({privacy.small_site_pair_patients} at a site that may have fewer than "
        f"{privacy.small_site_patients:,} patients). Counts are rounded to {privacy.margin_rounding}."
    )
    systems = [[s.prefix, s.category, s.local_to or "public"] for s in study.code_systems]
    return [
        "## Data",
        floors,
        "\n".join(table(["site", "state", "patients", "codes released", "codes withheld", "why"], rows)),
        "\n".join(table(["code system", "category", "of"], systems)),
    ]


def _how(edition: Edition) -> list[str]:
    background = [b.detail for b in edition.harmonized.background]
    beside = (
        _list(map(escaped, background)) if background else "Beside the releases the fit was given nothing."
    )
    return ["## Method", escaped(_method(edition), 2000), beside]


def _method(edition: Edition) -> str:
    study, harmonized = edition.study, edition.harmonized
    fit = harmonized.fit
    views = ", ".join(sorted({view.name for release in edition.releases for view in release.views()}))
    return (
        f"SMILE, {study.fit.method} fit, of the sites' views ({views}), round {edition.round}, seed {study.fit.seed}: "
        f"{fit.embedding.shape[1]} latent dimensions, {harmonized.n_clusters:,} clusters, concentration {fit.kappa:.1f}. "
        f"Anchors that sites gave make a code and its standard code one row. Probabilities are a curve, fitted to anchors that "
        f"had been hidden from further fits. Study digest {study.digest[:12]}. Made by {SOFTWARE}."
    )


def _metrics(edition: Edition, mappings: MappingSet) -> list[str]:
    parts = ["## Metrics", *_probabilities(edition, mappings), *_hidden(edition), *_audit(edition)]
    quality = edition.quality
    if quality is None:
        return [*parts, "No truth was given to score the map against, beyond the hidden anchors."]
    rows = [
        [
            f"{row.method} (published)" if row.published else row.method,
            _score(row.ami, row.ami_se),
            _score(row.hits1, row.hits1_se),
            _score(row.hits5, row.hits5_se),
        ]
        for row in quality.rows
    ]
    table_lines = table(["method", "AMI", "hits@1", "hits@5"], rows)
    return [*parts, "Against known truth:", "\n".join(table_lines), escaped(quality.scored, 2000)]


def _probabilities(edition: Edition, mappings: MappingSet) -> list[str]:
    rows = [r for r in mappings.rows if not r.code.startswith(f"{edition.study.standard}:")]
    found = [r.probability for r in rows if r.standard_code and not r.given]
    cells = [
        ["given by a site", sum(r.given for r in rows), ""],
        ["found, probability from 0.9", *_part([p for p in found if p >= _SURE])],
        ["found, 0.5 to 0.9", *_part([p for p in found if _EVEN <= p < _SURE])],
        ["found, below 0.5", *_part([p for p in found if p < _EVEN])],
        ["no standard code", sum(not r.standard_code for r in rows), ""],
    ]
    return ["\n".join(table(["mapping", "codes", "expected right"], cells)), _reviewed(edition, mappings)]


def _reviewed(edition: Edition, mappings: MappingSet) -> str:
    """How many codes people have looked at, and what came of it."""
    visible = {row.code for row in mappings.rows}
    state = {r.code: r.state for r in edition.reviews if r.code in visible}
    if not state:
        return "Nobody has reviewed a mapping of this version yet."
    counts = Counter(state.values())
    said = ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items()))
    return f"People have reviewed {len(state):,} codes: {said}. Their word stands beside the probabilities, not in them."


def _part(found: Sequence[float]) -> list[object]:
    """How many, and how many of them are expected to be right."""
    return [len(found), f"{sum(found):,.0f}" if found else ""]


def _hidden(edition: Edition) -> list[str]:
    learnt = edition.harmonized.calibration
    if not learnt.n:
        few = (
            "Too few anchors could be hidden to learn how often a mapping is right: each probability is 0.5."
        )
        return [few]
    low, high = wilson(round(learnt.right * learnt.n), learnt.n)
    parts = [
        f"Of {learnt.n:,} anchors that were hidden from further fits, {learnt.right:.1%} got their standard code again "
        f"(95 % interval {low:.1%} to {high:.1%})."
    ]
    if learnt.error is None:
        return parts
    rows = [[b.n, f"{b.stated:.2f}", f"{b.right:.2f}", f"{b.low:.2f} to {b.high:.2f}"] for b in learnt.curve]
    return [
        *parts,
        f"Debiased expected calibration error {learnt.error:.3f} (95 % interval {learnt.error_low:.3f} to "
        f"{learnt.error_high:.3f}): each hidden anchor was judged by a curve that was learnt without it.",
        "\n".join(table(["hidden anchors", "mean probability", "share right", "95 % interval"], rows)),
    ]


def _audit(edition: Edition) -> list[str]:
    """How far a vector tells its site."""
    found = edition.harmonized.audit.lines
    if not found:
        return []
    rows = [
        [
            line.kind,
            line.recogniser,
            f"{line.mcc:.3f}",
            f"{line.limit:.3f}",
            f"{line.beyond:.3f}",
            line.groups,
        ]
        for line in found
    ]
    head = ["vectors", "recogniser", "MCC", "chance, 95 %", "beyond", "codes"]
    return [
        "How far a vector tells its site, on codes that were not learnt from:",
        "\n".join(table(head, rows)),
    ]


def _limits(edition: Edition) -> list[str]:
    study = edition.study
    said = [
        "A probability is how often a mapping like this one was right among anchors that sites gave. Where sites anchor easy "
        "codes, it is too hopeful for the others; and of codes whose meaning no standard code has, anchors show none.",
        "Given mappings were not checked: they are as right as the site that gave them.",
        "A cluster's posterior is the model's own certainty, not a probability that was measured.",
        *_small(study, edition),
        *_checks(edition),
        *(escaped(warning, 1000) for warning in edition.harmonized.warnings),
    ]
    gone = [
        escaped(f"{t.site} withdrew on {t.at:%Y-%m-%d}: nothing of it is in this version. {t.reason}", 700)
        for t in edition.withdrawn
    ]
    return ["## Limits", _list([*said, *gone])]


def _small(study: StudySpec, edition: Edition) -> list[str]:
    least = study.privacy.small_site_patients
    small = [s.site for s in edition.sites if s.statistics is not None and s.statistics.patients < least]
    if not small:
        return []
    return [
        f"Small sites ({', '.join(map(escaped, small))}; fewer than {least:,} patients): more of their codes are withheld, "
        "and the vectors of the others are noisier."
    ]


def _checks(edition: Edition) -> list[str]:
    screening = edition.harmonized.screening
    if not screening.sites:
        return ["Releases were not checked against wrong or hostile ones."]
    doubtful = sum(len(v.doubtful) for v in screening.sites)
    out = [v.site for v in screening.sites if v.left_out]
    spared = [v.site for v in screening.sites if v.accepted]
    said = (
        f"Each release was held against the others: {len(out)} of {len(screening.sites)} were left out, {doubtful:,} single "
        f"codes doubted, {len(screening.held):,} changes held back. What one site alone holds, in its first release, nobody "
        "could check."
    )
    if not spared:
        return [said]
    return [said, f"Used in spite of the checks, by a reviewer's word: {', '.join(map(escaped, spared))}."]


def _citation(edition: Edition) -> list[str]:
    who = "; ".join(datacite.creators(edition))
    cited = (
        f"{who} ({edition.created:%Y}). {datacite.title(edition)}. {datacite.publisher(edition)}. Dataset. "
        f"{datacite.version_uri(edition, edition.version)}"
    )
    return [
        "## How to cite",
        escaped(cited, 3000),
        f"Licence: {escaped(edition.study.licence)}. `{DATACITE}` has the same for a DOI registry; the identifier is added when "
        "it is minted. Name the version and the digest of its manifest: versions never change.",
    ]


def _score(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _list(lines: Sequence[str] | map[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
