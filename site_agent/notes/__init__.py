"""Clinical notes of a site's own patients: read, freed of identifiers as far as rules go, cleaned, and turned into vectors.

Nothing of it leaves the site, and no text of a note is kept.
"""

from site_agent.notes.identifiers import known_words, remove_identifiers
from site_agent.notes.reading import open_notes
from site_agent.notes.vectors import NoteCounts, NoteVectors, note_vectors

__all__ = ["NoteCounts", "NoteVectors", "known_words", "note_vectors", "open_notes", "remove_identifiers"]
