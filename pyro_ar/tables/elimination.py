r"""Exact variable elimination in log space, for sums, maxima and draws, one pattern per row.

Bucket elimination (Dechter 1999, *Bucket elimination: A unifying framework for reasoning*): each
variable in turn is summed (or maximised) out of the product of all factors that mention it.
Going back through the buckets gives draws and most likely completions.

Each contraction is a matrix product of shifted exponentials. Where a shifted sum comes near the
smallest number of the dtype (extreme potentials, zero probabilities), the contraction is done
again by a plain log-sum-exp: `pyro.ops.einsum.torch_log` would return -inf there, silently.
"""

import functools
import math

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from torch import Tensor

from pyro_ar.checks import IntractableError

__all__ = ["Plan", "Trail", "backward", "evidence", "forward", "log_sum_exp", "make_plan"]

MAX_CELLS = 2**24  # entries of one intermediate table of one row: 64 MiB in float32


class Step(NamedTuple):
    """One bucket: the variable to eliminate, what it multiplies, and the scope that is left."""

    variable: int
    tables: tuple[int, ...]
    messages: tuple[int, ...]
    scope: tuple[int, ...]


class Plan(NamedTuple):
    """The buckets in order, and the entries of the largest intermediate table of one row."""

    steps: tuple[Step, ...]
    cells: int


class Trail(NamedTuple):
    """The factors of each bucket, kept for the way back: `(values, scope)` pairs."""

    plan: Plan
    factors: list[list[tuple[Tensor, tuple[int, ...]]]]


@functools.lru_cache(maxsize=256)
def make_plan(scopes: tuple[tuple[int, ...], ...], num_states: tuple[int, ...]) -> Plan:
    """Order of elimination, smallest next table first; found once per structure.

    Raises:
        IntractableError: Some intermediate table would exceed `MAX_CELLS` entries.
    """
    near: dict[int, set[int]] = {v: set() for v in range(len(num_states))}
    users: dict[int, list[int]] = {v: [] for v in near}
    for i, scope in enumerate(scopes):
        for v in scope:
            near[v].update(scope)
            users[v].append(i)
    for v, others in near.items():
        others.discard(v)
    cost = {v: _cells(near[v] | {v}, num_states) for v in near}
    used = [False] * len(scopes)
    steps, cells = [], 1
    while cost:
        v = min(cost, key=cost.__getitem__)
        cells = max(cells, cost.pop(v))
        if cells > MAX_CELLS:
            raise IntractableError(
                f"exact elimination would need a table of {cells:.3g} entries per row (bound {MAX_CELLS}): "
                "the network is too densely connected; use a sparser structure, or par.estimate_log_marginal")
        inputs = [i for i in users.pop(v) if not used[i]]
        for i in inputs:
            used[i] = True
        scope = tuple(sorted(near.pop(v)))
        first = len(scopes)
        steps.append(Step(v, tuple(i for i in inputs if i < first),
                          tuple(i - first for i in inputs if i >= first), scope))
        used.append(False)
        for u in scope:
            near[u].update(scope)
            near[u] -= {u, v}
            users[u].append(len(used) - 1)
        for u in scope:
            cost[u] = _cells(near[u] | {u}, num_states)
    return Plan(tuple(steps), cells)


def _cells(variables: set[int], num_states: tuple[int, ...]) -> int:
    return math.prod(num_states[v] for v in variables)


def evidence(x: Tensor, visible: Tensor, num_states: Sequence[int]) -> list[Tensor]:
    """Per variable `(*L, K)`: 0 where the state is possible, minus infinity where it is not."""
    most = max(num_states)
    differs = x.long().unsqueeze(-1) != torch.arange(most, device=x.device)
    logits = x.new_zeros(differs.shape).masked_fill(differs & visible.unsqueeze(-1), -math.inf)
    return [column[..., :k] for column, k in zip(logits.unbind(-2), num_states, strict=True)]


def forward(plan: Plan, tables: Sequence[tuple[Tensor, tuple[int, ...]]], soft: Sequence[Tensor],
            *, maximise: bool = False) -> tuple[Tensor, Trail]:
    """Sum (or maximise) all variables out.

    Args:
        plan: From `make_plan`.
        tables: Log factors `(*B, *K_scope)` with their scopes.
        soft: Per variable `(*L, K)`, added to it; `*L` and `*B` broadcast.
        maximise: Maxima in place of sums.

    Returns:
        The log of the total, `(*L)` broadcast with `(*B)`, and the trail for `backward`.
    """
    left = max([t.ndim - len(s) for t, s in tables] + [e.ndim - 1 for e in soft])
    tables = [(_pad(t, left + len(s)), s) for t, s in tables]
    messages: list[tuple[Tensor, tuple[int, ...]]] = []
    kept, total = [], None
    contract = _max_product if maximise else _sum_product
    for step in plan.steps:
        target = (*step.scope, step.variable)
        fixed = [tables[i] for i in step.tables]
        moving: list[tuple[Tensor, tuple[int, ...]]] = [(_pad(soft[step.variable], left + 1), (step.variable,))]
        moving += [messages[i] for i in step.messages]
        kept.append(fixed + moving)
        a = functools.reduce(torch.add, [_spread(t, s, target, left) for t, s in moving])
        b = functools.reduce(torch.add, [_spread(t, s, target, left) for t, s in fixed]) if fixed else None
        message = contract(a, b)
        messages.append((message, step.scope))
        if not step.scope:  # a connected component is done
            total = message if total is None else total + message
    if total is None:
        raise ValueError("elimination needs at least one variable")
    return total, Trail(plan, kept)


def backward(trail: Trail, shape: Sequence[int], choose: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Assign the variables in the reverse order of elimination, `(*shape, n)`.

    Args:
        trail: From `forward`.
        shape: Left shape of the result.
        choose: From logits `(*shape, K)` to states `(*shape)`: a draw or an argmax.
        like: Gives dtype and device.
    """
    states: dict[int, Tensor] = {}
    for step, factors in zip(reversed(trail.plan.steps), reversed(trail.factors), strict=True):
        logits = functools.reduce(torch.add, [_at(t, s, states, step.variable, shape) for t, s in factors])
        states[step.variable] = choose(logits.expand(*shape, logits.shape[-1]))
    return torch.stack([states[v] for v in range(len(states))], -1).to(like.dtype)


def log_sum_exp(x: Tensor) -> Tensor:
    """Over the last dimension; where all is -inf the gradient is zero, not NaN."""
    dead = (x == -math.inf).all(-1, keepdim=True)
    return x.masked_fill(dead, 0.0).logsumexp(-1).masked_fill(dead.squeeze(-1), -math.inf)


def _sum_product(a: Tensor, b: Tensor | None) -> Tensor:
    """Log sum_v exp(a + b) over the last dimension; `a` has the rows, `b` the parameters."""
    if b is None:
        return log_sum_exp(a)
    lowest = torch.finfo(a.dtype).min
    shift_a, shift_b = (t.detach().amax(-1, keepdim=True).clamp(min=lowest) for t in (a, b))
    product = torch.einsum("...v,...v->...", (a - shift_a).exp(), (b - shift_b).exp())
    # Below this, terms lost to underflow could show; relative to it they are under 1e-12.
    if bool(product.detach().amin() > torch.finfo(a.dtype).tiny * 1e13):
        return product.log() + (shift_a + shift_b).squeeze(-1)
    return log_sum_exp(a + b)


def _max_product(a: Tensor, b: Tensor | None) -> Tensor:
    return (a if b is None else a + b).amax(-1)


def _pad(t: Tensor, ndim: int) -> Tensor:
    return t[(None,) * (ndim - t.ndim)] if t.ndim < ndim else t


def _spread(t: Tensor, scope: tuple[int, ...], target: tuple[int, ...], left: int) -> Tensor:
    """Bring the dimensions of `scope` into the order of `target`, size 1 where absent."""
    if scope == target:
        return t
    held = [v for v in target if v in scope]
    t = t.permute(*range(left), *(left + scope.index(v) for v in held))
    return t[(..., *(slice(None) if v in scope else None for v in target))]


def _at(t: Tensor, scope: tuple[int, ...], states: dict[int, Tensor], v: int, shape: Sequence[int]) -> Tensor:
    """The factor as a function of `v` alone, the others at their states: `(*shape, K)`."""
    left = t.ndim - len(scope)
    others = [u for u in scope if u != v]
    t = t.permute(*range(left), *(left + scope.index(u) for u in (*others, v)))
    sizes = t.shape[left:-1]
    t = t.flatten(left, -2) if others else t.unsqueeze(-2)
    index = torch.zeros((), dtype=torch.long, device=t.device)
    for u, size in zip(others, sizes, strict=True):
        index = index * size + states[u]
    index = index.expand(shape)[..., None, None].expand(*shape, 1, t.shape[-1])
    return t.expand(*shape, *t.shape[-2:]).gather(-2, index).squeeze(-2)
