"""Codes and notes of a patient in one vector, learnt from a stated label: gated, concatenated, or either alone. Needs torch.

With s (n, p) the code vectors and t (n, q) the note vectors, their means taken off and brought to unit mean square:

    gated         g = sigmoid(W [s; t] + b),   v = g * (A s) + (1 - g) * (B t)
    concatenated  v = C [s; t]
    codes, text   v = A s,  v = B t

and of each the same head on v / |v|: one hidden layer. A row of s or t that is zero stays zero.
Source: the gate is the GMU of Arevalo et al. 2017, with linear projections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
Kind = Literal["gated", "concatenated", "text", "codes"]

KINDS: Final[tuple[Kind, ...]] = ("gated", "concatenated", "text", "codes")
HARD: Final = 10
"""A labelled patient's hard negatives: so many patients without the label, nearest by codes."""


@dataclass(frozen=True)
class Fitting:
    """How a representation is learnt.

    Attributes:
        width: columns of v.
        hidden: of the head.
        epochs: at most.
        patience: epochs without a smaller loss on the patients kept back, after which it stops.
        batch: patients a step.
        rate: learning rate.
        decay: of the weights (AdamW).
        dropout: share of the head's inputs and of s and t that are zeroed while it learns.
        contrast: weight of the triplets of `_contrast`; 0 for none.
        temperature: of their cosines.
        seed: of weights, order and triplets.
    """

    width: int = 64
    hidden: int = 32
    epochs: int = 60
    patience: int = 6
    batch: int = 128
    rate: float = 2e-3
    decay: float = 1e-2
    dropout: float = 0.5
    contrast: float = 0.0
    temperature: float = 0.2
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Fused:
    """What was learnt, applied to all patients.

    Attributes:
        vectors: (n, width) unit rows; zero for patients of whom nothing is known.
        odds: (n,) log odds of the label.
        gate: (n,) mean share of the codes; NaN where there is no gate.
        epochs: that were run.
    """

    vectors: Vectors
    odds: Floats
    gate: Floats
    epochs: int


class Fusion(torch.nn.Module):
    """(n, p) codes and (n, q) notes -> unit vectors, log odds, and the mean gate."""

    def __init__(self, kind: Kind, codes: int, notes: int, fitting: Fitting) -> None:
        super().__init__()
        self.kind, width = kind, fitting.width
        if kind in {"gated", "codes"}:
            self.codes = torch.nn.Linear(codes, width, bias=False)
        if kind in {"gated", "text"}:
            self.notes = torch.nn.Linear(notes, width, bias=False)
        if kind == "gated":
            self.gate = torch.nn.Linear(codes + notes, width)
        if kind == "concatenated":
            self.both = torch.nn.Linear(codes + notes, width, bias=False)
        self.drop = torch.nn.Dropout(fitting.dropout)
        self.head = torch.nn.Sequential(
            torch.nn.Linear(width, fitting.hidden), torch.nn.ReLU(), torch.nn.Linear(fitting.hidden, 1)
        )

    def forward(self, s: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(n, width) unit rows, (n,) log odds, (n,) mean of g over the columns."""
        share = torch.full((len(s),), float("nan"))
        s, t = self.drop(s), self.drop(t)
        if self.kind == "codes":
            v = self.codes(s)
        elif self.kind == "text":
            v = self.notes(t)
        elif self.kind == "concatenated":
            v = self.both(torch.cat([s, t], dim=1))
        else:
            g = torch.sigmoid(self.gate(torch.cat([s, t], dim=1)))
            v = g * self.codes(s) + (1 - g) * self.notes(t)
            share = g.mean(dim=1)
        unit = functional.normalize(v, dim=1, eps=1e-12)
        return unit, self.head(unit)[:, 0], share


def standardised(rows: Vectors, learn: Rows) -> Vectors:
    """The mean of the rows learnt from taken off, and their mean square length brought to the number of columns.

    Rows that are zero stay zero, and have no part in the mean.
    """
    held = np.asarray(rows.any(axis=1))
    used = rows[learn][held[learn]]
    if not len(used):
        return np.zeros_like(rows)
    mean = used.mean(axis=0)
    scale = float(np.sqrt(np.mean((used - mean) ** 2))) or 1.0
    return np.asarray(np.where(held[:, None], (rows - mean) / scale, 0.0), dtype=np.float32)


def learn_fusion(
    kind: Kind, codes: Vectors, notes: Vectors, label: Flags, learn: Rows, stop: Rows, fitting: Fitting
) -> Fused:
    """Learn one representation and apply it to everybody.

    Both classes weigh alike in the loss, however rare the label is. After `fitting.patience` epochs without a smaller loss
    on `stop`, the weights of the best epoch are taken.

    Args:
        kind: which.
        codes: (n, p) code vectors without the label's own codes.
        notes: (n, q) note vectors.
        label: (n,) read at `learn` and `stop` alone.
        learn: patients to learn from.
        stop: patients whose loss says when to stop.
        fitting: how.
    """
    s, t = (torch.as_tensor(standardised(rows, learn)) for rows in (codes, notes))
    label = np.asarray(label, dtype=bool)
    wanted = torch.as_tensor(label.astype(np.float32))
    positive = float(label[learn].mean())
    weight = torch.tensor((1 - positive) / max(positive, 1e-9))
    near = hard_negatives(codes, label, learn) if fitting.contrast else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fitting.seed)
        model = Fusion(kind, codes.shape[1], notes.shape[1], fitting)
        optimiser = torch.optim.AdamW(model.parameters(), lr=fitting.rate, weight_decay=fitting.decay)
        rng = np.random.default_rng(fitting.seed)
        positives = learn[label[learn]]

        def loss(rows: Rows, seed: np.random.Generator) -> torch.Tensor:
            _, odds, _ = model(s[rows], t[rows])
            value = functional.binary_cross_entropy_with_logits(odds, wanted[rows], pos_weight=weight)
            if near is not None:
                value = value + fitting.contrast * _contrast(
                    lambda r: model(s[r], t[r])[0], positives, near, seed, fitting
                )
            return value

        best, state, waited, run = np.inf, {}, 0, 0
        while run < fitting.epochs and waited < fitting.patience:
            run += 1
            model.train()
            order = rng.permutation(learn)
            for low in range(0, len(order), fitting.batch):
                optimiser.zero_grad()
                loss(order[low : low + fitting.batch], rng).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            model.eval()
            with torch.no_grad():
                found = float(loss(stop, np.random.default_rng(fitting.seed)))
            if found < best:
                best, waited = found, 0
                state = {name: value.clone() for name, value in model.state_dict().items()}
            else:
                waited += 1
        model.load_state_dict(state)
        model.eval()
        with torch.no_grad():
            parts = [model(s[i : i + 4096], t[i : i + 4096]) for i in range(0, len(s), 4096)]
    vectors, odds, gate = (torch.cat(p).numpy() for p in zip(*parts, strict=True))
    return Fused(vectors, odds.astype(np.float64), gate.astype(np.float64), run)


def hard_negatives(codes: Vectors, label: Flags, rows: Rows, k: int = HARD) -> dict[int, Rows]:
    """For each labelled patient of `rows` the k of `rows` without the label whose codes have the largest cosine."""
    with_, without = rows[label[rows]], rows[~label[rows]]
    found: dict[int, Rows] = {}
    others = codes[without]
    for low in range(0, len(with_), 1024):
        part = with_[low : low + 1024]
        cosine = codes[part] @ others.T
        few = min(k, len(without))
        top = np.argpartition(-cosine, few - 1, axis=1)[:, :few]
        found.update(zip(part.tolist(), without[top], strict=True))
    return found


def _contrast(
    vector: Callable[[Rows], torch.Tensor],
    positives: Rows,
    near: dict[int, Rows],
    rng: np.random.Generator,
    fitting: Fitting,
) -> torch.Tensor:
    """Mean of log(1 + exp((cos(a, n) - cos(a, p)) / temperature)); a and p have the label, n is a hard negative of a."""
    anchors = rng.choice(positives, min(fitting.batch, len(positives)), replace=False)
    others = rng.choice(positives, len(anchors))
    hard = np.array([rng.choice(near[int(a)]) for a in anchors])
    a, p, n = (vector(rows) for rows in (anchors, others, hard))
    return functional.softplus(((a * n).sum(dim=1) - (a * p).sum(dim=1)) / fitting.temperature).mean()
