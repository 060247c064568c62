"""People's decisions on mappings: signed records that outlive every fit."""

from coordinator.review.queue import Progress, Task
from coordinator.review.record import Decision, Verdict
from coordinator.review.reviews import Reviews
from coordinator.review.standing import Standing

__all__ = ["Decision", "Progress", "Reviews", "Standing", "Task", "Verdict"]
