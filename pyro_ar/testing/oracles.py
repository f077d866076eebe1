r"""What the checks stand on: a small vocabulary, independent of the library under test.

Nothing here imports `pyro_ar.joint`: a joint is whatever behaves like one. Failures raise
`AssertionError` by hand, since an `assert` would pass silently under `python -O`.
"""

import functools
import math

from collections.abc import Callable
from typing import Any

import pyro
import torch

from pyro.distributions import constraints
from torch import Size, Tensor

from pyro_ar.checks import IntractableError

__all__ = [
    "MAX_STATES", "NotApplicable", "agree", "all_completions", "all_values", "answered_patterns", "can_answer",
    "cells", "check", "code_of", "conditionals", "device_of", "dtype_of", "first_order_of", "has_conditionals", "holds", "in_total", "is_small",
    "left_of", "order_of", "own_values", "per_row", "refuses", "shaped", "size_of", "states_of", "values_and_patterns",
]

MAX_STATES = 4096
"""Joint states up to which the checks enumerate."""

Check = Callable[..., None]


class NotApplicable(Exception):
    """The check asks something that this joint, or this machine, cannot be asked; the message says why."""


def check(function: Check) -> Check:
    """Make a function of a joint a check: seeded, validating, and leaving no trace behind."""

    @functools.wraps(function)
    def run(joint: Any, **options: Any) -> None:
        device = device_of(joint)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), pyro.get_param_store().scope(), pyro.validation_enabled(True):
            torch.manual_seed(0)
            function(joint, **options)

    return run


# Saying what is wrong.


def holds(ok: bool | Tensor, what: str) -> None:
    """Fail with `what` unless `ok`."""
    if not bool(ok):
        raise AssertionError(what)


def agree(actual: Tensor, expected: Tensor, what: str, *, exactly: bool = False, loosely: float = 1.0) -> None:
    """Fail unless the two have one shape and agree, to the square root of the precision."""
    close = 0.0
    for t in (actual, expected):
        close = max(close, math.sqrt(torch.finfo(t.dtype).eps) if t.is_floating_point() else 0.0)
    close = 0.0 if exactly else close * loosely
    torch.testing.assert_close(actual, expected, atol=close, rtol=close, check_dtype=False,
                               msg=lambda message: f"{what}: {message}")


def refuses(function: Callable[[], Any], what: str, *words: str) -> None:
    """Fail unless `function` raises a `ValueError` whose message has one of the `words`."""
    try:
        function()
    except ValueError as error:
        named = not words or any(word in str(error) for word in words)
        holds(named, f"the error for {what} should say what was wanted ({' or '.join(map(repr, words))}); says: {error}")
    except Exception as error:
        raise AssertionError(f"{what} should raise a ValueError; raised {error!r}") from error
    else:
        raise AssertionError(f"{what} was accepted; it should raise a ValueError")


# The joint and its shapes.


def dtype_of(joint: Any) -> torch.dtype:
    """That of its floating tensors."""
    return next(t.dtype for t in joint.tensors.values() if t.is_floating_point())


def device_of(joint: Any) -> torch.device:
    """That of its tensors."""
    return next(iter(joint.tensors.values())).device


def size_of(joint: Any) -> int:
    """Number of variables."""
    return math.prod(joint.event_shape)


def cells(t: Tensor, joint: Any) -> Tensor:
    """`(*left, *event)` as `(*left, n)`."""
    return t.reshape((*left_of(t, joint), size_of(joint)))


def shaped(t: Tensor, joint: Any) -> Tensor:
    """`(*left, n)` as `(*left, *event)`."""
    return t.reshape(t.shape[:-1] + joint.event_shape)


def left_of(t: Tensor, joint: Any) -> Size:
    """Sample and batch shape of a value."""
    return t.shape[: t.ndim - len(joint.event_shape)]


def per_row(t: Tensor, joint: Any) -> Tensor:
    """`(rows, *event)` as `(rows, 1, ..., *event)`, to serve every entry of the batch."""
    return t.reshape(len(t), *[1] * len(joint.batch_shape), *joint.event_shape)


def states_of(joint: Any) -> tuple[int, ...]:
    """Numbers of states, of a discrete joint."""
    if joint.num_states is None:
        raise NotApplicable("the joint is continuous: its values have no states")
    return tuple(joint.num_states)


def is_small(joint: Any) -> bool:
    """Discrete, with few enough values to list."""
    return joint.num_states is not None and math.prod(joint.num_states) <= MAX_STATES


def all_values(joint: Any) -> Tensor:
    """Every value of a discrete joint, `(prod K, 1, ..., *event)`: a Cartesian product of our own."""
    states = states_of(joint)
    if math.prod(states) > MAX_STATES:
        raise NotApplicable(f"{math.prod(states):.3g} joint states are more than the checks enumerate ({MAX_STATES})")
    columns = [torch.arange(k, dtype=dtype_of(joint), device=device_of(joint)) for k in states]
    return per_row(torch.cartesian_prod(*columns).reshape(-1, len(states)), joint)


def all_completions(joint: Any, x: Tensor, visible: Tensor) -> Tensor | None:
    """Every value that is `x (*B, *E)` where `visible (n,)`: `(completions, *B, *E)`; None if too many."""
    states = states_of(joint)
    hidden = (~visible).nonzero().squeeze(-1).tolist()
    if math.prod(states[i] for i in hidden) > MAX_STATES:
        return None
    whole = cells(x, joint).expand(*joint.batch_shape, -1)
    if not hidden:
        return shaped(whole, joint).unsqueeze(0)
    columns = [torch.arange(states[i], dtype=whole.dtype, device=whole.device) for i in hidden]
    product = torch.cartesian_prod(*columns).reshape(-1, len(hidden))
    whole = whole.expand(len(product), *whole.shape).clone()
    whole[..., hidden] = product.reshape(len(product), *[1] * len(joint.batch_shape), len(hidden))
    return shaped(whole, joint)


def conditionals(joint: Any, x: Tensor) -> Tensor:
    """Log p(x_i | before i), `(*left, n)`."""
    try:
        return cells(joint.conditional_log_prob(x), joint)
    except IntractableError as error:
        raise NotApplicable(f"the joint has no exact conditionals: {error}") from error


def has_conditionals(joint: Any, x: Tensor) -> bool:
    """Whether the joint has exact conditionals."""
    try:
        conditionals(joint, x)
    except NotApplicable:
        return False
    return True


def own_values(joint: Any, x: Tensor, i: int, *, points: int = 3001) -> tuple[Tensor, Tensor]:
    """`x` with cell `i` at every state, or on a wide grid of so many points; and the log weight of each.

    Returns:
        Values `(G, *left, *event)`, and log weights that broadcast to `(G, *left)`.
    """
    many = joint.num_states
    if many is None:
        return _on_grid(joint, x, i, points)
    states = torch.arange(many[i], dtype=x.dtype, device=x.device)
    flat = cells(x, joint).expand(many[i], *left_of(x, joint), -1).clone()
    flat[..., i] = states.reshape(-1, *[1] * (flat.ndim - 2))
    return shaped(flat, joint), flat.new_zeros(flat.shape[:1] + (1,) * (flat.ndim - 2))


def _on_grid(joint: Any, x: Tensor, i: int, points: int) -> tuple[Tensor, Tensor]:
    """A grid t = centre + scale sinh(u): fine in the middle, hundreds of deviations wide."""
    reach = 12.0 if points > 1000 else 5.0  # a coarser grid gives up the far tails
    draws = cells(joint.sample((401,)), joint)[..., i]
    centre, scale = draws.median(0).values, (draws.quantile(0.9, 0) - draws.quantile(0.1, 0)).clamp(min=1e-6)
    u = torch.linspace(-reach, reach, points, dtype=x.dtype, device=x.device)
    extra = len(left_of(x, joint)) - len(joint.batch_shape)
    column = u.reshape(-1, *[1] * (extra + len(joint.batch_shape)))
    t = centre + scale * column.sinh()
    log_weight = (scale * column.cosh() * (2 * reach / (points - 1))).log()
    flat = cells(x, joint).expand(points, *left_of(x, joint), -1).clone()
    inside = flat.clone()
    inside[..., i] = t
    support = joint.support
    support = support.base_constraint if isinstance(support, constraints.independent) else support
    good = support.check(shaped(inside, joint))
    good = cells(good, joint)[..., i] if good.ndim > flat.ndim - 1 else good
    flat[..., i] = torch.where(good, inside[..., i], flat[..., i])
    return shaped(flat, joint), log_weight.masked_fill(~good, -math.inf)


def in_total(log_p: Tensor, log_weight: Tensor) -> Tensor:
    """Log of the sum, or of the integral, over the first dimension."""
    return (log_p + log_weight).logsumexp(0)


def order_of(joint: Any) -> Tensor:
    """The order of the chain rule, `(n,)` or `(*O, n)`; of a joint without one (a mixture over orders), that of the event."""
    try:
        return joint.order
    except IntractableError:
        return torch.arange(size_of(joint), device=device_of(joint))


def first_order_of(joint: Any) -> list[int]:
    """One order of the chain rule: the first where the batch has several."""
    return order_of(joint).reshape(-1, size_of(joint))[0].tolist()


# Visible patterns.


def can_answer(joint: Any, visible: Tensor, x: Tensor) -> bool:
    """Whether the joint answers this pattern `(n,)`, or honestly refuses."""
    try:
        joint.marginal(shaped(visible, joint)).log_prob(x)
        joint.given(x, shaped(visible, joint))
    except IntractableError:
        return False
    return True


def answered_patterns(joint: Any, x: Tensor, *, count: int = 12) -> Tensor:
    """Random visible patterns that the joint answers, `(patterns, n)`; the all-hidden and all-visible ones first.

    Args:
        joint: The joint.
        x: One possible value, `(*B, *E)`.
        count: How many random patterns to try.
    """
    n, device = size_of(joint), device_of(joint)
    orders = order_of(joint).reshape(-1, n)
    tried = [torch.zeros(n, dtype=torch.bool, device=device), torch.ones(n, dtype=torch.bool, device=device)]
    for length in sorted({1, n // 2, n - 1} - {0, n}):
        for order in orders[:8]:
            prefix = torch.zeros(n, dtype=torch.bool, device=device)
            prefix[order[:length]] = True
            tried.append(prefix)
    for number in range(count):
        seen = torch.rand(n, device=device) < torch.rand((), device=device)
        if number % 3 == 0:  # few hidden, so that large joints can be enumerated too
            seen = torch.ones_like(seen)
            seen[torch.randperm(n, device=device)[: 1 + number % 2]] = False
        tried.append(seen)
    answered = [v for v in torch.stack(tried).unique(dim=0) if can_answer(joint, v, x)]
    partly = [v for v in answered if v.any() and not v.all()]
    holds(len(partly) > 0 or n == 1, "no partly visible pattern is answered, not even a prefix of joint.order")
    return torch.stack([v for v in answered if not (v.any() and not v.all())] + partly)


def code_of(x: Tensor, joint: Any) -> Tensor:
    """Number of each value in the list of `all_values`."""
    states = states_of(joint)
    strides = [math.prod(states[i + 1:]) for i in range(len(states))]
    return (cells(x, joint).long() * torch.tensor(strides, device=x.device)).sum(-1)


def values_and_patterns(joint: Any, count: int = 12) -> tuple[Tensor, Tensor]:
    """Values `(R, *B, *E)` and as many answered patterns `(R, n)`, the all-hidden and all-visible ones among them."""
    patterns = answered_patterns(joint, joint.sample(), count=count)
    return joint.sample((len(patterns),)), patterns
