r"""Exact variable elimination in log space, for sums, maxima and draws, one pattern per row.

Bucket elimination (Dechter 1999, *Bucket elimination: A unifying framework for reasoning*): each
variable in turn is summed (or maximised) out of the product of all factors that mention it.
Going back through the buckets gives draws and most likely completions.

There are two ways. `log_total` multiplies probabilities, scales each row as it goes, and gives up
where a sum comes near the smallest number of the dtype (extreme potentials, zero probabilities);
it is the fast one, and all that a marginal needs. `forward` stays with logarithms, always
answers, and leaves the trail for the way back. `pyro.ops.einsum.torch_log` would return -inf, or
lose terms, where the first gives up: silently.
"""

import functools
import math

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from torch import Tensor
from torch.nn.functional import linear

from pyro_ar.checks import IntractableError
from pyro_ar.transforms import is_mapped, transforms_active

__all__ = ["Plan", "Trail", "backward", "evidence", "forward", "log_sum_exp", "log_total", "make_plan"]

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


def evidence(x: Tensor, visible: Tensor, num_states: Sequence[int], *, logs: bool = True) -> list[Tensor]:
    """Per variable `(*L, K)`: 0 where the state is possible, minus infinity where not (1 and 0 unless `logs`)."""
    most = max(num_states)
    # One row per state, and a last one for hidden cells; a lookup is far cheaper than comparing (*L, n, K) states.
    rows = torch.cat([torch.eye(most, dtype=x.dtype, device=x.device), x.new_ones(1, most)])
    rows = rows.log() if logs else rows
    index = torch.where(visible, x.long(), most).movedim(-1, 0)
    return [column[..., :k] for column, k in zip(rows[index].unbind(0), num_states, strict=True)]


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
    kept = []
    parts: list[Tensor] = []  # their sum is the answer: shifts, and what is left at the end
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
        if step.scope:  # messages near 0 keep their digits
            shift = message.detach().amax(tuple(range(left, message.ndim)), keepdim=True)
            shift = shift.masked_fill(shift == -math.inf, 0.0)
            message = message - shift
            parts.append(shift.flatten(left).squeeze(-1))
        else:  # a connected component is done
            parts.append(message)
        messages.append((message, step.scope))
    return torch.stack(torch.broadcast_tensors(*parts)).sum(0), Trail(plan, kept)


def log_total(plan: Plan, tables: Sequence[tuple[Tensor, tuple[int, ...]]], seen: Sequence[Tensor]) -> Tensor | None:
    """The total of `forward` by matrix products of probabilities; None where they would lose precision.

    Args:
        plan: From `make_plan`.
        tables: Factors `(*B, *K_scope)`, at most 1, with their scopes.
        seen: Per variable `(*L, K)`: 1 where the state is possible, else 0; `*L` and `*B` broadcast.

    Returns:
        The log of the total, `(*L)` broadcast with `(*B)`. Messages are at most 1, for they are
        sums over conditionals of what was eliminated; a row that grows small is scaled to a maximum of 1.
        The logs of the scales are summed at the end, so that long chains lose no digits to large logarithms.
    """
    if not _askable(*(t for t, _ in tables), *seen):
        return None
    left = max([t.ndim - len(s) for t, s in tables] + [e.ndim - 1 for e in seen])
    tiny = torch.finfo(seen[0].dtype).tiny
    messages: list[tuple[Tensor, tuple[int, ...]]] = []
    lowest: list[float] = []
    parts: list[Tensor] = []  # their sum is the answer: logs of scales, and of what is left at the end
    for step in plan.steps:
        low = min([lowest[i] for i in step.messages], default=1.0)
        rows, scope, scale = _gather_rows([messages[i] for i in step.messages], _pad(seen[step.variable], left + 1),
                                          step.variable, left, rescale=low < tiny**0.25)
        message = _contract(rows, scope, [tables[i] for i in step.tables], step, left)
        lowest.append(float(message.detach().amin()))
        # Terms lost to underflow are below `tiny`; relative to sums above this they are under 1e-12.
        if not lowest[-1] > tiny * 1e13:
            return None
        messages.append((message, step.scope))
        parts += scale if step.scope else [*scale, _log(message)]  # no scope: a connected component is done
    return torch.stack(torch.broadcast_tensors(*parts)).sum(0)


def _gather_rows(moving: list[tuple[Tensor, tuple[int, ...]]], seen: Tensor, v: int, left: int,
                 *, rescale: bool) -> tuple[Tensor, tuple[int, ...], list[Tensor]]:
    """The product of all that depends on the rows; its scope, `v` last; the logs of the scales, if any."""
    if not moving:
        return seen, (v,), []
    scope = (*sorted({u for _, s in moving for u in s} - {v}), v)
    seen = _spread(seen, (v,), scope, left)
    parts = [_spread(t, s, scope, left) for t, s in moving]
    if len(parts) == 1:
        if not rescale:
            return parts[0] * seen, scope, []
        top = (parts[0].detach() * seen).amax(tuple(range(-len(scope), 0)), keepdim=True)
        rows, top = parts[0] * (seen / top), top.log()  # this way round no gradient of an excluded state overflows
    else:  # the product of many messages may underflow as a whole: add their logs
        logs = functools.reduce(torch.add, [_log(t) for t in parts]) + seen.log()
        top = logs.detach().amax(tuple(range(-len(scope), 0)), keepdim=True)
        rows = (logs - top).exp()
    return rows, scope, [top.flatten(left).squeeze(-1)]


def _contract(rows: Tensor, scope: tuple[int, ...], fixed: list[tuple[Tensor, tuple[int, ...]]], step: Step,
              left: int) -> Tensor:
    """Sum the variable of `step` out of `rows` times the product of the `fixed` tables."""
    if not fixed:
        return rows.sum(-1)
    v = step.variable
    table, own = fixed[0]
    if len(fixed) == len(scope) == 1 and table.ndim == 2 == len(own):  # chains and trees without a batch of tables
        return rows @ table if own[0] == v else linear(rows, table)
    own = (*sorted({u for _, s in fixed for u in s} - {v}), v)
    table = functools.reduce(torch.mul, [_spread(_pad(t, left + len(s)), s, own, left) for t, s in fixed])
    target = (*step.scope, v)
    return torch.einsum("...v,...v->...", _spread(rows, scope, target, left), _spread(table, own, target, left))


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


def _askable(*tensors: Tensor) -> bool:
    """Whether it can be asked how small a product gets: there are rows, and no `vmap` keeps them back."""
    return all(t.numel() for t in tensors) and not is_mapped(*tensors)


def _log(t: Tensor) -> Tensor:
    """The logarithm of positive numbers; of one near the smallest the square, which second derivatives divide by, would underflow."""
    if not (t.requires_grad or transforms_active()):
        return t.log()
    size = t.detach()
    return (t / size).log() + size.log()


def _sum_product(a: Tensor, b: Tensor | None) -> Tensor:
    """Log sum_v exp(a + b) over the last dimension; `a` has the rows, `b` the parameters."""
    if b is None:
        return log_sum_exp(a)
    if not _askable(a, b):
        return log_sum_exp(a + b)
    lowest = torch.finfo(a.dtype).min
    shift_a, shift_b = (t.detach().amax(-1, keepdim=True).clamp(min=lowest) for t in (a, b))
    product = torch.einsum("...v,...v->...", (a - shift_a).exp(), (b - shift_b).exp())
    # Below this, terms lost to underflow could show; relative to it they are under 1e-12.
    if bool(product.detach().amin() > torch.finfo(a.dtype).tiny * 1e13):
        return _log(product) + (shift_a + shift_b).squeeze(-1)
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
