"""How numbers are written: exactly for the terminal, coarsely for a page that may be shown around."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from site_agent.gate import round_to


@dataclass(frozen=True)
class Numbers:
    """Writes counts of patients, codes and rows.

    Attributes:
        floor: counts below it are not told; 1 tells all.
        step: counts are rounded to this, so that no difference of two tells a third.
    """

    floor: int = 1
    step: int = 1

    @property
    def exact(self) -> bool:
        """Whether single patients' values may be told too."""
        return self.floor <= 1

    def hidden(self, count: int) -> bool:
        """Whether a count is too small to be told."""
        return 0 < count < self.floor

    def tells(self, quantile: float, of: int) -> bool:
        """Whether enough values lie on either side of a quantile for it to be nobody's own."""
        return self.exact or min(quantile, 1 - quantile) * of >= self.floor

    def rounded(self, count: int) -> int:
        """A count that may be told."""
        return int(round_to(np.array([count]), self.step)[0])

    def count(self, count: int) -> str:
        """1,234, or <11."""
        return f"<{self.floor}" if self.hidden(count) else f"{self.rounded(count):,}"

    def part(self, count: int, whole: int) -> str:
        """1,234 (5.6 %), or <11."""
        return self.count(count) if self.hidden(count) else f"{self.count(count)} ({percent(count, whole)})"


EXACT = Numbers()


def percent(part: int, whole: int) -> str:
    """A share with one decimal; neither nothing nor all is said of what is not."""
    if not whole:
        return "0 %"
    share = 100 * part / whole
    if part and share < 0.1:
        return "<0.1 %"
    if part < whole and share > 99.9:
        return ">99.9 %"
    return f"{share:.1f} %" if 0 < part < whole else f"{share:.0f} %"
