"""A published release scored against truth: what is read, the scores with their intervals, and their figure."""
