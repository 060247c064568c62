"""Event sources: each yields the events of one data set."""
