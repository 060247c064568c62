"""Sparse matrices whose places stay fixed while their values change, as torch tensors on CPU or CUDA."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

with warnings.catch_warnings():
    # torch says once a process that its CSR tensors are in beta and unchecked; here, where nobody is listening.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))


@dataclass(frozen=True, eq=False)
class Pattern:
    """The places of a sparse (n, m) matrix, by rows and by columns.

    Args:
        shape: (n, m).
        start: (n + 1,) where each row's entries start.
        row: (nnz,) row of each entry, ascending.
        column: (nnz,) its column, ascending within a row.
        order: (nnz,) the entries by column, then by row.
        start_by_column: (m + 1,) where each column's entries start in that order.
    """

    shape: tuple[int, int]
    start: Tensor
    row: Tensor
    column: Tensor
    order: Tensor
    start_by_column: Tensor

    @classmethod
    def at(cls, row: Tensor, column: Tensor, shape: tuple[int, int]) -> Pattern:
        """The pattern of entries given by row, and by column within a row, both ascending."""
        order = torch.argsort(column, stable=True)
        return cls(shape, _starts(row, shape[0]), row, column, order, _starts(column, shape[1]))

    def matrix(self, values: Tensor) -> Tensor:
        """(n, m) sparse CSR tensor."""
        return torch.sparse_csr_tensor(self.start, self.column, values, self.shape)

    def transposed(self, values: Tensor) -> Tensor:
        """(m, n) sparse CSR tensor."""
        return torch.sparse_csr_tensor(
            self.start_by_column, self.row[self.order], values[self.order], (self.shape[1], self.shape[0])
        )

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """Inner products left_i'right_j of (n, d) and (m, d) rows at each entry (i, j)."""
        empty = self.matrix(torch.zeros(len(self.row), dtype=left.dtype, device=left.device))
        product: Tensor = torch.sparse.sampled_addmm(empty, left, right.T, beta=0.0)
        return product.values()

    def row_sums(self, values: Tensor) -> Tensor:
        """(n,) sums of the entries of each row."""
        return torch.segment_reduce(values, "sum", offsets=self.start, initial=0.0)

    def column_sums(self, values: Tensor) -> Tensor:
        """(m,) sums of the entries of each column."""
        return torch.segment_reduce(values[self.order], "sum", offsets=self.start_by_column, initial=0.0)

    def softmax(self, score: Tensor) -> Tensor:
        """Exponentials of the entries, each row divided by its sum."""
        highest = torch.segment_reduce(score, "max", offsets=self.start)
        weight = torch.exp(score - highest[self.row])
        return weight / self.row_sums(weight)[self.row]

    def to_scipy(self, values: Tensor) -> sp.csr_array:
        """The matrix on the host, a copy."""
        parts = (values, self.column, self.start)
        # On the CPU the arrays would share the tensors' memory.
        data, column, start = (part.cpu().numpy().copy() for part in parts)
        return sp.csr_array((data, column, start), shape=self.shape)


def from_scipy(matrix: sp.csr_array, device: torch.device) -> Tensor:
    """A sparse CSR tensor of float64."""
    parts = (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data.astype(np.float64))
    start, column, data = (torch.from_numpy(part).to(device) for part in parts)
    return torch.sparse_csr_tensor(start, column, data, matrix.shape)


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """The product of two sparse CSR tensors.

    On the CPU scipy forms it: torch's own product there keeps the result's memory for good, 28 MB a call at 7,448 codes
    and 3 million pairs (torch 2.13).
    """
    if left.device.type != "cpu":
        return left @ right
    on_host = [
        sp.csr_array(
            (m.values().numpy(), m.col_indices().numpy(), m.crow_indices().numpy()),
            shape=(m.shape[0], m.shape[1]),
        )
        for m in (left, right)
    ]
    return from_scipy(sp.csr_array(on_host[0] @ on_host[1]), left.device)


def dense_rows(matrix: Tensor, rows: slice) -> Tensor:
    """Rows of a dense or sparse CSR tensor as a dense one."""
    if matrix.layout == torch.strided:
        return matrix[rows]
    start = matrix.crow_indices()[rows.start : rows.stop + 1]
    part = slice(int(start[0]), int(start[-1]))
    block = torch.sparse_csr_tensor(
        start - start[0],
        matrix.col_indices()[part],
        matrix.values()[part],
        (len(start) - 1, matrix.shape[1]),
    )
    return block.to_dense()


def row_blocks(n: int, width: int, cells: int = 1 << 22) -> list[slice]:
    """Slices of n rows so that a dense block of that width holds at most about `cells` numbers."""
    step = max(1, cells // max(width, 1))
    return [slice(low, min(low + step, n)) for low in range(0, n, step)]


def _starts(indices: Tensor, size: int) -> Tensor:
    count = torch.bincount(indices, minlength=size)
    return torch.cat([count.new_zeros(1), torch.cumsum(count, 0)])
