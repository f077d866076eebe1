"""How far the answers of an any-order family are from those of one joint."""

import math

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from torch import Generator, Tensor

from pyro_ar.arrays import Array, as_tensor
from pyro_ar.budget import at_once
from pyro_ar.checks import require
from pyro_ar.enumeration import all_states
from pyro_ar.neural.family import Family
from pyro_ar.order import random_orders

__all__ = ["Coherence", "coherence"]

MOST_STATES = 300  # joint states of the cells that are hidden and summed over


@dataclass(frozen=True)
class Coherence:
    """What `coherence` found; all in nats, by the number of orders averaged over.

    Attributes:
        log_prob: Mean log p(x) of a row.
        spread: Of log p(x) over orders: the root of the mean over rows of the variance over (groups of) orders. 0 in one joint.
        gap: Mean size of log p(x_visible) as the family answers it less the logarithm of the sum of p over the hidden cells. 0 in one joint.
        bias: The same with its sign: more than 0 where answers are larger than sums.
        num_hidden: Cells hidden in each row, at random; None where values are real and nothing is summed.
        num_orders: Drawn in all.
        rows: Of data.
    """

    log_prob: Mapping[int, float]
    spread: Mapping[int, float]
    gap: Mapping[int, float]
    bias: Mapping[int, float]
    num_hidden: int | None
    num_orders: int
    rows: int

    def __str__(self) -> str:
        lines = [f"{self.rows} rows, {self.num_orders} orders, {self.num_hidden or 'no'} cells hidden and summed over; nats",
                 f"{'orders averaged':>16s}{'log p(x)':>12s}{'spread':>10s}{'|marginal - sum|':>18s}{'marginal - sum':>16s}"]
        for m in self.spread:
            sums = f"{self.gap[m]:18.4f}{self.bias[m]:16.4f}" if m in self.gap else ""
            lines.append(f"{m:16d}{self.log_prob[m]:12.3f}{self.spread[m]:10.4f}{sums}")
        return "\n".join(lines)


def coherence(family: Family, x: Array, context: Array | None = None, *, num_orders: int = 32, averaged: Sequence[int] = (1, 4, 16),
              num_hidden: int | None = None, generator: Generator | None = None) -> Coherence:
    r"""How far an any-order family is from one joint, before and after averaging over orders.

    Such a family is a joint :math:`p_o` for each order o. With one joint behind them all :math:`\log p_o(x)` would be the same for every o, and the answer to a
    pattern, the chain :math:`p_{o'}` that puts the visible variables first, would be the sum :math:`\sum_{x_h} p_o(x)`. Both are measured, of single
    orders and of the mixtures of m orders (`OverOrders`).

    Args:
        family: An any-order family.
        x: `(N, *E)`, complete rows.
        context: `(N, context_dim)`, if the family has one.
        num_orders: Drawn uniformly; twice the largest of `averaged` or more.
        averaged: Numbers m of orders; the orders are cut into groups of m.
        num_hidden: Cells to hide at random in each row; None: as many as have at most 300 joint states, one at least.
        generator: For orders and hidden cells.

    Raises:
        ValueError: A family of one order, rows that are no values of it, or numbers that do not fit each other.

    Example:
        >>> from pyro_ar.neural import OrderlessNADE
        >>> found = coherence(OrderlessNADE(6, hidden=4), torch.zeros(5, 6), num_orders=8, averaged=(1, 4))
        >>> found.num_hidden, sorted(found.spread), found.gap[1] > 0
        (5, [1, 4], True)
    """
    require(isinstance(family, Family) and family.any_order, "coherence is measured of an any-order family; others are one joint", type(family).__name__)
    require(isinstance(num_orders, int) and len(averaged) > 0 and all(isinstance(m, int) and 1 <= m <= num_orders // 2 for m in averaged),
            "averaged must hold numbers from 1 to half of num_orders", averaged, num_orders)
    given = as_tensor(context)
    one = family(given)
    rows = one.check_value(x)
    event = tuple(one.event_shape)
    require(rows.ndim == 1 + len(event) and len(rows) > 0, f"coherence wants rows of shape (N, {', '.join(map(str, event))})", rows)
    n = math.prod(event)
    orders = random_orders(num_orders, n, generator=generator)
    states = one.num_states
    hidden = None if states is None else _cells_to_hide(num_hidden, max(states), n)
    with torch.no_grad():
        log_p = _by_order(family, rows.flatten(1), given, orders)
        answers, terms = (None, None) if hidden is None else _both(family, rows.flatten(1), given, orders, torch.tensor(states), hidden, generator)
    groups = {m: _mixtures(log_p, m) for m in averaged}
    differences = {} if answers is None or terms is None else {m: _mixtures(answers, m) - _mixtures(terms, m).logsumexp(0) for m in averaged}
    return Coherence({m: g.mean().item() for m, g in groups.items()}, {m: g.var(-1).mean().sqrt().item() for m, g in groups.items()},
                     {m: d.abs().mean().item() for m, d in differences.items()}, {m: d.mean().item() for m, d in differences.items()},
                     hidden, num_orders, len(rows))


def _cells_to_hide(asked: int | None, states: int, n: int) -> int:
    most = max(1, int(math.log(MOST_STATES) / math.log(states) + 1e-9))
    many = min(most, n - 1) if asked is None else asked
    require(isinstance(many, int) and 1 <= many <= min(most, n), f"num_hidden must be from 1 to {min(most, n)}: {states} states each, of which at most "
            f"{MOST_STATES} joint ones are summed over", asked)
    return many


def _mixtures(log_p: Tensor, m: int) -> Tensor:
    """From `(*L, orders)` to the mixtures of m orders each, `(*L, groups)`."""
    groups = log_p.shape[-1] // m
    return log_p[..., :groups * m].unflatten(-1, (groups, m)).double().logsumexp(-1) - math.log(m)


def _by_order(family: Family, x: Tensor, context: Tensor | None, orders: Tensor, visible: Tensor | None = None) -> Tensor:
    """Log p of flat rows `(N, n)` in each order, `(N, orders)`; of what is visible where a pattern is given, each order's own answer."""
    found = []
    values = x.reshape(len(x), 1, *family.event_shape)
    for some in orders.split(at_once(16 * x.numel())):
        joint = family(None if context is None else context.unsqueeze(1), some)
        law = joint if visible is None else joint.marginal(visible.reshape(values.shape))
        found.append(law.log_prob(values))
    return torch.cat(found, -1)


def _both(family: Family, x: Tensor, context: Tensor | None, orders: Tensor, states: Tensor, hidden: int,
          generator: Generator | None) -> tuple[Tensor, Tensor]:
    """What each order answers when cells are hidden, `(N, orders)`, and log p of every completion, `(completions, N, orders)`."""
    cells = torch.rand(x.shape, generator=generator).argsort(-1)[:, :hidden]
    visible = torch.ones_like(x, dtype=torch.bool).scatter(1, cells, False)
    terms = []
    for values in all_states((int(states.max()),) * hidden, x.dtype, x.device).split(at_once(16 * x.numel() * len(orders))):
        values = values.unsqueeze(1)  # (completions, rows, hidden cells)
        possible = (values < states[cells]).all(-1)
        every = x.expand(len(values), *x.shape).scatter(-1, cells.expand(len(values), *cells.shape), torch.minimum(values, states[cells] - 1).to(x.dtype))
        told = None if context is None else context.repeat(len(values), 1)
        log_p = _by_order(family, every.flatten(0, 1), told, orders).unflatten(0, every.shape[:2])
        terms.append(torch.where(possible.unsqueeze(-1), log_p, -math.inf))
    return _by_order(family, x, context, orders, visible), torch.cat(terms)
