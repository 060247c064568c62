"""What the consortium runs: rounds, the SMILE fit, code maps and releases."""
