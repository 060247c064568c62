"""The views of a release beside co-occurrence: what they need is opened and checked before any event is read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType

from protocol.canonical import digest
from protocol.errors import StudyError, UsageError
from protocol.keep import NAME as ONTOLOGY
from protocol.keep.files import FILE, read_ontology
from protocol.release import TEXT, SourceView
from protocol.sections import ExtraView
from protocol.study import StudySpec
from protocol.text import TextEncoder, open_encoder
from site_agent.config import Home
from site_agent.gate import KeptCounts, allowed_columns
from site_agent.names import presentable_names
from site_agent.sources import Description
from site_agent.views.extra import MakeView, extra_view
from site_agent.views.ontology import ontology_view
from site_agent.views.text import text_view

Links = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ViewTools:
    """What the views that study and site both want are made with.

    Attributes:
        encoder: of names; None without a text view.
        links: (code, parent) of the ontology; None without an ontology view.
        makers: name of a view of the study's own -> its function.
    """

    encoder: TextEncoder | None = None
    links: Links | None = None
    makers: Mapping[str, MakeView] = field(default_factory=dict)


@dataclass(frozen=True)
class MoreViews:
    """Views beside co-occurrence, and what a person should know of them.

    Attributes:
        views: in the order of the study.
        encoded: code -> name, of the text view: each vector tells nearly as much as its name.
        undecided: names that wait for a person in `names-to-review.csv`.
        notes: why a view is left out, in sentences.
    """

    views: tuple[SourceView, ...]
    encoded: Mapping[str, str]
    undecided: int
    notes: tuple[str, ...]


def open_views(home: Home) -> ViewTools:
    """Open the text encoder, the ontology and the files of views, as far as study and site both want them.

    Raises:
        StudyError: one of them is not the one that the study names, or `[views]` names one that the study does not have.
        UsageError: one of them is missing or cannot be used.
        DataError: the ontology cannot be used.
    """
    study, config = home.study, home.config
    encoder = links = None
    if study.text.sites and config.policy.text:
        folder = config.data.text_model
        encoder = open_encoder(study.text, home.path(folder) if folder else None)
    if study.ontology.digest and config.policy.ontology:
        links = read_ontology(home.folder / FILE, digest=study.ontology.digest)
    extra = {view.name: view for view in study.views}
    for name in config.views:
        if name not in extra:
            raise StudyError(
                f"site.toml names the view {name}, which study {study.id} does not have",
                why=f"it has {', '.join(extra) or 'none of its own'}",
                do="Correct the name under [views], or take the line out",
            )
    makers = {
        name: load_maker(view, home.path(config.views[name]))
        for name, view in extra.items()
        if name in config.views
    }
    return ViewTools(encoder, links, makers)


def load_maker(view: ExtraView, path: Path) -> MakeView:
    """The function `view` of a Python file, run from exactly the bytes whose digest the study names.

    Raises:
        UsageError: there is no such file, it cannot be run, or has no such function.
        StudyError: it is another file than the study's.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"The file {path} of the view {view.name} cannot be read",
            why=str(error),
            do="Correct the path under [views] in site.toml",
        ) from None
    if digest(data) != view.digest:
        raise StudyError(
            f"The file {path} is not the view {view.name} of the study",
            why=f"its SHA-256 begins {digest(data)[:12]}, the study's {view.digest[:12]}: nothing of it was run",
            do="Get the file that the coordinator made the study with, and read it before you let it run here",
        )
    module = ModuleType(f"smile_view_{view.name.replace('-', '_')}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look their module up
    try:
        # No import: that could take a compiled file, or another one of this name.
        exec(compile(data, str(path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"The file {path} of the view {view.name} cannot be run",
            why=f"{type(error).__name__}: {str(error)[:300]}",
            do="Install what it imports, or take its line out of [views] in site.toml",
        ) from error
    make: MakeView | None = module.__dict__.get("view")
    if not callable(make):
        raise UsageError(
            f"The file {path} of the view {view.name} has no function view",
            do="See docs/how-to/add-a-view.md",
        )
    return make


def more_views(
    home: Home,
    tools: ViewTools,
    kept: KeptCounts,
    codes: tuple[str, ...],
    *,
    anchors: Mapping[str, str],
    descriptions: Mapping[str, Description],
) -> MoreViews:
    """All views of a release but that of co-occurrence.

    Args:
        home: the site.
        tools: from `open_views`.
        kept: counts after suppression.
        codes: the site's whole code list, CURIEs.
        anchors: local CURIE -> standard CURIE.
        descriptions: CURIE -> text.

    Raises:
        DataError: the ontology is no hierarchy, or a view's own function fails.
    """
    study, policy = home.study, home.policy()
    made: dict[str, SourceView | None] = {}

    def columns(name: str) -> Callable[[int], int]:
        return partial(allowed_columns, name, policy=policy, study=study)

    if tools.links is not None:
        made[ONTOLOGY] = ontology_view(
            kept,
            codes,
            tools.links,
            study.ontology,
            columns=columns(ONTOLOGY),
            anchors=anchors,
            seed=study.embedding.seed,
        )
    encoded: Mapping[str, str] = MappingProxyType({})
    undecided = 0
    if tools.encoder is not None:
        released = [codes[r] for r in kept.rows]
        # A vector tells nearly as much as its text: the same rule holds for both.
        names = presentable_names(home, released, descriptions)
        encoded, undecided = names.released, names.undecided
        made[TEXT] = text_view(released, encoded, encoder=tools.encoder, study=study)
    for name, make in tools.makers.items():
        made[name] = extra_view(name, make, kept, codes, columns=columns(name), seed=study.embedding.seed)
    views = tuple(view for view in made.values() if view is not None)
    notes = tuple(_left_out(name, study) for name, view in made.items() if view is None)
    return MoreViews(views, encoded, undecided, notes)


def _left_out(name: str, study: StudySpec) -> str:
    if name == TEXT:
        return "There is no text view: no released code has a name that may be encoded"
    least = 2 * study.embedding.codes_per_dim
    return f"The view {name} is left out: it says something of fewer than {least} released codes, too few for two dimensions"
