"""A small encoder of code sequences: frozen code vectors, one layer, four heads. Needs torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from site_agent.cohort.histories import LONGEST, Histories

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
HEADS = 4
_WIDTH = 64


@dataclass(frozen=True)
class Fitting:
    """How an encoder is fitted.

    Attributes:
        epochs: at most.
        patience: epochs without a smaller loss on the patients kept back, after which it stops.
        batch: patients a step.
        rate: learning rate.
        seed: of weights and order.
    """

    epochs: int = 40
    patience: int = 4
    batch: int = 128
    rate: float = 1e-3
    seed: int = 0


class Encoder(torch.nn.Module):
    """(n, t) rows of codes, -1 for none -> (n,) log odds."""

    def __init__(self, vectors: npt.NDArray[np.float32]) -> None:
        super().__init__()
        self.table: torch.Tensor
        self.register_buffer("table", torch.as_tensor(np.asarray(vectors, dtype=np.float32)))
        self.enter = torch.nn.Linear(vectors.shape[1], _WIDTH)
        self.place = torch.nn.Parameter(torch.zeros(LONGEST, _WIDTH))
        self.layer = torch.nn.TransformerEncoderLayer(
            _WIDTH, HEADS, 2 * _WIDTH, dropout=0.1, batch_first=True
        )
        self.leave = torch.nn.Linear(_WIDTH, 1)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Log odds from the mean of the layer's outputs."""
        none = codes < 0
        x = self.enter(self.table[codes.clamp(min=0)]) + self.place[: codes.shape[1]]
        out = self.layer(x, src_key_padding_mask=none).masked_fill(none[..., None], 0.0)
        odds: torch.Tensor = self.leave(out.sum(dim=1) / (~none).sum(dim=1, keepdim=True))[:, 0]
        return odds


def encoder_scores(
    found: Histories, vectors: npt.NDArray[np.float32], learn: Rows, stop: Rows, ask: Rows, fitting: Fitting
) -> Floats:
    """(len(ask),) log odds of the outcome.

    Args:
        found: patients.
        vectors: (codes, d) of one view; they stay as they are.
        learn: patients to learn from.
        stop: patients whose loss says when to stop.
        ask: patients to be scored.
        fitting: how.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fitting.seed)
        model = Encoder(vectors)
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=fitting.rate)
        best, state, waited = np.inf, model.state_dict(), 0
        rng = np.random.default_rng(fitting.seed)
        for _ in range(fitting.epochs):
            model.train()
            order = rng.permutation(learn)
            for low in range(0, len(order), fitting.batch):
                rows = order[low : low + fitting.batch]
                optimiser.zero_grad()
                _loss(model(_padded(found, rows)), found, rows).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            loss = float(_loss(_odds(model, found, stop), found, stop))
            if loss < best:
                best, waited = loss, 0
                state = {name: value.clone() for name, value in model.state_dict().items()}
            else:
                waited += 1
                if waited >= fitting.patience:
                    break
        model.load_state_dict(state)
        return np.asarray(_odds(model, found, ask).numpy(), dtype=np.float64)


def _loss(odds: torch.Tensor, found: Histories, rows: Rows) -> torch.Tensor:
    wanted = torch.as_tensor(found.outcome[rows], dtype=torch.float32)
    return torch.nn.functional.binary_cross_entropy_with_logits(odds, wanted)


def _odds(model: Encoder, found: Histories, rows: Rows) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(_padded(found, rows[i : i + 1024])) for i in range(0, len(rows), 1024)])


def _padded(found: Histories, rows: Rows) -> torch.Tensor:
    sizes = found.start[rows + 1] - found.start[rows]
    codes = np.full((len(rows), int(sizes.max())), -1, dtype=np.int64)
    for i, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        codes[i, :size] = found.code[found.start[row] : found.start[row] + size]
    return torch.as_tensor(codes)
