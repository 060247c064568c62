"""Simulated sources with known truth, and methods compared on them."""
