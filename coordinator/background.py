"""What the coordinator adds to the releases: knowledge, and titles that an encoder reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.config import CoordinatorConfig
from coordinator.estimate import Supplement
from coordinator.knowledge.build import Build, load_build
from coordinator.text_view import named_codes, read_titles
from protocol.canonical import file_digest
from protocol.errors import UsageError
from protocol.release import VerifiedRelease
from protocol.study import StudySpec
from protocol.text import TextEncoder, open_encoder


@dataclass(frozen=True, eq=False)
class Background:
    """Read from the coordinator's files, once for all of a round's fits.

    Attributes:
        knowledge: pairs of codes.
        knowledge_digest: of their file, in hex.
        encoder: the study's; None if it has none.
        titles: CURIE -> title.
    """

    knowledge: Build | None = None
    knowledge_digest: str = ""
    encoder: TextEncoder | None = None
    titles: Mapping[str, str] = field(default_factory=dict)

    def supplement(self, releases: Sequence[VerifiedRelease], study: StudySpec) -> Supplement:
        """What the fit of these releases is given.

        Raises:
            FitError: a released text view does not have the study's dimensions.
        """
        if self.encoder is None:
            return Supplement(self.knowledge)
        return Supplement(
            self.knowledge, named_codes(releases, study, encoder=self.encoder, titles=self.titles)
        )

    def said(self, supplement: Supplement) -> tuple[str, ...]:
        """What was added, a sentence each."""
        found = []
        if self.knowledge is not None:
            found.append(
                f"{self.knowledge.pairs.num_rows:,} pairs of codes from knowledge files, digest {self.knowledge_digest[:12]}"
            )
        if self.encoder is not None and supplement.names is not None:
            found.append(f"Names of {len(set(supplement.names.codes)):,} codes, read by {self.encoder.name}")
        return tuple(found)


NOTHING = Background()


def read_background(folder: Path, config: CoordinatorConfig, study: StudySpec) -> Background:
    """What `coordinator.toml` and the study name.

    Args:
        folder: of the coordinator; the paths of `config` begin there.
        config: names knowledge, titles and model.
        study: names the encoder.

    Raises:
        UsageError: titles without an encoder that could read them, no folder of knowledge, or no model.
        DataError: files that cannot be read.
        StudyError: another encoder than the study's is installed.
    """
    knowledge, checksum = None, ""
    if config.knowledge:
        knowledge = load_build(folder / config.knowledge)
        checksum = file_digest(folder / config.knowledge / "pairs.parquet")
    if study.text.encoder == "none":
        if config.titles:
            raise UsageError(
                "coordinator.toml names titles, and the study has no text encoder to read them",
                do="Set encoder and digest under [text] in the study at all parties, or take titles out of coordinator.toml",
            )
        return Background(knowledge, checksum)
    titles = read_titles(folder / config.titles, study) if config.titles else {}
    model = folder / config.text_model if config.text_model else None
    return Background(knowledge, checksum, open_encoder(study.text, model), titles)
