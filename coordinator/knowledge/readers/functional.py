"""Relations that say what one thing does to another, and the kind of relatedness that each becomes.

Both directions of a relation become one kind: relatedness, u_i' W u_j with W = W', has no direction.
"""

from __future__ import annotations

from typing import Final

UMLS_KINDS: Final = {
    "may_treat": "treats",
    "may_be_treated_by": "treats",
    "treats": "treats",
    "treated_by": "treats",
    "may_prevent": "prevents",
    "may_be_prevented_by": "prevents",
    "may_diagnose": "diagnoses",
    "may_be_diagnosed_by": "diagnoses",
    "contraindicated_with_disease": "contraindicated",
    "has_contraindicated_drug": "contraindicated",
    "cause_of": "causes",
    "due_to": "causes",
    "induces": "causes",
    "induced_by": "causes",
    "causative_agent_of": "causes",
    "has_causative_agent": "causes",
    "manifestation_of": "manifestation",
    "has_manifestation": "manifestation",
    "associated_finding_of": "finding",
    "has_associated_finding": "finding",
    "measures": "measures",
    "measured_by": "measures",
    "ingredient_of": "ingredient",
    "has_ingredient": "ingredient",
    "associated_with": "associated",
}
"""RELA of MRREL -> kind."""

OMOP_KINDS: Final = {
    "May treat": "treats",
    "May be treated by": "treats",
    "Has FDA-appr ind": "treats",
    "Is FDA-appr ind of": "treats",
    "Has off-label ind": "treats",
    "Is off-label ind of": "treats",
    "May prevent": "prevents",
    "May be prevented by": "prevents",
    "May diagnose": "diagnoses",
    "Diagnosed through": "diagnoses",
    "Has CI": "contraindicated",
    "Is CI of": "contraindicated",
    "CI to": "contraindicated",
    "CI by": "contraindicated",
    "Causes": "causes",
    "Caused by": "causes",
    "Induces": "causes",
    "Induced by": "causes",
    "Has due to": "causes",
    "Due to of": "causes",
    "Has causative agent": "causes",
    "Causative agent of": "causes",
    "Has manifestation": "manifestation",
    "Manifestation of": "manifestation",
    "Has asso finding": "finding",
    "Asso finding of": "finding",
    "Asso with finding": "associated",
    "Finding asso with": "associated",
    "RxNorm has ing": "ingredient",
    "RxNorm ing of": "ingredient",
}
"""relationship_id of CONCEPT_RELATIONSHIP -> kind."""
