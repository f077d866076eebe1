"""Rows grouped by what is visible in them, so that equal patterns share their matrix factors."""

import math

from typing import NamedTuple

import numpy as np
import torch

from torch import Size, Tensor

__all__ = ["Pairs", "distinct", "is_shared", "pairs", "shared_rows", "without_batch"]


class Pairs(NamedTuple):
    """Distinct pairs of a pattern and a batch entry, and which of them each row has.

    Attributes:
        patterns: `(U, D)`, bool.
        entry: Of the flattened batch, `(U,)`.
        which: `(rows,)`, numbers of pairs.
    """

    patterns: Tensor
    entry: Tensor
    which: Tensor


def is_shared(t: Tensor, own: Size) -> bool:
    """Whether `t`, `(*left, *own, D)`, has the same for all entries of the batch, as its strides say."""
    dims = range(t.ndim - 1 - len(own), t.ndim - 1)
    return all(t.shape[d] == 1 or t.stride(d) == 0 for d in dims)


def without_batch(t: Tensor, own: Size) -> Tensor:
    """Rows `(R, D)` of a shared `t`, `(*left, *own, D)`."""
    for _ in own:
        t = t.select(-2, 0)
    return t.reshape(-1, t.shape[-1])


def distinct(visible: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows `(U, D)` of a bool matrix, and the number of each row's own `(rows,)`."""
    packed = np.ascontiguousarray(np.packbits(visible.cpu().numpy(), axis=1))
    _, first, inverse = np.unique(_keys(packed), return_index=True, return_inverse=True)
    return visible[torch.from_numpy(first).to(visible.device)], torch.from_numpy(inverse.reshape(-1)).to(visible.device)


def pairs(visible: Tensor, own: Size) -> Pairs:
    """The pairs of `visible`, `(*left, *own, D)` with all dimensions written out or expanded."""
    entries = torch.arange(math.prod(own), device=visible.device)
    if is_shared(visible, own):  # sorting the rows is enough: every pattern meets every entry
        patterns, which = distinct(without_batch(visible, own))
        E = len(entries)
        return Pairs(patterns.repeat_interleave(E, 0), entries.repeat(len(patterns)),
                     (which[:, None] * E + entries).reshape(-1))
    entry = entries.reshape(own).expand(visible.shape[:-1]).reshape(-1)
    flat = visible.reshape(-1, visible.shape[-1])
    packed = np.packbits(flat.cpu().numpy(), axis=1)
    key = np.concatenate([entry.cpu().numpy().astype(np.int64)[:, None].view(np.uint8), packed], axis=1)
    _, first, inverse = np.unique(_keys(np.ascontiguousarray(key)), return_index=True, return_inverse=True)
    at = torch.from_numpy(first).to(flat.device)
    return Pairs(flat[at], entry[at], torch.from_numpy(inverse.reshape(-1)).to(flat.device))


def _keys(rows: np.ndarray) -> np.ndarray:
    return rows.view(np.dtype((np.void, rows.shape[1]))).reshape(-1)


def shared_rows(which: Tensor, group: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The rows of each pair of `group`: `(positions in group (U,), rows (U, r))`, pairs with equally many together."""
    local = torch.full((int(which.max()) + 1,), -1, device=which.device)
    local[group] = torch.arange(len(group), device=which.device)
    mine = local[which]
    rows = (mine >= 0).nonzero().squeeze(-1)
    rows = rows[mine[rows].argsort(stable=True)]
    counts = torch.bincount(mine[rows], minlength=len(group))
    starts = counts.cumsum(0) - counts
    shared = []
    for r in counts.unique().tolist():
        u = (counts == r).nonzero().squeeze(-1)
        shared.append((u, rows[starts[u][:, None] + torch.arange(r, device=which.device)]))
    return shared
