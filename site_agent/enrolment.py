"""Making a site's home folder, and the file that enrols it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from protocol.canonical import digest
from protocol.enrolment import Welcome
from protocol.errors import ProtocolError, StudyError, UsageError
from protocol.files import put_in_place, write_atomic
from protocol.keyfile import Passphrase
from protocol.keys import PrivateKeys, PublicKeys
from protocol.messages import Enrolment, Invitation
from protocol.rotation import erase_key
from protocol.signed import open_signed, parse, sign_message
from protocol.study import load_study
from site_agent.config import Home
from site_agent.exchange import Exchange
from site_agent.flower.node import new_node_key
from site_agent.keys import coordinator_keys, own_keys
from site_agent.ledger import Ledger
from site_agent.sections import Kind
from site_agent.state import load_state, save_state

WELCOME = "welcome.json"
NOT_ENROLLED = (
    "Not enrolled yet, as far as this site knows: send the coordinator the file of site-agent enroll; when its welcome "
    "comes, site-agent enroll --confirm FILE"
)

_TEMPLATE = """\
# One site of study {study}. See docs/reference/configuration.md.
site = "{site}"

[data]                  # docs/reference/data-sources.md says what each kind needs
kind = "{kind}"
{place}
anchors = {anchors}     # CSV: local_code, standard_code; "" for none
system = "{system}"     # code system of rows that name none
bad_rows = "stop"       # or "skip": leave such rows out and count them
# latest_date = 2026-12-31    # later events are refused; today if left out
{more}
[machine]
memory = ""             # to read and count in, such as "6G"; half of what is free if left out
threads = 0             # cores that count; 0: all
work = "work"           # coded events and counts, until a release is prepared

[policy]                # 0: as the study says; other values can only be stricter
min_code_patients = 0
min_pair_patients = 0
margin_rounding = 0
max_dim = 0

[approval]
signers = 1             # people who must approve each release; site-agent signer add

[network]
# Flower bundles whose messages are answered, by SHA-256; none means: deny all.
# Their code is never run here. This one is named by the coordinator's invitation.
allow_bundles = ["{bundle}"]
"""

_EVENTS = {
    "triplets": "CSV or Parquet: patient, date, code [, system, description]",
    "meds": "folder with data/**/*.parquet and metadata/codes.parquet",
    "fhir": "folder with Condition*.ndjson, Observation*.ndjson.gz, ...",
}
_DATABASE = """\
# duckdb:///path/to/file, postgresql://user@host:port/name, spark://local or spark://host:port.
# The password goes into SMILE_DATABASE_PASSWORD or ~/.pgpass, not here.
database = {database}
schema = {schema}       # of the tables; "" for the database's own choice"""
_VOCABULARY = """
# vocabulary_schema = "vocabulary"    # if concept and concept_ancestor lie elsewhere"""
_DOMAINS = """
domains = ["condition", "drug", "measurement", "procedure", "observation"]"""

# By kind: how a line of `systems` looks, and what a roll-up may look like.
_SYSTEMS = {
    "meds": '"DIAGNOSIS//ICD//10" = "ICD10CM"',
    "fhir": '"http://hl7.org/fhir/sid/icd-10-cm" = "ICD10CM"',
    "omop": 'SNOMED = "SNOMEDCT"',
    "i2b2": 'ICD10 = "ICD10CM"',
    "pcornet": 'RXNORM = "RxNorm"',
}
_MORE = """
[data.systems]          # a code system as the data write it = its prefix in the study
# {systems}

# [data.rollup]         # count coarser codes instead
# {rollup}
"""
_ROLLUP = {
    "omop": 'concept_ancestor = true    # ingredients instead of products; other classes: classes = ["..."]'
}
_ROLLUP_FILE = 'file = "rollup.csv"    # CSV: code, target, both as PREFIX:code'

_RELATIONAL = frozenset({"omop", "i2b2", "pcornet"})


def init_home(
    folder: Path,
    *,
    site: str,
    invitation: Path,
    study: Path,
    system: str,
    events: Path | None = None,
    anchors: Path | None = None,
    kind: Kind = "triplets",
    database: str = "",
    schema: str = "",
    passphrase: Passphrase | None = None,
) -> Home:
    """Make the folder whole or not at all.

    Args:
        folder: new, or empty.
        site: its name in the study.
        invitation: the coordinator's file; copied.
        study: the study's file; copied, with the ontology beside it if the study has one.
        system: code system of rows that name none.
        events: the file, or for MEDS and FHIR the folder.
        anchors: the file, if there is one.
        kind: what the data are.
        database: its URL, for the kinds that are in one.
        schema: of its tables.
        passphrase: of the site's own key; without it the file's mode is its only protection.

    Raises:
        KeyFileError: the passphrase is too short.
        UsageError: the folder exists, a given file does not, or a kind's place is missing or wrong.
        StudyError: site, study, ontology and invitation do not fit together.
        DataError: the study has an ontology, and none that can be used lies beside it.
    """
    # What reads ontologies and tables takes 60 MB; `run` imports this module too, and needs none of it.
    from protocol.keep.files import FILE as ONTOLOGY  # noqa: PLC0415
    from protocol.keep.files import read_ontology  # noqa: PLC0415
    from site_agent.sources.opening import open_source  # noqa: PLC0415

    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"The folder {folder} is not empty", do="Name a new folder")
    for path in (invitation, study, *([anchors] if anchors else [])):
        if not path.is_file():
            raise UsageError(f"There is no file {path}")
    place = _place(kind, events, database, schema)
    spec, invited = load_study(study), parse(invitation.read_bytes(), Invitation)
    if site not in spec.sites:
        raise StudyError(
            f"Site {site!r} is not in the study {study}", why=f"it lists {', '.join(spec.sites)}"
        )
    if spec.digest != invited.study_digest:
        raise StudyError(
            f"The study {study} is not the one that the invitation {invitation} names",
            why=f"its digest begins {spec.digest[:12]}, the invitation's {invited.study_digest[:12]}",
            do="Ask the coordinator for both files again; all parties must hold the same study",
        )
    spec.system(system)
    if spec.ontology.digest:
        read_ontology(study.with_name(ONTOLOGY), digest=spec.ontology.digest)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
    try:
        text = _TEMPLATE.format(
            study=spec.id,
            site=site,
            system=system,
            bundle=invited.bundle_digest,
            kind=kind,
            place=place,
            more=_more(kind),
            anchors=_toml(str(anchors.resolve()) if anchors else ""),
        )
        write_atomic(work / "site.toml", text)
        shutil.copyfile(study, work / "study.toml")
        if spec.ontology.digest:
            shutil.copyfile(study.with_name(ONTOLOGY), work / ONTOLOGY)
        shutil.copyfile(invitation, work / "invitation.json")
        # A wrong address, or one with a password, is refused before anyone copies the file.
        open_source(Home(work))
        for name in ("outbox", "local", "results"):
            (work / name).mkdir(mode=0o700)
        keys = PrivateKeys.generate()
        keys.save(work / "keys" / "site.key", passphrase)
        Ledger(work / "ledger.jsonl").append("key-made", key=keys.public().digest, site=site)
        new_node_key(work / "flower" / "node.key")
        put_in_place(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Home(folder)


def _place(kind: Kind, events: Path | None, database: str, schema: str) -> str:
    """The lines of `[data]` that say where the data are."""
    if kind in _RELATIONAL:
        if not database or events is not None:
            raise UsageError(
                f"Data of kind {kind} are in a database",
                do="Give --database, such as postgresql://user@host:port/name, and no --events",
            )
        lines = _DATABASE.format(database=_toml(database), schema=_toml(schema))
        lines += _VOCABULARY if kind == "omop" else ""
        return lines + ("" if kind == "i2b2" else _DOMAINS)
    if events is None or database or schema:
        raise UsageError(
            f"Data of kind {kind} are in files",
            do=f"Give --events, the {'file' if kind == 'triplets' else 'folder'}, and neither --database nor --schema",
        )
    if not (events.is_file() if kind == "triplets" else events.is_dir()):
        raise UsageError(f"There is no {'file' if kind == 'triplets' else 'folder'} {events}")
    return f"events = {_toml(str(events.resolve()))}    # {_EVENTS[kind]}" + (
        _DOMAINS if kind == "fhir" else ""
    )


def _more(kind: Kind) -> str:
    """Tables below `[data]` that are there to be filled in."""
    if kind == "triplets":
        return ""
    return _MORE.format(systems=_SYSTEMS[kind], rollup=_ROLLUP.get(kind, _ROLLUP_FILE))


def write_enrolment(home: Home, contact: str) -> tuple[Path, PublicKeys]:
    """`enrolment-SITE.json`, signed by the site's own key; public keys only."""
    keys = home.keys
    enrolment = Enrolment(
        study_digest=home.study.digest,
        site=home.config.site,
        keys=keys.public(),
        node_key=home.node_key.with_name("node.key.pub").read_text().strip(),
        contact=contact,
    )
    path, data = home.folder / f"enrolment-{home.config.site}.json", sign_message(enrolment, keys)
    Ledger(home.folder / "ledger.jsonl").append("enrolment-written", sha256=digest(data), contact=contact)
    write_atomic(path, data, mode=0o644)
    return path, keys.public()


def is_enrolled(home: Home) -> bool:
    """Whether the coordinator's welcome has been taken in."""
    return (home.folder / WELCOME).is_file()


def read_welcome(home: Home, path: Path) -> Welcome:
    """The coordinator's welcome for this site; a person must still compare the coordinator's fingerprint.

    Raises:
        UsageError: there is no such file.
        EnvelopeError: the coordinator that this site knows did not sign it.
        ProtocolError: it is no welcome, is for another site or study, or for keys that this site does not have.
    """
    try:
        data = path.read_bytes()
    except OSError:
        raise UsageError(f"There is no welcome file {path}") from None
    welcome = open_signed(data, Welcome, coordinator_keys(home).current)
    if (welcome.site, welcome.study_digest) != (home.config.site, home.study.digest):
        raise ProtocolError(
            f"The welcome {path} is for site {welcome.site}, or for another study than this site's",
            do="Ask the coordinator for the file of this site",
        )
    if welcome.keys not in {k.digest for k in own_keys(home).trust(home.keys.public()).listed}:
        raise ProtocolError(
            f"The welcome {path} is for other keys than this site has",
            why="it is an old one, or somebody else was enrolled under this site's name",
            do="Call the coordinator, and compare this site's fingerprint",
        )
    return welcome


def take_welcome(home: Home, welcome: Welcome, path: Path) -> None:
    """Keep the welcome, after a person has compared the fingerprint; a new machine learns its place by it.

    Args:
        home: of the site.
        welcome: from `read_welcome`.
        path: the file that it was read from.
    """
    data = path.read_bytes()
    ledger = Ledger(home.folder / "ledger.jsonl")
    ledger.append(
        "enrolled",
        welcome=digest(data),
        coordinator=coordinator_keys(home).current.digest,
        sequence=welcome.sequence,
        accepted=welcome.accepted,
        lost_ledger=welcome.ledger_head,
    )
    state = load_state(home.folder)
    if welcome.sequence > state.accepted_sequence:
        update = {"accepted_sequence": welcome.sequence, "accepted_digest": welcome.accepted}
        save_state(home.folder, state.model_copy(update=update))
    write_atomic(home.folder / WELCOME, data)


def begin_anew(home: Home, passphrase: Passphrase | None = None) -> Home:
    """New keys for a site that goes on from an old backup; `write_enrolment` comes next.

    The ledger, settings, signers and what is remembered of releases stay as they are. The old keys are erased: the
    coordinator revokes them when it takes the enrolment in. May be interrupted and run again.

    Args:
        home: of the site; read it anew afterwards.
        passphrase: protects the new key; without it the file's mode is its only protection.

    Returns:
        the home with the new keys.

    Raises:
        KeyFileError: the passphrase is too short.
    """
    ledger = Ledger(home.folder / "ledger.jsonl")
    ledger.append("enrolling-anew", after=ledger.head())
    folder = home.folder / "keys"
    keys, new = PrivateKeys.generate(), folder / "anew.key"
    erase_key(new)
    keys.save(new, passphrase)
    (home.folder / WELCOME).unlink(missing_ok=True)
    own = own_keys(home)
    for old in (*own.previous(), folder / "next.key"):
        erase_key(old)
    (folder / "key-list.json").unlink(missing_ok=True)
    new.replace(own.key)
    new_node_key(home.node_key, replace=True)
    exchange = Exchange(home.exchange)
    for status in exchange.statuses():
        if status.state == "sealed":
            exchange.clear(status.round)  # sealed by the old key: it is sealed again when it is asked for
    ledger.append("key-made", key=keys.public().digest, site=home.config.site)
    return Home(home.folder)


def _toml(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
