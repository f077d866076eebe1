r"""Counts of discrete data, and what Dirichlet priors make of them in closed form.

A *block* is a conditional table: a distribution over the joint states of its children for each
state of its parents. Every table joint is a product of blocks.
"""

import math
import operator

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from torch import Tensor

from pyro_ar.arrays import Array, as_tensor
from pyro_ar.budget import MEMORY
from pyro_ar.checks import counted, require
from pyro_ar.rising import log_rising_over_power

__all__ = ["Block", "block_counts", "check_data", "check_total", "check_weights", "concentration_of", "count_block", "log_evidence_of",
           "relative", "table_counts"]


MAX_CELLS = MEMORY // 4  # of one table of counts


class Block(NamedTuple):
    """The variables of one conditional table."""

    parents: tuple[int, ...]
    children: tuple[int, ...]


def check_data(x: Array, num_states: int | Sequence[int] | None) -> tuple[Tensor, tuple[int, ...]]:
    """Rows of whole numbers `(N, n)` as `int64`, with the number of states of each column.

    Args:
        x: `(N, n)`, integer or floating; an array or a data frame too.
        num_states: For all, for each, or None: the largest state seen plus one, at least 2.

    Raises:
        ValueError: Not `(N, n)` with N, n >= 1, NaN, fractions, or states out of range.
    """
    x = as_tensor(x)
    require(isinstance(x, Tensor) and x.ndim == 2 and x.numel() > 0, "data must be rows of shape (N, n)", x)
    hidden = x.isnan()
    require(not bool(hidden.any()), "complete rows of states are wanted here, without NaN: from_data takes hidden cells, what is exact for whole tables "
            "does not", f"{int(hidden.sum())} cells of NaN")
    states = x.long()
    require(bool((states == x).all()), "data must be whole numbers, the states 0, 1, ..., without NaN", x)
    require(bool((states >= 0).all()), "states must be 0 or more", int(states.min()))
    if num_states is None:
        return states, tuple(max(int(k) + 1, 2) for k in states.amax(0))
    try:
        sizes = (operator.index(num_states),) * x.shape[1]  # type: ignore[arg-type]
    except TypeError:
        fits = isinstance(num_states, Iterable) and not (isinstance(num_states, Tensor) and num_states.ndim == 0)
        require(fits, "num_states must be whole numbers", num_states)
        sizes = tuple(int(k) for k in num_states)  # type: ignore[union-attr]
    require(len(sizes) == x.shape[1], f"num_states must be one number or {x.shape[1]} numbers", num_states)
    require(min(sizes) >= 1, "every variable needs at least one state", num_states)
    over = states >= torch.tensor(sizes, device=x.device)
    if bool(over.any()):
        row, column = (int(i) for i in over.nonzero()[0])
        require(False, f"column {column} must hold the states 0 to {sizes[column] - 1}",
                int(states[row, column]), f"in row {row}")
    return states, sizes


def check_weights(weights: Tensor | None, rows: int) -> None:
    """Refuse weights that are not `(*B, N)`, finite and 0 or more."""
    if weights is None:
        return
    require(isinstance(weights, Tensor) and weights.ndim >= 1 and weights.shape[-1] == rows,
            f"weights must end in ({rows},)", weights)
    require(bool((weights >= 0).all()) and bool(weights.isfinite().all()), "weights must be 0 or more, finite, and not NaN",
            float(weights.detach().min()), float(weights.detach().max()))


def count_block(block: Block, num_states: Sequence[int]) -> int:
    """Free parameters: one less than the children's joint states, per state of the parents."""
    inside = math.prod(num_states[v] for v in block.children)
    return math.prod(num_states[v] for v in block.parents) * (inside - 1)


def check_total(tables: Sequence[Block], num_states: Sequence[int], weights: Tensor | None = None) -> None:
    """Refuse tables that would not fit into memory, before any is made."""
    batch = 1 if weights is None else math.prod(weights.shape[:-1])
    each = [math.prod(num_states[v] for v in (*b.parents, *b.children)) for b in tables]
    largest = f"a variable of {max(num_states)} states"
    require(max(each) * batch <= MAX_CELLS, f"a table must have at most {MAX_CELLS} cells, over all its batch; use a sparser joint, fewer states, or "
            "real values", counted(max(each) * batch, "cell"), largest)
    require(sum(each) * batch <= MEMORY, f"the tables of a joint must have at most {MEMORY} cells together, over all its batch; use a sparser joint, "
            "fewer states, or real values", counted(sum(each) * batch, "cell"), largest)


def block_counts(block: Block, states: Tensor, num_states: Sequence[int], weights: Tensor | None = None) -> Tensor:
    """How often each joint state occurs, `(*B, *K_parents, *K_children)`, float64.

    Args:
        block: Whose variables to count.
        states: `(N, n)`, int64.
        num_states: Per variable.
        weights: `(*B, N)`, the weight of each row; None counts each row once.
    """
    scope = (*block.parents, *block.children)
    sizes = [num_states[v] for v in scope]
    require(math.prod(sizes) <= MAX_CELLS, f"a table of {len(sizes)} variables must have at most {MAX_CELLS} cells; use a sparser joint",
            counted(math.prod(sizes), "cell"))
    flat = torch.zeros(len(states), dtype=torch.long, device=states.device)
    for v, size in zip(scope, sizes, strict=True):
        flat = flat * size + states[:, v]
    if weights is None:
        return torch.bincount(flat, minlength=math.prod(sizes)).double().reshape(sizes)
    counts = torch.zeros(*weights.shape[:-1], math.prod(sizes), dtype=torch.float64, device=states.device)
    return counts.index_add(-1, flat, weights.double()).reshape(*weights.shape[:-1], *sizes)


def table_counts(blocks: Sequence[Block], states: Tensor, num_states: Sequence[int], weights: Tensor | None = None) -> Tensor:
    """The counts of the blocks that share one table, together; arguments as in `block_counts`."""
    first, *rest = blocks
    total = block_counts(first, states, num_states, weights)
    for block in rest:
        total += block_counts(block, states, num_states, weights)
    return total


def relative(table: Tensor, block: Block) -> Tensor:
    """The conditional probabilities of counts `(*B, *K_parents, *K_children)`; uniform where nothing was counted."""
    inner = tuple(range(-len(block.children), 0))
    table = torch.where(table.sum(inner, keepdim=True) > 0, table, 1.0)
    return table / table.sum(inner, keepdim=True)


def concentration_of(block: Block, num_states: Sequence[int], concentration: float | None,
                     equivalent_sample_size: float | None) -> float:
    """The Dirichlet concentration of one cell of the block.

    With an equivalent sample size s each of the M cells has s / M (BDeu: Heckerman, Geiger,
    Chickering 1995, eq. 28), so that equivalent structures have equal evidence.
    """
    require((concentration is None) != (equivalent_sample_size is None),
            "give either concentration (per cell) or equivalent_sample_size", concentration, equivalent_sample_size)
    value = concentration if concentration is not None else equivalent_sample_size
    require(value is not None and math.isfinite(value) and value > 0, "a Dirichlet prior needs a positive number", value)
    cells = math.prod(num_states[v] for v in (*block.parents, *block.children))
    each = float(concentration) if concentration is not None else float(equivalent_sample_size or 0) / cells
    require(each > 0 and math.isfinite(each * cells), "the cells of a table must have positive concentrations of finite sum", value)
    return each


def log_evidence_of(block: Block, counts: Tensor, alpha: float) -> Tensor:
    r"""Dirichlet-multinomial log evidence of the rows behind `counts`, `(*B)`, in nats.

    .. math:: \sum_{pa} \log \frac{\Gamma(A)}{\Gamma(A + N_{pa})}
              + \sum_{ch} \log \frac{\Gamma(\alpha + N_{pa,ch})}{\Gamma(\alpha)}
    """
    p, c = len(block.parents), len(block.children)
    batch = counts.shape[: counts.ndim - p - c]
    table = counts.reshape(*batch, math.prod(counts.shape[len(batch): len(batch) + p]), -1)
    cells, rows = table.shape[-1], table.sum(-1)
    # Both sides of each ratio over their powers: what is left of the powers is a uniform guess at every row.
    each = log_rising_over_power(table.new_tensor(alpha), table).sum(-1)
    return (each - log_rising_over_power(table.new_tensor(alpha * cells), rows) - rows * math.log(cells)).sum(-1)
