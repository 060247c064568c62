"""A published map in a notebook.

For example::

    from coordinator.client import load_release

    release = load_release("https://hub.example", trust="invitation.json")
    release.translate("SOUTH:D-0042").target
    release.reverse("ICD10CM:E11.9")
    release.neighbours("ICD10CM:E11.9", k=5)
    release.to_pandas()

A release is verified before anything of it is read, and answers from this machine: no code that you ask for is sent anywhere.
Importing this loads neither the model's libraries nor the transport.
"""

from coordinator.client.loading import UnverifiedWarning, load_release
from coordinator.client.release import MapRelease, Neighbour, Translation

__all__ = ["MapRelease", "Neighbour", "Translation", "UnverifiedWarning", "load_release"]
