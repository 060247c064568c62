"""What a site shares at all."""

from __future__ import annotations

from protocol.errors import GateError
from site_agent.config import Home


def check_sealed_sharing(home: Home) -> None:
    """Return only if sealed embeddings may leave this site.

    Raises:
        GateError: the study or the site says that they may not.
    """
    reasons = []
    if home.study.sharing.embeddings == "none":
        reasons.append("the study says sharing.embeddings = none")
    if not home.config.sharing.sealed:
        reasons.append("site.toml says sharing.sealed = false")
    if reasons:
        raise GateError(
            f"Site {home.config.site} releases no sealed embedding",
            tuple(reasons),
            do="Ask the site for its part in secure sums instead",
        )


def check_summing(home: Home) -> None:
    """Return only if counts may go into sums.

    Raises:
        GateError: the study says that they may not.
    """
    if home.study.sharing.counts != "summed":
        raise GateError(
            "This study sums no counts",
            ("the study says sharing.counts = none",),
            do="Agree on counts = summed in the study file at every party",
        )
