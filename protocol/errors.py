"""The one family of errors that people see.

An error says what happened, why, and what to do next; the command line prints
it as one sentence each and leaves with the error's exit code, without a traceback.
"""

from __future__ import annotations


class FederationError(Exception):
    """Base of every error that a user's action or another party's message can cause.

    Args:
        what: what happened, and where (file, line, column, site).
        why: the reason, if it adds something.
        do: what the reader should do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", do: str = "") -> None:
        super().__init__(what, why, do)
        self.what, self.why, self.do = what, why, do

    def __str__(self) -> str:
        """One sentence for each part that was given, on one line."""
        parts = [self.what, self.why, self.do]
        return " ".join(p if p.endswith((".", "!", "?")) else p + "." for p in parts if p)


class UsageError(FederationError):
    """The command was called wrongly, or a configuration file is wrong (exit code 2)."""

    exit_code = 2


class StudyError(UsageError):
    """The study file is wrong, or differs between the parties."""


class DataError(FederationError):
    """A site's event data cannot be used as they are."""


class GateError(FederationError):
    """The gate refuses a release; `reasons` lists every one of its reasons."""

    def __init__(self, what: str, reasons: tuple[str, ...], *, do: str = "") -> None:
        super().__init__(what, why="; ".join(reasons), do=do)
        self.reasons = reasons


class ProtocolError(FederationError):
    """Bytes from another party do not parse, or do not say what they must."""


class EnvelopeError(ProtocolError):
    """A sealed message is altered, addressed to someone else, expired or replayed."""


class VersionError(EnvelopeError):
    """The other party speaks another version of the protocol."""


class KeyFileError(FederationError):
    """A private key file is missing, readable by others or not a key."""


class FitError(FederationError):
    """The releases at hand cannot be fitted."""


class RoundError(FederationError):
    """A round is not in the state that the command needs."""


class StoreError(FederationError):
    """The coordinator's database cannot be reached, is locked, or has no room: the same may go through later."""
