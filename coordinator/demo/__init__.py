"""A generated consortium on one machine."""
