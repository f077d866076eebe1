r"""Questions to a discrete joint that has no better way: all states of the cells in question, one after the other."""

import contextlib
import math

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch

from torch import Tensor

from pyro_ar.checks import IntractableError, require

__all__ = ["MAX_ENUMERABLE", "all_states", "entropy_of", "hidden_states", "likeliest_of", "moments_of", "most_states", "refuse", "up_to",
           "visible_states"]

# Enumeration inside Pyro multiplies with every plate above it: 4096 values are a tensor, 2^16 a trap.
MAX_ENUMERABLE = 4096

_most: ContextVar[int] = ContextVar("most_states", default=MAX_ENUMERABLE)


def most_states() -> int:
    """How many joint states are summed over before a joint refuses: 4096, or what `up_to` says."""
    return _most.get()


@contextlib.contextmanager
def up_to(states: int) -> Iterator[None]:
    """What is asked inside may sum over so many joint states of hidden cells, not 4096.

    Each of them costs a chain of nets one evaluation of `log_prob` for every row; the error of a refused question says how many there are. Rows and states are
    taken in turns, so that time grows and memory hardly does. Pyro's own enumeration of sites keeps its 4096.

    Args:
        states: 1 or more.

    Raises:
        ValueError: No whole number above 0.

    Example:
        >>> from pyro_ar.neural import FVSBN
        >>> joint, visible = FVSBN(14)(), torch.arange(14) == 13
        >>> with up_to(2**13):
        ...     joint.marginal(visible).method
        array('enumeration', dtype='<U11')
    """
    require(isinstance(states, int) and not isinstance(states, bool) and states >= 1, "up_to wants a whole number of states, 1 or more", states)
    token = _most.set(states)
    try:
        yield
    finally:
        _most.reset(token)


def all_states(num_states: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The Cartesian product of the states, last variable fastest, `(prod K, n)`."""
    flat = torch.arange(math.prod(num_states), device=device)
    if not num_states:
        return torch.zeros(1, 0, dtype=dtype, device=device)
    return torch.stack(torch.unravel_index(flat, num_states), -1).to(dtype)


def refuse(joint: Any, what: str, why: str = "") -> IntractableError:
    """An error that says what is not to be had, and what is."""
    return IntractableError(f"{type(joint).__name__} has no exact {what}{why}. What works: the same of draws, from sample(); of joints "
                            "that are small enough, enumeration")


def hidden_states(joint: Any, x: Tensor, visible: Tensor, answer: Callable[[Tensor, Tensor], Any], what: str) -> Any:
    """`answer(values, log_p)` over all completions of `x`: `(S, *L, *E)`, and their logarithms of probability `(S, *L)`."""
    values = _product(joint, x, ~visible, what)
    if values is None:
        return _in_halves(lambda x, v: hidden_states(joint, x, v, answer, what), joint, x, visible, what)
    event = len(joint.event_shape)
    same = ((values == x) | ~visible).flatten(values.ndim - event).all(-1)
    log_p = torch.where(same, joint.log_density(values).expand(same.shape), -math.inf)
    return answer(values, log_p.log_softmax(0))


def visible_states(joint: Any, visible: Tensor, answer: Callable[[Tensor, Tensor], Any], what: str) -> Any:
    """As `hidden_states`, over what the visible cells may be; hidden cells hold zeros."""
    zeros = torch.zeros(visible.shape, dtype=joint.dtype, device=visible.device)
    values = _product(joint, zeros, visible, what)
    if values is None:
        return _in_halves(lambda _, v: visible_states(joint, v, answer, what), joint, zeros, visible, what)
    event = len(joint.event_shape)
    once = ((values == 0) | visible).flatten(values.ndim - event).all(-1)
    log_p = joint.log_marginal(values, visible.expand(values.shape)).expand(once.shape)
    return answer(values, torch.where(once, log_p, -math.inf))


def _product(joint: Any, x: Tensor, asked: Tensor, what: str) -> Tensor | None:
    """`x` with every joint state of the cells that some row asks for, `(S, *L, *E)`; None where those are too many."""
    if joint.num_states is None:
        raise refuse(joint, what, " in closed form")
    n = math.prod(joint.event_shape)
    cells = asked.reshape(-1, n).any(0) if asked.numel() else torch.zeros(n, dtype=torch.bool, device=x.device)
    sizes = tuple(k for k, c in zip(joint.num_states, cells.tolist(), strict=True) if c)
    if math.prod(sizes) > most_states():
        return None
    states = all_states(sizes, x.dtype, x.device)
    left = x.shape[: x.ndim - len(joint.event_shape)]
    values = x.reshape(*left, n).expand(len(states), *left, n).clone()
    values[..., cells] = states.reshape(len(states), *[1] * len(left), -1).expand(*values.shape[:-1], -1)
    return values.reshape(len(states), *x.shape)


def _in_halves(function: Callable[[Tensor, Tensor], Any], joint: Any, x: Tensor, visible: Tensor, what: str) -> Any:
    """Rows may ask for few cells each and for many together."""
    if x.ndim - len(joint.event_shape) <= len(joint.batch_shape) or len(x) < 2:
        most = f" in closed form, and more than {most_states()} joint states to sum over (pyro_ar.enumeration.up_to raises that)"
        raise refuse(joint, what, most)
    half = len(x) // 2
    parts = [function(x[:half], visible[:half]), function(x[half:], visible[half:])]
    return torch.cat(parts) if isinstance(parts[0], Tensor) else tuple(map(torch.cat, zip(*parts, strict=True)))


def moments_of(event: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Mean and variance of each cell."""
    def answer(values: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        p = log_p.exp().reshape(*log_p.shape, *[1] * event)
        mean = (p * values).sum(0)
        return mean, (p * (values - mean).square()).sum(0)

    return answer


def entropy_of(values: Tensor, log_p: Tensor) -> Tensor:
    """In nats."""
    return -(log_p.exp() * log_p.masked_fill(log_p == -math.inf, 0.0)).sum(0)


def likeliest_of(values: Tensor, log_p: Tensor) -> Tensor:
    """The first of the most probable values."""
    best = log_p.argmax(0)
    return values.gather(0, best.reshape(1, *best.shape, *[1] * (values.ndim - log_p.ndim)).expand(1, *values.shape[1:])).squeeze(0)
