r"""`Joint`: what every joint of this library promises, and its two queries, `Marginal` and `Given`.

The base does the shapes, the checks and the hidden cells once, so that a concrete joint is
left with the mathematics: it implements the hooks below on values that are already checked,
floating, and free of NaN.

======================  =====================================================================
hook                    what it returns
======================  =====================================================================
`support`               the constraint of a value, as in torch
`log_density(x)`        log density, broadcastable to `sample + batch`
`conditional_log_prob`  log p(x_i | variables before i in `order`), event-shaped
`draw(shape)`           one tensor of shape `shape + event`, floating
`methods(visible)`      a name per pattern, or `IntractableError`
`log_marginal(x, v)`    log p(x_visible); `x` holds zeros where hidden
`complete(x, v)`        `x` with its hidden cells drawn; differentiable where `has_rsample`
`most_likely(x, v)`     `x` with its hidden cells at their most likely joint value
`moments(x, v)`         means and variances of all cells given the visible ones
`entropy_given(x, v)`   entropy of the hidden cells given the visible ones
======================  =====================================================================

The last three are enumerations of few states unless overridden.

Parameters are stored under `tensors` and never expanded: `expand` only changes `batch_shape`, so
plates cost nothing.
"""

import math

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from torch import Size, Tensor
from torch.distributions import constraints

from pyro_ar.arrays import Array, as_tensor
from pyro_ar.checks import broadcast, counted, one_line, require, require_exact_states
from pyro_ar.enumeration import (
    MAX_ENUMERABLE,
    all_states,
    entropy_of,
    hidden_states,
    likeliest_of,
    moments_of,
    visible_states,
)
from pyro_ar.expandable import Expandable, check_readable, support_of_cells
from pyro_ar.queries import Given, Marginal

__all__ = ["Joint"]


def _all_bits(x: Tensor) -> bool:
    """Whether each number is 0 or 1, in a fourth of the time of the constraint's own check; NaN, infinity and all between leave a trace."""
    return x.numel() > 0 and bool(x.detach().sub(1).mul_(x.detach()).abs_().amax() == 0)


class Joint(Expandable):
    r"""Joint distribution of the variables of one event.

    `log_prob` is exact, and `marginal` and `given` are what the joint itself says, or raise
    `IntractableError`.

    Shapes:
        - `batch_shape` `(*B)`, `event_shape` `(*E)`.
        - A value is `(*S, *B, *E)`, integer or floating; samples are floating (state k is `k.0`). Real values are rounded to the dtype
          of the joint, and a dtype that would round one state to another is refused.
          NumPy arrays and data frames are read as tensors of the same numbers (`pyro_ar.arrays.as_tensor`), patterns too.
        - `log_prob` is `(*S, *B)` in nats; `conditional_log_prob` is `(*S, *B, *E)`.
        - A pattern `visible` broadcasts to `(*S, *B, *E)`; True = seen.
    """

    coherent = True
    """All the marginals are those of one joint. False for any-order families."""

    def __init__(self, tensors: Mapping[str, Tensor], batch_shape: Size, event_shape: Size,
                 *, validate_args: bool | None = None) -> None:
        self._tensors = dict(tensors)
        validates = self._validate_args if validate_args is None else validate_args
        check_readable(validates, type(self).__name__, *tensors.values())
        # torch cannot check a tensor without elements, of a batch of none
        checks = validates and all(t.numel() for t in tensors.values())
        super().__init__(Size(batch_shape), Size(event_shape), validate_args=checks)
        self._validate_args = validates

    # The hooks: a concrete joint answers these.

    def log_density(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def conditional_log_prob(self, x: Array) -> Tensor:
        r"""Log p(x_i | the variables before i in `order`), in nats, `(*S, *B, *E)`."""
        raise NotImplementedError

    def draw(self, shape: Size) -> Tensor:
        raise NotImplementedError

    def methods(self, visible: Tensor) -> np.ndarray:
        raise NotImplementedError

    def log_marginal(self, x: Tensor, visible: Tensor) -> Tensor:
        raise NotImplementedError

    def complete(self, x: Tensor, visible: Tensor) -> Tensor:
        raise NotImplementedError

    def most_likely(self, x: Tensor, visible: Tensor) -> Tensor:
        return hidden_states(self, x, visible, likeliest_of, "mode")

    def moments(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = hidden_states(self, x, visible, moments_of(len(self.event_shape)), "mean and variance")
        return torch.where(visible, x, mean), torch.where(visible, 0, variance)

    def entropy_given(self, x: Tensor, visible: Tensor) -> Tensor:
        return hidden_states(self, x, visible, entropy_of, "entropy")

    def marginal_mode(self, visible: Tensor) -> Tensor:
        """The most likely value of the visible cells alone, anything where hidden."""
        if bool(visible.all()):
            return self.most_likely(*self.unseen(visible.shape))
        return visible_states(self, visible, likeliest_of, "mode of some cells")

    def marginal_entropy(self, visible: Tensor) -> Tensor:
        if bool(visible.all()):
            return self.entropy_given(*self.unseen(visible.shape))
        return visible_states(self, visible, entropy_of, "entropy of some cells")

    def answering(self, visible: Tensor) -> "Joint":
        """The joint that answers for this pattern: itself, except in any-order families."""
        return self

    @property
    def num_parameters(self) -> int:
        """Free parameters of one joint of the batch."""
        raise NotImplementedError

    # What follows from them.

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the joint was made of, by the names of its constructor."""
        return dict(self._tensors)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Joint":
        """The same joint made of other tensors: another dtype or device, more batch dimensions."""
        make: Any = type(self)
        return make(**tensors)

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self._tensors.values())).dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self._tensors.values())).device

    @property
    def order(self) -> Tensor:
        """The order of the chain rule: positions in the flattened event, first one first."""
        return torch.arange(math.prod(self.event_shape), device=self.device)

    @property
    def num_states(self) -> tuple[int, ...] | None:
        """States of each variable of the flattened event; None for continuous joints."""
        return None

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return self.num_states is not None and math.prod(self.num_states) <= MAX_ENUMERABLE

    def enumerate_support(self, expand: bool = True) -> Tensor:
        r"""All values, `(prod K, *B, *E)`; the batch dimensions are 1 unless `expand`."""
        if not self.has_enumerate_support:
            raise NotImplementedError(
                f"{type(self).__name__} over {self.num_states or 'real values'} is not enumerated: "
                f"more than {MAX_ENUMERABLE} values")
        x = all_states(self.num_states or (), self.dtype, self.device)
        x = x.reshape(len(x), *[1] * len(self.batch_shape), *self.event_shape)
        return x.expand(len(x), *self.batch_shape, *self.event_shape) if expand else x

    def log_prob(self, value: Array) -> Tensor:
        x = self.check_value(value)
        return self._spread(self.log_density(x), x)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            return self.draw(Size(sample_shape) + self.batch_shape)

    @property
    def mean(self) -> Tensor:
        """Of every cell (its state, of discrete ones), `(*B, *E)`, differentiable.

        Raises:
            IntractableError: There is no closed form, and too many states to enumerate.
        """
        return self.moments(*self.unseen(self.batch_shape + self.event_shape))[0]

    @property
    def variance(self) -> Tensor:
        """Of every cell, `(*B, *E)`; as `mean`."""
        return self.moments(*self.unseen(self.batch_shape + self.event_shape))[1]

    @property
    def mode(self) -> Tensor:
        """The most likely value, `(*B, *E)`; the first one where several tie.

        Raises:
            IntractableError: The joint has no exact one.
        """
        with torch.no_grad():
            return self.most_likely(*self.unseen(self.batch_shape + self.event_shape))

    def entropy(self) -> Tensor:
        """In nats, `(*B)`; differential entropy where values are real. Raises as `mean`."""
        return self.entropy_given(*self.unseen(self.batch_shape + self.event_shape)).expand(self.batch_shape)

    def marginal(self, visible: Array) -> "Marginal":
        r"""The joint of the visible cells alone.

        Args:
            visible: bool, broadcastable to `sample + batch + event`; True = seen.

        Raises:
            ValueError: `visible` has the wrong type or shape.
            IntractableError: There is no exact answer for this pattern.
        """
        return Marginal(self, visible)

    def given(self, x: Array, visible: Array) -> "Given":
        r"""Distribution over the completions of `x`: visible cells come back unchanged.

        Raises:
            ValueError: Bad shapes or values, or evidence of probability zero.
            IntractableError: There is no exact answer for this pattern.
        """
        return Given(self, x, visible)

    def __repr__(self) -> str:
        """What it is over, in one line."""
        try:
            parameters = counted(self.num_parameters, "parameter")
        except NotImplementedError:
            parameters = ""
        return one_line(type(self).__name__, *self.described(), parameters)

    def described(self) -> list[str]:
        """The parts of `repr`: variables and states, what the class adds, and the batch."""
        n, states = math.prod(self.event_shape), self.num_states
        of = "" if states is None else f" of {states[0]}" if len(set(states)) == 1 else f" of {min(states)} to {max(states)}"
        shape = f" ({'x'.join(map(str, self.event_shape))})" if len(self.event_shape) > 1 else ""
        batch = f"batch {tuple(self.batch_shape)}" if self.batch_shape else ""
        kind = " real" if states is None else ""
        return [counted(n, f"{kind} variable".strip()) + shape + (f"{of} states" if of else ""), *self._particulars(), batch]

    def _particulars(self) -> list[str]:
        """What `repr` says of this class beyond its variables."""
        return []

    # Checks and shapes, shared by all.

    def unseen(self, shape: Size) -> tuple[Tensor, Tensor]:
        """A value and a pattern of which nothing is seen."""
        x = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return x, torch.zeros_like(x, dtype=torch.bool)

    def _spread(self, answer: Tensor, x: Tensor) -> Tensor:
        """Give an answer per row all of `sample + batch`."""
        left = x.shape[: x.ndim - len(self.event_shape)]
        return answer.expand(torch.broadcast_shapes(left, self.batch_shape))

    def check_value(self, value: Any, visible: Tensor | None = None) -> Tensor:
        """The value as a floating tensor, checked; where hidden, never read and set to zero."""
        name, event = type(self).__name__, tuple(self.event_shape)
        if not isinstance(value, Tensor):
            value = as_tensor(value, self.device)
        require(isinstance(value, Tensor), f"{name} wants a tensor, an array or a data frame", value)
        right = value.shape[value.ndim - len(event):] if value.ndim >= len(event) else None
        require(right == self.event_shape, f"{name} wants values that end in its event shape {event}",
                value)
        left = value.shape[: value.ndim - len(event)]
        broadcast(f"{name} wants values whose left dimensions broadcast with its batch shape {tuple(self.batch_shape)}", left, self.batch_shape, came=(value,))
        states = self.num_states
        if states is None:
            x = value.to(self.dtype)
        else:
            require_exact_states(max(states, default=None), value.dtype, f"{name}, of its values,")
            # whole numbers become single precision at least: a small dtype would round some to states that they are not
            x = value if value.is_floating_point() else value.to(torch.promote_types(self.dtype, torch.float32))
        if visible is not None:
            x = torch.where(visible, x, 0)
        if self._validate_args:
            check_readable(True, name, x, visible)
            self._check_support(x, visible)
        return x

    def _check_support(self, x: Tensor, visible: Tensor | None) -> None:
        support = support_of_cells(self.support)
        if support is constraints.boolean and _all_bits(x):
            return
        good = support.check(x)
        if self.num_states is None:  # no state is NaN or infinite
            good = good & x.isfinite()
        if visible is not None:
            good = good | ~visible
        if good.numel() and not bool(good.view(torch.uint8).amin()):  # `all` of bools takes 25 times as long
            index = tuple(int(i) for i in (~good).nonzero()[0])
            seen = ", NaN only where hidden" if visible is not None else ", no NaN"
            require(False, f"{type(self).__name__} wants {self._support_in_words()}{seen}",
                    float(x.detach().expand(good.shape)[index]), f"at index {index}")

    def _support_in_words(self) -> str:
        if self.num_states is None:
            return f"finite values in its support {self.support}"
        if len(set(self.num_states)) == 1:
            return f"every variable in the states 0 to {self.num_states[0] - 1}"
        most = ", ".join(str(k - 1) for k in self.num_states[:8])
        more = ", ..." if len(self.num_states) > 8 else ""
        return f"whole numbers from 0 to at most ({most}{more})"
