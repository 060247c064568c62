"""KEEP: an embedding of codes from an ontology's is-a graph, refined by how the codes occur together.

Source: Elhussein et al. 2025, KEEP: integrating medical ontologies with clinical data for robust code embeddings.
"""

from protocol.keep.files import read_ontology
from protocol.keep.glove import GloveFit, fit_glove
from protocol.keep.history import history_events
from protocol.keep.ontology import IsA, make_is_a
from protocol.keep.view import NAME, keep_vectors
from protocol.keep.walks import walk_embedding, walk_ppmi

__all__ = [
    "NAME",
    "GloveFit",
    "IsA",
    "fit_glove",
    "history_events",
    "keep_vectors",
    "make_is_a",
    "read_ontology",
    "walk_embedding",
    "walk_ppmi",
]
