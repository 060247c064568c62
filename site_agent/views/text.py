"""The text view: names of codes in the study's space of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from protocol.release import SourceView
from protocol.study import StudySpec
from protocol.text import VIEW, TextEncoder, encode_names, has_word

NAME = VIEW


def text_view(
    codes: Sequence[str], texts: Mapping[str, str], *, encoder: TextEncoder, study: StudySpec
) -> SourceView | None:
    """Vectors of the names of released codes.

    A vector tells nearly as much as its text: whoever can guess the text finds it as the nearest of all guesses. So
    `texts` are only those that might leave as they are.

    Args:
        codes: (n,) CURIEs in the release's order.
        texts: CURIE -> name, of codes whose name may be encoded.
        encoder: the study's (`protocol.text.open_encoder`).
        study: says what kind of code each is.

    Returns:
        rows (m,) of the codes that have a name and a float32 (m, encoder.dim) matrix of unit rows; None where no code has.
    """
    rows = [row for row, code in enumerate(codes) if has_word(texts.get(code, ""))]
    if not rows:
        return None
    named = [codes[row] for row in rows]
    kinds = [study.system(code.partition(":")[0]).category for code in named]
    matrix = encode_names(encoder, [texts[code] for code in named], kinds)
    return SourceView(NAME, np.array(rows, dtype=np.int32), matrix)
