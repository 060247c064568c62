"""What a hospital runs: from events to a gated, approved and sealed release, and back to a code map."""
