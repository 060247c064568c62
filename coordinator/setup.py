"""Making a coordinator's home folder, and enrolling sites."""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC
from pathlib import Path

from sqlalchemy import select

from coordinator.certificates import make_ca_and_server
from coordinator.config import Home
from coordinator.flower.bundle import bundle_digest, write_bundle
from coordinator.store import Site, Store
from coordinator.tables import OldNodeKey
from protocol.enrolment import Welcome
from protocol.errors import StudyError, UsageError
from protocol.files import put_in_place, write_atomic
from protocol.keyfile import Passphrase
from protocol.keylist import VerifiedKeys, verify_key_list
from protocol.keys import PrivateKeys
from protocol.messages import Enrolment, Invitation
from protocol.rotation import KeyReceipt, party_of, read_key_list
from protocol.signed import open_signed, peek, sign_message
from protocol.study import load_study

EXAMPLE_STUDY = """\
# A study: the one file that all parties share. Its digest binds every message,
# so change it only together. All fields: docs/reference/study.md
id = "example"
title = "Diagnoses of three hospitals"
sites = ["north", "lake", "south"]
standard = "ICD10CM"            # its codes name the clusters
minimum_sites = 3

[[code_systems]]
prefix = "ICD10CM"
category = "condition"
uri = "http://hl7.org/fhir/sid/icd-10-cm/"

[[code_systems]]
prefix = "ICD9CM"
category = "condition"
uri = "http://hl7.org/fhir/sid/icd-9-cm/"

[[code_systems]]
prefix = "SOUTH"                # codes that only this site knows
category = "condition"
local_to = "south"

[sharing]                       # embeddings travel sealed; "summed" also pools counts that nobody sees alone
embeddings = "sealed"
counts = "none"
minimum_summed_sites = 5

[counting]
rule = "window"
window_days = 30

[privacy]                       # a site can raise these floors, never lower them
min_code_patients = 20
min_pair_patients = 11
"""


def init_home(
    folder: Path, *, study: Path, address: str, listen: str, passphrase: Passphrase | None = None
) -> Home:
    """Make the folder whole or not at all: keys, certificates, bundle, invitation, empty store.

    Args:
        folder: new, or empty.
        study: the study file; copied, with the ontology beside it if the study has one.
        address: host:port under which sites reach this machine.
        listen: interface of the fleet proxy.
        passphrase: protects the coordinator's key, and the key of every round.

    Raises:
        UsageError: the folder is not empty, or the address is not host:port.
        StudyError: the study file is wrong, or the ontology beside it is another one.
        DataError: the study has an ontology, and none that can be used lies beside it.
        KeyFileError: the passphrase is too short.
    """
    # What reads ontologies takes 60 MB; `serve` imports this module too, and needs none of it.
    from protocol.keep.files import FILE as ONTOLOGY  # noqa: PLC0415
    from protocol.keep.files import read_ontology  # noqa: PLC0415

    spec = load_study(study)
    if spec.ontology.digest:
        read_ontology(study.with_name(ONTOLOGY), digest=spec.ontology.digest)
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise UsageError(
            f"{address!r} is not host:port", do="Give the name that sites will dial, e.g. hub.example:9443"
        )
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"The folder {folder} is not empty", do="Name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
    try:
        home = Home(work)
        shutil.copyfile(study, work / "study.toml")
        if spec.ontology.digest:
            shutil.copyfile(study.with_name(ONTOLOGY), work / ONTOLOGY)
        write_atomic(work / "coordinator.toml", f'address = "{address}"\nlisten = "{listen}"\n')
        keys = PrivateKeys.generate()
        keys.save(work / "keys" / "coordinator.key", passphrase)
        authority = make_ca_and_server(home.tls, [host])
        write_bundle(home.bundle)
        invitation = Invitation(
            study_digest=spec.digest,
            address=address,
            certificate=authority.ca.read_text(),
            keys=keys.public(),
            bundle_digest=bundle_digest(home.bundle),
        )
        write_atomic(work / "invitation.json", invitation.model_dump_json(indent=1), mode=0o644)
        put_in_place(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    home = Home(folder)
    Store(home.database_url)
    return home


def read_enrolment(home: Home, path: Path) -> Enrolment:
    """A site's enrolment, signed by the keys that it names: people must still compare its fingerprint.

    Raises:
        UsageError: there is no such file.
        ProtocolError: it is no enrolment, or the signature does not hold.
        StudyError: it is for another study or an unknown site.
    """
    try:
        data = path.read_bytes()
    except OSError:
        raise UsageError(f"There is no enrolment file {path}") from None
    enrolment = open_signed(data, Enrolment, peek(data, Enrolment).keys)
    if enrolment.site not in home.study.sites:
        raise StudyError(
            f"Site {enrolment.site!r} is not in the study", why=f"it lists {', '.join(home.study.sites)}"
        )
    if enrolment.study_digest != home.study.digest:
        raise StudyError(
            f"Site {enrolment.site} holds another study file than this coordinator",
            why=f"its digest begins {enrolment.study_digest[:12]}, ours {home.study.digest[:12]}",
            do="Send it study.toml and invitation.json again",
        )
    return enrolment


def enrol(store: Store, enrolment: Enrolment, *, again: bool = False) -> None:
    """Store a site whose fingerprint a person has compared.

    Args:
        store: of the study.
        enrolment: from `read_enrolment`.
        again: let a site in that has withdrawn before; its keys must be new ones.

    Raises:
        UsageError: a site of this name, or with these keys, is or was enrolled.
        EnvelopeError: its keys are malformed.
    """
    for site in store.sites():
        if site.name == enrolment.site and site.withdrawn is not None and not again:
            raise UsageError(
                f"Site {site.name} withdrew on {site.withdrawn:%Y-%m-%d}",
                do="If it joins anew, with a new home folder and new keys: coordinator enroll --again",
            )
        if site.name == enrolment.site and site.withdrawn is None:
            raise UsageError(
                f"Site {site.name!r} is already enrolled",
                do="Nothing was changed. If its machine is lost and this is the new one: coordinator enroll --replaces",
            )
    check_new_keys(store, enrolment)
    store.add_site(
        Site(
            name=enrolment.site,
            keys=enrolment.keys.model_dump_json(),
            node_key=enrolment.node_key,
            contact=enrolment.contact,
        )
    )


def check_new_keys(store: Store, enrolment: Enrolment) -> None:
    """Return only if no site has or had a key of this enrolment.

    Raises:
        UsageError: one has, or had.
        EnvelopeError: the keys are malformed.
    """
    keys = enrolment.keys
    keys.sealing_key()
    with store.begin() as session:
        replaced = list(session.scalars(select(OldNodeKey)))
    left = [(w.site, w.node_key) for w in store.withdrawals()] + [(o.site, o.node_key) for o in replaced]
    for site in store.sites():
        halves = {
            h for k in store.site_keys(site.name) for h in (k.public_keys.signing, k.public_keys.sealing)
        }
        nodes = {site.node_key, *(key for name, key in left if name == site.name)}
        if {keys.signing, keys.sealing} & halves or enrolment.node_key in nodes:
            raise UsageError(
                f"Site {site.name!r} is or was enrolled with these keys already", do="Nothing was changed"
            )


def write_welcome(home: Home, store: Store, name: str, *, ledger_head: str = "") -> Path:
    """`welcome-SITE.json`, signed: by it the site knows that it is enrolled, and where it stands.

    Args:
        home: of the coordinator.
        store: its store.
        name: of the site.
        ledger_head: of a lost machine's ledger; the new ledger begins with it.
    """
    site = store.site(name)
    welcome = Welcome(
        study_digest=home.study.digest,
        site=name,
        keys=site.public_keys.digest,
        enrolled=site.enrolled.replace(tzinfo=UTC),
        sequence=site.accepted_sequence,
        accepted=site.accepted_digest,
        ledger_head=ledger_head,
    )
    path = home.folder / f"welcome-{name}.json"
    write_atomic(path, sign_message(welcome, home.keys), mode=0o644)
    return path


def read_new_keys(store: Store, path: Path) -> tuple[Site, VerifiedKeys]:
    """A site's key list, followed from the version that was known: forward only.

    Raises:
        UsageError: there is no such file, or its site is not enrolled, or has withdrawn.
        ProtocolError: it breaks a rule.
        EnvelopeError: it is stale, forks from the known one, or closes the list.
    """
    keys = read_key_list(path)
    site = store.site(party_of(keys))
    if site.withdrawn is not None:
        raise UsageError(
            f"Site {site.name} withdrew on {site.withdrawn:%Y-%m-%d}", do="Its keys stay refused"
        )
    found = verify_key_list(keys, site.known)
    found.current.sealing_key()
    for other in store.sites():
        if other.name == site.name:
            continue
        for key in store.site_keys(other.name):
            if {key.public_keys.signing, key.public_keys.sealing} & {
                found.current.signing,
                found.current.sealing,
            }:
                raise UsageError(f"The new keys of site {site.name} are those of site {other.name}")
    return site, found


def receipt_for(home: Home, found: VerifiedKeys) -> Path:
    """`key-receipt-SITE.json`, signed: the site may erase the keys that it has replaced."""
    known = found.known
    receipt = KeyReceipt(party=known.party, version=known.version, head=known.head)
    path = home.folder / f"key-receipt-{known.party}.json"
    write_atomic(path, sign_message(receipt, home.keys), mode=0o644)
    return path
