"""The agreement: what every party computes and exchanges in the same way."""
