"""What coordinator and site hand each other beside invitation and enrolment; each is signed, people carry it."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from protocol.messages import HexDigest, Message
from protocol.sections import Identifier


class Welcome(Message):
    """The coordinator's word that a site is enrolled with these keys."""

    study_digest: HexDigest
    site: Identifier
    keys: HexDigest = Field(description="Digest of the site's public keys.")
    enrolled: AwareDatetime
    sequence: int = Field(
        0, ge=0, description="Of the site's last accepted release; not 0 where a machine is replaced."
    )
    accepted: str = Field("", pattern="^([0-9a-f]{64})?$", description="Content digest of that release.")
    ledger_head: str = Field(
        "", pattern="^([0-9a-f]{64})?$", description="Head of the lost machine's ledger, as seen last."
    )


class NodeKeyChange(Message):
    """A site's new Flower key in place of the one before it; signed by the site's own keys. Replaced ones never come back."""

    study_digest: HexDigest
    site: Identifier
    node_key: str = Field(max_length=1024, description="Public key, EC P-384 in OpenSSH form.")


class Authority(Message):
    """The authorities that sites trust for the connection; signed by the coordinator."""

    study_digest: HexDigest
    certificates: str = Field(max_length=16_384, description="PEM, the present authority first.")
    issued: AwareDatetime
