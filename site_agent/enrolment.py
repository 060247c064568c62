"""Making a site's home folder, and the file that enrols it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from protocol.errors import StudyError, UsageError
from protocol.files import write_atomic
from protocol.keys import PrivateKeys, PublicKeys
from protocol.messages import Enrolment, Invitation
from protocol.signed import parse, sign_message
from protocol.study import load_study
from site_agent.config import Home
from site_agent.flower.node import new_node_key

_TEMPLATE = """\
# One site of study {study}. See docs/reference/configuration.md.
site = "{site}"

[data]
events = {events}       # CSV or Parquet: patient, date, code [, system, description]
anchors = {anchors}     # CSV: local_code, standard_code; "" for none
system = "{system}"     # code system of rows that name none
bad_rows = "stop"       # or "skip": leave such rows out and count them

[policy]                # 0: as the study says; other values can only be stricter
min_code_patients = 0
min_pair_patients = 0
margin_rounding = 0
max_dim = 0

[network]
# Flower bundles whose messages are answered, by SHA-256; none means: deny all.
# Their code is never run here. This one is named by the coordinator's invitation.
allow_bundles = ["{bundle}"]
"""


def init_home(
    folder: Path, *, site: str, invitation: Path, study: Path, events: Path, anchors: Path | None, system: str
) -> Home:
    """Make the folder whole or not at all.

    Raises:
        UsageError: the folder exists, or a given file does not.
        StudyError: site, study and invitation do not fit together.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"The folder {folder} is not empty", do="Name a new folder")
    for path in (invitation, study, events, *([anchors] if anchors else [])):
        if not path.is_file():
            raise UsageError(f"There is no file {path}")
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
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
    try:
        text = _TEMPLATE.format(
            study=spec.id,
            site=site,
            system=system,
            bundle=invited.bundle_digest,
            events=_toml(str(events.resolve())),
            anchors=_toml(str(anchors.resolve()) if anchors else ""),
        )
        write_atomic(work / "site.toml", text)
        shutil.copyfile(study, work / "study.toml")
        shutil.copyfile(invitation, work / "invitation.json")
        for name in ("outbox", "local", "results"):
            (work / name).mkdir(mode=0o700)
        PrivateKeys.generate().save(work / "keys" / "site.key")
        new_node_key(work / "flower" / "node.key")
        if folder.exists():
            folder.rmdir()
        os.rename(work, folder)  # noqa: PTH104
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Home(folder)


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
    path = home.folder / f"enrolment-{home.config.site}.json"
    write_atomic(path, sign_message(enrolment, keys), mode=0o644)
    return path, keys.public()


def _toml(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
