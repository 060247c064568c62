"""From the study's `[text]` to its encoder, which must be exactly the one that the study names."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from protocol.errors import StudyError, UsageError
from protocol.sections import Text
from protocol.text.encoder import Projected, TextEncoder
from protocol.text.lexical import LexicalEncoder

Kind = Literal["lexical", "minilm", "directory"]


def find_encoder(kind: Kind, folder: Path | None = None, *, dim: int = 128) -> TextEncoder:
    """An encoder as it is installed here; its digest is what a coordinator writes into the study.

    Args:
        kind: as `text.encoder` of the study.
        folder: of the model, for `directory`.
        dim: of `lexical`, which has any number of dimensions; a model has its own.

    Raises:
        UsageError: the model is missing or cannot be used.
    """
    if kind == "lexical":
        return LexicalEncoder(dim)
    # Models need libraries that only those who use them install.
    from protocol.text.onnx import directory_encoder, minilm_encoder  # noqa: PLC0415

    if kind == "minilm":
        return minilm_encoder()
    if folder is None:
        raise UsageError(
            "The study's text encoder is a model in a directory, and no directory is named",
            do="Get the model that the coordinator names, and set data.text_model in site.toml to its folder",
        )
    return directory_encoder(folder)


def open_encoder(text: Text, folder: Path | None = None) -> TextEncoder:
    """The study's encoder, in the study's number of dimensions.

    Args:
        text: the study's section; its encoder is not `none`.
        folder: of the model, for `directory`.

    Raises:
        StudyError: another one is installed here, or it has fewer dimensions than the study says.
        UsageError: the model is missing or cannot be used.
    """
    if text.encoder == "none":
        raise ValueError("the study has no text encoder")
    found = find_encoder(text.encoder, folder, dim=text.dim)
    if found.digest != text.digest:
        raise StudyError(
            f"The text encoder {text.encoder!r} that is installed here is not the study's",
            why=f"its digest begins {found.digest[:12]}, the study's {text.digest[:12]}: its vectors would lie in another space",
            do="Install the software version, or copy the model's folder, that the coordinator made the study with",
        )
    return Projected(found, text.dim)
