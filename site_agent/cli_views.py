"""What `preview` and `approve` say of the views in a release: what each is made of, and what a vector gives away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protocol.console import out, table
from protocol.messages import ReleaseManifest
from protocol.release import COOCCURRENCE, TEXT

if TYPE_CHECKING:
    from site_agent.prepare import Prepared

_SHOWN = 20
_MADE_OF = {
    COOCCURRENCE: "counts that passed the floors",
    "ontology": "the same counts, and the study's ontology: a second function of them",
    TEXT: "names of codes: a vector tells nearly as much as its name",
}
_OWN = "the same counts, by the Python file that site.toml names"


def show_views(manifest: ReleaseManifest) -> None:
    """A line for each view of a release, and what the vectors of names are."""
    shapes = {
        a.name.split("/")[1]: (a.shape[0], a.shape[1]) for a in manifest.arrays if a.name.endswith("/matrix")
    }
    rows: list[list[Any]] = [
        [name, codes, dims, _MADE_OF.get(name, _OWN)] for name, (codes, dims) in shapes.items()
    ]
    table("Views", ["name", "codes", "dimensions", "made of"], rows)
    if TEXT in shapes:
        out.print(
            f"[yellow]{shapes[TEXT][0]:,} names leave as vectors. The encoder is public: whoever guesses a name can tell from "
            "its vector that the guess is right. Approve it only if these names could leave as they are.[/]"
        )


def show_made(prepared: Prepared, *, all_names: bool) -> None:
    """The names behind the text view, and views that are left out."""
    if prepared.encoded:
        named = [f"{code} ({text})" for code, text in sorted(prepared.encoded.items())]
        shown = named if all_names else named[:_SHOWN]
        more = "" if len(shown) == len(named) else f"; the first {_SHOWN}, all with --names"
        out.print(f"Names that leave as vectors: {len(named):,}{more}")
        out.print("  " + ", ".join(shown), markup=False)
    for note in prepared.notes:
        out.print(f"[yellow]{note}[/]")
