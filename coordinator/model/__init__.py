"""Pure numerics: SMILE and its rivals."""

from coordinator.model.factor import Source
from coordinator.model.fit import SmileFit
from coordinator.model.relations import Relations
from coordinator.model.smile import fit_smile

__all__ = ["Relations", "SmileFit", "Source", "fit_smile"]
