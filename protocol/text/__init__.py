"""Names of codes as vectors in one space: encoders, which site and coordinator share, and abbreviations."""

from protocol.release import TEXT as VIEW
from protocol.text.abbreviations import expand
from protocol.text.encoder import Projected, TextEncoder, encode_names, has_word
from protocol.text.lexical import LexicalEncoder
from protocol.text.opening import find_encoder, open_encoder

__all__ = [
    "VIEW",
    "LexicalEncoder",
    "Projected",
    "TextEncoder",
    "encode_names",
    "expand",
    "find_encoder",
    "has_word",
    "open_encoder",
]
