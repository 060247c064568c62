"""What a demo starts from: a study file and the files of each site, generated or real."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from coordinator.demo.codesystems import load_code_systems
from coordinator.demo.consortium import generate
from protocol.errors import UsageError
from protocol.vocabulary import IDENTIFIER, split_curie

_PUBLIC = {
    "ICD10CM": ("condition", "http://hl7.org/fhir/sid/icd-10-cm/"),
    "ICD9CM": ("condition", "http://hl7.org/fhir/sid/icd-9-cm/"),
    "RxNorm": ("drug", "http://www.nlm.nih.gov/research/umls/rxnorm/"),
    "LOINC": ("lab", "http://loinc.org/"),
    "SNOMED": ("condition", "http://snomed.info/id/"),
}


@dataclass(frozen=True)
class SiteFiles:
    """A site's data and the code system of rows that name none."""

    events: Path
    anchors: Path | None
    system: str


@dataclass(frozen=True)
class Inputs:
    """Everything that a demo is given.

    Attributes:
        truth: CSV of system, code, concept; None where no truth is known.
        titles: CSV of system, code, title of public codes, which the coordinator publishes; None without any.
        example: a CURIE to search for.
    """

    study: Path
    sites: tuple[str, ...]
    files: Mapping[str, SiteFiles]
    truth: Path | None
    titles: Path | None
    example: str


_NOBODY = """
[privacy]                # nobody can be harmed: these patients were drawn
public_data = true
small_site_patients = 0  # so that few of them show what more patients of a real site would
"""


def generated(folder: Path, *, sites: int, patients: int, seed: int) -> Inputs:
    """Draw a consortium into the folder."""
    consortium = generate(folder, sites=sites, patients=patients, seed=seed)
    files = {
        s.name: SiteFiles(folder / s.name / "events.parquet", folder / s.name / "anchors.csv", s.prefix)
        for s in consortium.sites
    }
    study = folder / "study.toml"
    study.write_text(
        _study("demo", "A generated consortium", {n: {f.system} for n, f in files.items()}, "ICD10CM")
        + _NOBODY
    )
    with (folder / "truth.csv").open(encoding="utf-8", newline="") as stream:
        first = next(csv.DictReader(stream))
    titles = _write_titles(folder / "titles.csv", folder / "truth.csv")
    return Inputs(
        study, tuple(files), files, folder / "truth.csv", titles, f"{first['system']}:{first['code']}"
    )


def real(source: Path, folder: Path) -> Inputs:
    """Take a folder of real triplet files, one a site: SITE.csv or SITE.parquet, with a system column.

    Beside them may lie SITE.anchors.csv, truth.csv (system, code, concept), titles.csv
    (system, code, title), and study.toml; without a study one is made with the default floors, and code
    systems that only one site uses and that are not known as public are its own.

    Raises:
        UsageError: fewer than three sites, a bad name, or no system column.
    """
    found = sorted(p for p in source.glob("*") if p.suffix in {".csv", ".parquet"} and _is_events(p))
    if len(found) < 3:
        raise UsageError(
            f"{source} holds {len(found)} event files, a federation needs three",
            do="Put one SITE.csv or SITE.parquet a site there, with the columns patient, date, code, system",
        )
    folder.mkdir(parents=True)
    systems: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    files = {}
    for path in found:
        if not IDENTIFIER.fullmatch(path.stem):
            raise UsageError(f"{path.stem!r} cannot name a site", why="a name has 1 to 32 of a-z, 0-9 and -")
        column = _column(path)
        own = column.value_counts().to_pylist()
        systems[path.stem] = {str(v["values"]) for v in own}
        for v in own:
            counts[str(v["values"])] = counts.get(str(v["values"]), 0) + int(v["counts"])
        anchors = source / f"{path.stem}.anchors.csv"
        main = max(own, key=lambda v: int(v["counts"]))["values"]
        files[path.stem] = SiteFiles(path, anchors if anchors.exists() else None, str(main))
    study = source / "study.toml"
    if not study.exists():
        study = folder / "study.toml"
        standard = "ICD10CM" if "ICD10CM" in counts else max(counts, key=counts.__getitem__)
        study.write_text(_study("demo", f"The files of {source.name}", systems, standard))
    truth = source / "truth.csv"
    example = _example(found[0])
    titles = source / "titles.csv"
    return Inputs(
        study,
        tuple(files),
        files,
        truth if truth.exists() else None,
        titles if titles.exists() else None,
        example,
    )


def _write_titles(path: Path, truth: Path) -> Path:
    """What ICD-10-CM and ICD-9-CM call the codes of a generated truth, and their standard codes."""
    systems = load_code_systems()
    titles = {"ICD10CM": systems.icd10, "ICD9CM": systems.icd9}
    with truth.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    named = {(r["system"], r["code"]) for r in rows} | {split_curie(r["standard_code"]) for r in rows}
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("system", "code", "title"))
        writer.writerows((s, c, titles[s][c]) for s, c in sorted(named) if s in titles)
    return path


def _is_events(path: Path) -> bool:
    return path.stem not in {"truth", "titles"} and not path.name.endswith(".anchors.csv")


def _table(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    text = pa_csv.ConvertOptions(column_types={"code": pa.string(), "system": pa.string()})
    return pa_csv.read_csv(path, convert_options=text)


def _column(path: Path) -> pa.ChunkedArray:
    try:
        table = _table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path} cannot be read", why=str(error).splitlines()[0][:200]) from None
    if "system" not in table.column_names:
        raise UsageError(
            f"{path} has no column 'system'", do="Name each row's code system, for example ICD10CM"
        )
    return table["system"]


def _example(path: Path) -> str:
    row = _table(path).slice(0, 1).to_pylist()[0]
    return f"{row['system']}:{row['code']}"


def _study(name: str, title: str, systems: Mapping[str, set[str]], standard: str) -> str:
    """A study file for these sites, with the default floors."""
    owners: dict[str, list[str]] = {}
    for site, prefixes in systems.items():
        for prefix in prefixes:
            owners.setdefault(prefix, []).append(site)
    lines = [
        f'id = "{name}"',
        f'title = "{title}"',
        f"sites = [{', '.join(repr(s) for s in systems)}]",
        f'standard = "{standard}"',
        "minimum_sites = 3",
    ]
    for prefix, sites in sorted(owners.items()):
        category, uri = _PUBLIC.get(prefix, ("condition", ""))
        lines += ["", "[[code_systems]]", f'prefix = "{prefix}"', f'category = "{category}"']
        if uri:
            lines.append(f'uri = "{uri}"')
        elif len(sites) == 1 and prefix != standard:
            lines.append(f'local_to = "{sites[0]}"')
    return "\n".join(lines) + "\n"
