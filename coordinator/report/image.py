"""Figures in the report's style as files, PNG and SVG; the same figure gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.figure import Figure

from coordinator.report.svg import styled
from protocol.files import write_atomic

PNG, SVG = "figure.png", "figure.svg"
_DPI = 150


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches in the report's style, without axes."""
    with styled(width, height) as (figure, axes):
        figure.delaxes(axes)
        yield figure


def save(figure: Figure, folder: Path) -> tuple[Path, Path]:
    """Write `figure.png` and `figure.svg`; call it inside `canvas`."""
    paths = folder / PNG, folder / SVG
    for path in paths:
        buffer = io.BytesIO()
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(buffer, format=path.suffix[1:], dpi=_DPI, facecolor="white", metadata=metadata)
        write_atomic(path, buffer.getvalue(), mode=0o644)
    return paths
