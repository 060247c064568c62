"""Research tools: simulated sources with known truth, methods compared on them, and a release scored against truth."""
