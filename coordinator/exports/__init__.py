"""Formats that analysts' tools read: `formats` names them, `writing` writes them."""
