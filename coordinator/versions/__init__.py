"""Published versions beside each other: what changed and why, and what each says of itself."""

from __future__ import annotations

from typing import Final

CARD: Final = "model-card.md"
"""A version's model card, a file of its folder."""
DATACITE: Final = "datacite.json"
"""Its metadata for a DOI registry."""
