"""A federation of real processes on one machine, faults, and what must hold after each."""
