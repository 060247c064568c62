"""Pure numerics: SMILE and its rivals."""

from coordinator.model.factor import Source
from coordinator.model.fit import SmileFit
from coordinator.model.relations import Relations
from coordinator.model.smile import fit_smile
from coordinator.model.terms import Term, check_term

__all__ = ["Relations", "SmileFit", "Source", "Term", "check_term", "fit_smile"]
