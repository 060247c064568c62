"""Writers of the formats that analysts' tools read."""
