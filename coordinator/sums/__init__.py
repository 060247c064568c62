"""Secure sums at the coordinator: it carries signed messages and masked vectors, and learns the total only."""

from coordinator.sums.drive import run_sum
from coordinator.sums.opening import Asked, margins_of, open_sum, read_codes
from coordinator.sums.record import SumRecord, SumStore

__all__ = ["Asked", "SumRecord", "SumStore", "margins_of", "open_sum", "read_codes", "run_sum"]
