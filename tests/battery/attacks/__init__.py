"""Attacks on releases, as pure functions of what an attacker holds; the tests beside them run them on released bytes."""
