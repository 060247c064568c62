"""Secure sums at the coordinator: it carries signed messages and masked vectors, and learns the total only."""

from coordinator.sums.asking import Asked, asked_for, margins_of, read_codes
from coordinator.sums.drive import run_sum
from coordinator.sums.opening import open_sum
from coordinator.sums.record import SumRecord, SumStore

__all__ = ["Asked", "SumRecord", "SumStore", "asked_for", "margins_of", "open_sum", "read_codes", "run_sum"]
