"""Reading a party's TOML configuration, with every mistake named."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from protocol.errors import UsageError
from protocol.study import validation_reasons

C = TypeVar("C", bound=BaseModel)


def read_config(path: Path, kind: type[C], *, whose: str, made_by: str) -> C:
    """The configuration in a home folder.

    Args:
        whose: whose home folder it should be, for the message where the file is missing.
        made_by: the command that makes one.

    Raises:
        UsageError: the file is missing, no TOML, or wrong; every wrong field is named.
    """
    try:
        return kind.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UsageError(
            f"{path.parent} is not {whose} home folder",
            why=f"it has no {path.name}",
            do=f"Run {made_by}, or name the right folder with --home",
        ) from None
    except ValidationError as error:
        raise UsageError(f"{path} is not valid", why=validation_reasons(error)) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read", why=str(error)) from None
