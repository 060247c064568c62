"""What the coordinator adds to the releases: knowledge, and titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.config import CoordinatorConfig
from coordinator.estimate import Supplement
from coordinator.knowledge.build import Build, load_build
from coordinator.settled import NOTHING_SETTLED, Settled
from coordinator.text_view import named_codes, read_titles
from protocol.canonical import digest, file_digest
from protocol.messages import BackgroundSource
from protocol.release import VerifiedRelease
from protocol.study import StudySpec
from protocol.text import TextEncoder, open_encoder


@dataclass(frozen=True, eq=False)
class Background:
    """Read from the coordinator's files, once for all of a round's fits.

    Attributes:
        knowledge: pairs of codes.
        knowledge_digest: of their file, in hex.
        encoder: the study's; None if it has none, and names are for people only.
        titles: CURIE -> title, which the encoder reads and the release shows.
    """

    knowledge: Build | None = None
    knowledge_digest: str = ""
    encoder: TextEncoder | None = None
    titles: Mapping[str, str] = field(default_factory=dict)
    settled: Settled = NOTHING_SETTLED

    def supplement(self, releases: Sequence[VerifiedRelease], study: StudySpec) -> Supplement:
        """What the fit of these releases is given.

        Raises:
            FitError: a released text view does not have the study's dimensions.
        """
        if self.encoder is None:
            return Supplement(self.knowledge, settled=self.settled)
        names = named_codes(releases, study, encoder=self.encoder, titles=self.titles)
        return Supplement(self.knowledge, names, self.settled)

    def used(self, supplement: Supplement) -> tuple[BackgroundSource, ...]:
        """What was added, each with a sentence and the digest of its content."""
        found = []
        if self.knowledge is not None:
            pairs = f"{self.knowledge.pairs.num_rows:,} pairs of codes from knowledge files"
            found.append(
                BackgroundSource(
                    kind="knowledge",
                    detail=f"{pairs}, digest {self.knowledge_digest[:12]}",
                    content=self.knowledge_digest,
                )
            )
        if self.encoder is not None and supplement.names is not None:
            names = f"Names of {len(set(supplement.names.codes)):,} codes, read by {self.encoder.name}"
            found.append(BackgroundSource(kind="encoder", detail=names, content=self.encoder.digest))
        if self.titles:
            titles = f"{len(self.titles):,} titles of the coordinator's own"
            found.append(BackgroundSource(kind="titles", detail=titles, content=digest(dict(self.titles))))
        if self.settled:
            found.append(
                BackgroundSource(kind="reviews", detail=self.settled.said, content=self.settled.digest)
            )
        return tuple(found)


NOTHING = Background()


def read_background(
    folder: Path, config: CoordinatorConfig, study: StudySpec, settled: Settled = NOTHING_SETTLED
) -> Background:
    """What `coordinator.toml` and the study name.

    Args:
        folder: of the coordinator; the paths of `config` begin there.
        config: names knowledge, titles and model.
        study: names the encoder.
        settled: what people settled; nothing where the configuration says that fits do without.

    Raises:
        UsageError: no folder of knowledge, or no model.
        DataError: files that cannot be read.
        StudyError: another encoder than the study's is installed.
    """
    knowledge, checksum = None, ""
    if config.knowledge:
        knowledge = load_build(folder / config.knowledge)
        files = ("pairs.parquet", "links.parquet")
        checksum = digest({name: file_digest(folder / config.knowledge / name) for name in files})
    titles = read_titles(folder / config.titles, study) if config.titles else {}
    if study.text.encoder == "none":
        return Background(knowledge, checksum, None, titles, settled)
    model = folder / config.text_model if config.text_model else None
    return Background(knowledge, checksum, open_encoder(study.text, model), titles, settled)
