"""Pure numerics: SMILE and its rivals."""

from coordinator.model.factor import Source
from coordinator.model.relations import Relations
from coordinator.model.smile import SmileFit, fit_smile

__all__ = ["Relations", "SmileFit", "Source", "fit_smile"]
