"""Oracles in plain Python and numpy: by listing all states, and chains in logarithms of float64."""

import itertools
import math

import numpy as np


def log_softmax(logits):
    """Of a nested list or array, over all of it; -inf allowed."""
    logits = np.asarray(logits, dtype=float)
    top = logits.max()
    return logits - (top + math.log(sum(math.exp(v - top) for v in logits.ravel())))


def log_sum(terms):
    terms = list(terms)
    top = max(terms, default=-math.inf)
    return -math.inf if top == -math.inf else top + math.log(math.fsum(math.exp(t - top) for t in terms))


def table_by_listing(log_p, sizes):
    """{state: log p} of every joint state."""
    return {state: log_p(state) for state in itertools.product(*map(range, sizes))}


def agreeing(table, row, visible):
    return {s: v for s, v in table.items() if all(a == b for a, b, seen in zip(s, row, visible, strict=True) if seen)}


def marginal_by_listing(table, row, visible):
    return log_sum(agreeing(table, row, visible).values())


def mode_by_listing(table, row, visible):
    """All most likely completions (several if they tie to 1e-9)."""
    fitting = agreeing(table, row, visible)
    best = max(fitting.values())
    return {s for s, v in fitting.items() if v >= best - 1e-9}


def dirichlet_predictive(rows, alpha):
    """log p of a sequence of cells under one symmetric Dirichlet, one predictive probability after another.

    Args:
        rows: Pairs (cell, number of cells of this table row), the cells hashable.
        alpha: Concentration of a cell.
    """
    seen: dict[object, int] = {}
    total = 0.0
    for so_far, (cell, cells) in enumerate(rows):
        total += math.log((seen.get(cell, 0) + alpha) / (so_far + alpha * cells))
        seen[cell] = seen.get(cell, 0) + 1
    return total


def chain_by_logs(initial, transitions, rows, visible):
    """A first-order chain by forward and backward passes in float64 logarithms, all rows at once.

    Args:
        initial: Raw logits `(K,)`.
        transitions: Raw logits `(n - 1, K, K)`.
        rows: `(N, n)` states.
        visible: `(N, n)`.

    Returns:
        Log marginals `(N,)`, and the gradients of their sum by the raw logits.
    """
    initial, transitions = np.asarray(initial, np.float64), np.asarray(transitions, np.float64)
    rows, visible = np.asarray(rows).astype(int), np.asarray(visible)
    n, size = rows.shape[1], len(initial)
    start = initial - np.logaddexp.reduce(initial)
    step = transitions - np.logaddexp.reduce(transitions, -1)[..., None]
    allowed = np.where(visible[..., None] & (rows[..., None] != np.arange(size)), -np.inf, 0.0)
    forth = [start + allowed[:, 0]]
    for t in range(1, n):
        forth.append(np.logaddexp.reduce(forth[-1][:, :, None] + step[t - 1], 1) + allowed[:, t])
    total = np.logaddexp.reduce(forth[-1], -1)
    back = np.zeros((len(rows), size))
    by_step = np.zeros_like(step)
    for t in range(n - 1, 0, -1):
        back = back + allowed[:, t]
        pairs = np.exp(forth[t - 1][:, :, None] + step[t - 1] + back[:, None, :] - total[:, None, None]).sum(0)
        by_step[t - 1] = pairs - np.exp(step[t - 1]) * pairs.sum(-1, keepdims=True)
        back = np.logaddexp.reduce(step[t - 1] + back[:, None, :], -1)
    first = np.exp(forth[0] + back - total[:, None]).sum(0)
    return total, first - np.exp(start) * first.sum(), by_step
