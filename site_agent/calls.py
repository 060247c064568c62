"""A signed call, held against what the site holds."""

from __future__ import annotations

import json

from pydantic import ValidationError

from protocol.envelope import EnvelopeHeader
from protocol.errors import StudyError
from protocol.messages import ReleaseManifest, RoundCall
from protocol.study import StudySpec, study_differences
from protocol.vocabulary import IDENTIFIER
from site_agent.config import Home
from site_agent.software import agent_digest


def check_study(home: Home, call: RoundCall) -> None:
    """Return only if a call is made under the study that this site holds.

    Raises:
        StudyError: it is not; the fields that differ are named.
    """
    if call.study_digest == home.study.digest:
        return
    try:
        differences = study_differences(home.study, StudySpec.model_validate(call.study))
    except ValidationError:
        differences = ["the coordinator's study is not valid here"]
    raise StudyError(
        f"The coordinator's study differs from the one at site {home.config.site}",
        why="; ".join(differences[:8]),
        do="Agree on one study file; nothing was sent",
    )


def call_round(data: bytes) -> str:
    """The round that a call of another protocol seems to be for, unproved; empty if it names none."""
    try:
        name = json.loads(json.loads(data)["payload"])["round"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return name if isinstance(name, str) and IDENTIFIER.fullmatch(name) else ""


def release_header(home: Home, call: RoundCall, manifest: ReleaseManifest, head: str) -> EnvelopeHeader:
    """The header of the envelope that answers a call.

    Args:
        head: of the site's ledger, with the approvals in it.
    """
    return EnvelopeHeader(
        kind="release",
        suite=call.recipient.suite,
        consortium=home.study.id,
        study_digest=home.study.digest,
        round=call.round,
        site=home.config.site,
        recipient_key=call.recipient.digest,
        signer_key=home.keys.public().digest,
        sequence=manifest.sequence,
        previous=manifest.previous,
        content=manifest.digest,
        agent_digest=agent_digest(),
        policy_digest=manifest.policy.digest,
        ledger_head=head,
        expires=call.expires,
    )
