r"""`Joint`: what every joint of this library promises, and its two queries, `Marginal` and `Given`.

The base does the shapes, the checks and the hidden cells once, so that a concrete joint is
left with the mathematics: it implements the hooks below on values that are already checked,
floating, and free of NaN.

=====================  =====================================================================
hook                   what it returns
=====================  =====================================================================
`support`              the constraint of a value, as in torch
`_log_prob(x)`         log density, broadcastable to `sample + batch`
`conditional_log_prob` log p(x_i | variables before i in `order`), event-shaped
`_sample(shape)`       one tensor of shape `shape + event`, floating
`_method(visible)`     a name per pattern, or `IntractableError`
`_log_marginal(x, v)`  log p(x_visible); `x` holds zeros where hidden
`_complete(x, v)`      `x` with its hidden cells drawn; differentiable where `has_rsample`
`_most_likely(x, v)`   `x` with its hidden cells at their most likely joint value
`_moments(x, v)`       means and variances of all cells given the visible ones
`_entropy(x, v)`       entropy of the hidden cells given the visible ones
=====================  =====================================================================

The last three are enumerations of few states unless overridden.

Parameters are stored under `tensors` and never expanded: `expand` only changes `batch_shape`, so
plates cost nothing.
"""

import copy
import math

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch

from pyro.distributions import Categorical, TorchDistribution, constraints
from torch import Size, Tensor
from torch.distributions import biject_to

from pyro_ar.arrays import Array, as_tensor
from pyro_ar.checks import IntractableError, counted, one_line, require, require_exact_states
from pyro_ar.enumeration import (
    MAX_ENUMERABLE,
    all_states,
    entropy_of,
    hidden_states,
    likeliest_of,
    moments_of,
    refuse,
    visible_states,
)
from pyro_ar.sites import NoEvidence, PartlyFixed, latent_site
from pyro_ar.transforms import is_mapped
from pyro_ar.visible import check_visible

__all__ = ["MAX_ENUMERABLE", "Given", "Joint", "Latent", "Marginal"]


class _Expandable(TorchDistribution):
    """A distribution whose tensors broadcast, so that expanding is a change of `batch_shape`."""

    arg_constraints: dict[str, constraints.Constraint] = {}

    def expand(self, batch_shape: Size | Sequence[int], _instance: object = None) -> Self:
        batch_shape = Size(batch_shape)
        try:
            fits = torch.broadcast_shapes(self.batch_shape, batch_shape) == batch_shape
        except RuntimeError:
            fits = False
        require(fits, f"batch shape {tuple(self.batch_shape)} must expand to the one asked for",
                tuple(batch_shape))
        new = copy.copy(self)  # keeps _validate_args: validation stays on inside plates
        new._batch_shape = batch_shape
        return new

    @classmethod
    def infer_shapes(cls, **arg_shapes: Any) -> tuple[Size, Size]:
        r"""`(batch_shape, event_shape)` from the arguments of the constructor, each tensor given by its shape; nothing is made.

        What is no tensor is given as itself (numbers of states, parents, a net). A joint is given as itself or by its own two
        shapes, and several tensors or joints by a list.

        Raises:
            NotImplementedError: These arguments do not say it.
            ValueError: Shapes that do not fit each other.
        """
        raise NotImplementedError(f"the shapes of {cls.__name__} do not follow from those of tensors alone; make one and ask it")

    @property
    def mean(self) -> Tensor:
        raise refuse(self, "mean")

    @property
    def variance(self) -> Tensor:
        raise refuse(self, "variance")

    @property
    def mode(self) -> Tensor:
        raise refuse(self, "mode")

    def entropy(self) -> Tensor:
        raise refuse(self, "entropy")


class Joint(_Expandable):
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
        _check_readable(validates, type(self).__name__, *tensors.values())
        # torch cannot check a tensor without elements, of a batch of none
        checks = validates and all(t.numel() for t in tensors.values())
        super().__init__(Size(batch_shape), Size(event_shape), validate_args=checks)
        self._validate_args = validates

    # The hooks: a concrete joint answers these.

    def _log_prob(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def conditional_log_prob(self, x: Array) -> Tensor:
        r"""Log p(x_i | the variables before i in `order`), in nats, `(*S, *B, *E)`."""
        raise NotImplementedError

    def _sample(self, shape: Size) -> Tensor:
        raise NotImplementedError

    def _method(self, visible: Tensor) -> np.ndarray:
        raise NotImplementedError

    def _log_marginal(self, x: Tensor, visible: Tensor) -> Tensor:
        raise NotImplementedError

    def _complete(self, x: Tensor, visible: Tensor) -> Tensor:
        raise NotImplementedError

    def _most_likely(self, x: Tensor, visible: Tensor) -> Tensor:
        return hidden_states(self, x, visible, likeliest_of, "mode")

    def _moments(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = hidden_states(self, x, visible, moments_of(len(self.event_shape)), "mean and variance")
        return torch.where(visible, x, mean), torch.where(visible, 0, variance)

    def _entropy(self, x: Tensor, visible: Tensor) -> Tensor:
        return hidden_states(self, x, visible, entropy_of, "entropy")

    def _marginal_mode(self, visible: Tensor) -> Tensor:
        """The most likely value of the visible cells alone, anything where hidden."""
        if bool(visible.all()):
            return self._most_likely(*self._unseen(visible.shape))
        return visible_states(self, visible, likeliest_of, "mode of some cells")

    def _marginal_entropy(self, visible: Tensor) -> Tensor:
        if bool(visible.all()):
            return self._entropy(*self._unseen(visible.shape))
        return visible_states(self, visible, entropy_of, "entropy of some cells")

    def _answering(self, visible: Tensor) -> "Joint":
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
        x = self._check_value(value)
        return self._spread(self._log_prob(x), x)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            return self._sample(Size(sample_shape) + self.batch_shape)

    @property
    def mean(self) -> Tensor:
        """Of every cell (its state, of discrete ones), `(*B, *E)`, differentiable.

        Raises:
            IntractableError: There is no closed form, and too many states to enumerate.
        """
        return self._moments(*self._unseen(self.batch_shape + self.event_shape))[0]

    @property
    def variance(self) -> Tensor:
        """Of every cell, `(*B, *E)`; as `mean`."""
        return self._moments(*self._unseen(self.batch_shape + self.event_shape))[1]

    @property
    def mode(self) -> Tensor:
        """The most likely value, `(*B, *E)`; the first one where several tie.

        Raises:
            IntractableError: The joint has no exact one.
        """
        with torch.no_grad():
            return self._most_likely(*self._unseen(self.batch_shape + self.event_shape))

    def entropy(self) -> Tensor:
        """In nats, `(*B)`; differential entropy where values are real. Raises as `mean`."""
        return self._entropy(*self._unseen(self.batch_shape + self.event_shape)).expand(self.batch_shape)

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
        return one_line(type(self).__name__, *self._described(), parameters)

    def _described(self) -> list[str]:
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

    def _unseen(self, shape: Size) -> tuple[Tensor, Tensor]:
        """A value and a pattern of which nothing is seen."""
        x = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return x, torch.zeros_like(x, dtype=torch.bool)

    def _spread(self, answer: Tensor, x: Tensor) -> Tensor:
        """Give an answer per row all of `sample + batch`."""
        left = x.shape[: x.ndim - len(self.event_shape)]
        return answer.expand(torch.broadcast_shapes(left, self.batch_shape))

    def _check_value(self, value: Any, visible: Tensor | None = None) -> Tensor:
        """The value as a floating tensor, checked; where hidden, never read and set to zero."""
        name, event = type(self).__name__, tuple(self.event_shape)
        if not isinstance(value, Tensor):
            value = as_tensor(value, self.device)
        require(isinstance(value, Tensor), f"{name} wants a tensor, an array or a data frame", value)
        right = value.shape[value.ndim - len(event):] if value.ndim >= len(event) else None
        require(right == self.event_shape, f"{name} wants values that end in its event shape {event}",
                value)
        left = value.shape[: value.ndim - len(event)]
        try:
            torch.broadcast_shapes(left, self.batch_shape)
        except RuntimeError:
            require(False, f"{name} wants values whose left dimensions broadcast with its batch "
                    f"shape {tuple(self.batch_shape)}", value)
        if self.num_states is None:
            x = value.to(self.dtype)
        else:
            require_exact_states(max(self.num_states, default=None), value.dtype, f"{name}, of its values,")
            # whole numbers become single precision at least: a small dtype would round some to states that they are not
            x = value if value.is_floating_point() else value.to(torch.promote_types(self.dtype, torch.float32))
        if visible is not None:
            x = torch.where(visible, x, 0)
        if self._validate_args:
            _check_readable(True, name, x, visible)
            self._check_support(x, visible)
        return x

    def _check_support(self, x: Tensor, visible: Tensor | None) -> None:
        good = _of_cells(self.support).check(x) & x.isfinite()
        if visible is not None:
            good = good | ~visible
        if not bool(good.all()):
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


class Marginal(_Expandable):
    r"""log p(x_visible) of a joint, for one pattern or one per row.

    A density over the visible cells only: what is stored under a hidden cell is never read, so
    NaN there changes neither value nor gradient. Samples carry NaN where hidden.

    Attributes:
        method: How each pattern was answered, an array of names of the pattern's left shape:
            'prefix', 'elimination', 'enumeration', 'closed form' or 'visible-first chain'.
    """

    has_enumerate_support = False

    def __init__(self, joint: Joint, visible: Array, *, validate_args: bool | None = None) -> None:
        self.joint = joint
        visible = visible if isinstance(visible, Tensor) else as_tensor(visible, joint.device)
        self.visible = check_visible(visible, joint.event_shape)
        left = self.visible.shape[: self.visible.ndim - len(joint.event_shape)]
        self.method = joint._method(self.visible)
        self._answering = joint._answering(self.visible)
        super().__init__(_broadcast("the pattern", left, joint.batch_shape), joint.event_shape,
                         validate_args=joint._validate_args if validate_args is None else validate_args)

    def __repr__(self) -> str:
        return one_line("Marginal", _seen(self.visible, self.event_shape), f"of {type(self.joint).__name__}", *self.joint._described())

    @classmethod
    def infer_shapes(cls, *, joint: Any = None, visible: Sequence[int] = ()) -> tuple[Size, Size]:  # type: ignore[override]
        batch, event = shapes_of(cls, joint)
        return _broadcast("the pattern", Size(visible[: max(len(visible) - len(event), 0)]), batch), event

    @property
    def support(self) -> constraints.Constraint | None:
        free = self.joint.support
        if free is None or bool(self.visible.all()):
            return free
        return PartlyFixed(free, self._supports, "a marginal with hidden cells is no latent site, because nothing says where these lie: "
                           "observe it, or sample the joint itself")

    def _supports(self, value: Tensor) -> Tensor:
        return _all_cells(_of_cells(self.joint.support).check(value) | ~self.visible, self.event_shape)

    def log_prob(self, value: Array) -> Tensor:
        if not isinstance(value, Tensor):
            value = as_tensor(value, self.joint.device)
        require(isinstance(value, Tensor) and value.ndim >= len(self.event_shape),
                f"marginal wants a tensor that ends in the event shape {tuple(self.event_shape)}", value)
        joint = self._answering
        left = value.shape[: value.ndim - len(self.event_shape)]
        left = _broadcast("the value", left, self.batch_shape)
        x, visible = _align(joint, value, self.visible)
        answer = joint._log_marginal(x, visible)
        return answer.expand(left)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        x = self._answering.expand(self.batch_shape).sample(sample_shape)
        return torch.where(self.visible, x, math.nan)

    def _whole(self) -> Tensor:
        return self.visible.expand(self.batch_shape + self.event_shape)

    def _cell_moments(self) -> tuple[Tensor, Tensor]:
        joint = self._answering
        try:
            return joint._moments(*joint._unseen(self.batch_shape + self.event_shape))
        except IntractableError:
            return visible_states(joint, self._whole(), moments_of(len(self.event_shape)), "mean and variance of some cells")

    @property
    def mean(self) -> Tensor:
        """Of the visible cells, `(*batch, *event)`, NaN where hidden. Raises as `Joint.mean`."""
        return torch.where(self.visible, self._cell_moments()[0], math.nan)

    @property
    def variance(self) -> Tensor:
        """Of the visible cells, as `mean`."""
        return torch.where(self.visible, self._cell_moments()[1], math.nan)

    @property
    def mode(self) -> Tensor:
        """The most likely value of the visible cells together, `(*batch, *event)`, NaN where hidden. Raises as `Joint.mode`."""
        with torch.no_grad():
            return torch.where(self.visible, self._answering._marginal_mode(self._whole()), math.nan)

    def entropy(self) -> Tensor:
        """Of the visible cells, in nats, `(*batch)`. Raises as `Joint.entropy`."""
        return self._answering._marginal_entropy(self._whole()).expand(self.batch_shape)


class Given(_Expandable):
    r"""p(x | x_visible): completions of a partly seen value, visible cells unchanged.

    `log_prob` is `joint.log_prob - marginal(visible).log_prob` in the same order, and minus
    infinity where a visible cell differs. `mode` is the most likely completion.

    It serves as a guide, as a proposal and with `obs=`. As an unobserved site that a guide or MCMC moves it would have
    density zero wherever a visible cell differs, and is refused: `latent` is its form for that, and `par.impute` the
    call that uses it.

    Raises:
        ValueError: The visible cells have probability zero; or inference moves a site of it off its visible cells.
    """

    has_enumerate_support = False

    def __init__(self, joint: Joint, x: Array, visible: Array,
                 *, validate_args: bool | None = None) -> None:
        marginal = joint.marginal(visible)
        x = x if isinstance(x, Tensor) else as_tensor(x, joint.device)
        self.joint = joint
        self.visible = marginal.visible
        self.method = marginal.method
        self.log_evidence = marginal.log_prob(x)
        impossible = self.log_evidence == -math.inf
        if is_mapped(impossible):  # what cannot be refused is no number
            self.log_evidence = torch.where(impossible, math.nan, self.log_evidence)
        elif bool(impossible.any()):
            error = NoEvidence if joint.num_states is None else ValueError
            raise error("given wants visible cells of positive probability; got probability zero in "
                        f"{int(impossible.sum())} of {impossible.numel()} rows")
        self._answering = marginal._answering
        self._x, self._visible = _align(self._answering, x, self.visible)
        super().__init__(self.log_evidence.shape, joint.event_shape,
                         validate_args=joint._validate_args if validate_args is None else validate_args)

    def __repr__(self) -> str:
        rows = f"batch {tuple(self.batch_shape)}" if self.batch_shape else ""
        return one_line("Given", _seen(self.visible, self.event_shape), rows, f"of {type(self.joint).__name__}", *self.joint._described())

    @classmethod
    def infer_shapes(cls, *, joint: Any = None, x: Sequence[int] = (), visible: Sequence[int] = ()) -> tuple[Size, Size]:  # type: ignore[override]
        batch, event = Marginal.infer_shapes(joint=joint, visible=visible)
        return _broadcast("the value", Size(x[: max(len(x) - len(event), 0)]), batch), event

    @property
    def support(self) -> constraints.Constraint | None:
        free = self.joint.support
        return free if free is None else PartlyFixed(free, self._supports, self._advice)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self._answering.has_rsample

    def _supports(self, value: Tensor) -> Tensor:
        same = _all_cells((value == self._x) | ~self._visible, self.event_shape)
        return same & _all_cells(_of_cells(self.joint.support).check(value), self.event_shape)

    @property
    def _advice(self) -> str:
        if self.joint.num_states is None:
            return ("given(x, visible) is no latent site: its density is zero wherever a visible cell differs. Use given(x, visible).latent(), "
                    "or par.impute(name, joint, x, visible), which also puts the visible cells back")
        return ("given(x, visible) of discrete cells is no latent site: sum the hidden cells out. Observe joint.marginal(visible), or enumerate "
                "a site of the joint itself, its visible cells tied by pyro.factor")

    def log_prob(self, value: Array) -> Tensor:
        joint = self._answering
        x = joint._check_value(value)
        left = _broadcast("the value", x.shape[: x.ndim - len(self.event_shape)], self.batch_shape)
        same = _all_cells((x == self._x) | ~self._visible, self.event_shape)
        if self.joint.num_states is None:  # discrete values may meet the visible cells by chance, and then they count
            site = latent_site()
            require(site is None or bool(same.all()), f"{self._advice} (site {site!r})")
        return torch.where(same, self._log_hidden(x), -math.inf).expand(left)

    def _log_hidden(self, x: Tensor) -> Tensor:
        """Log p of the hidden cells of `x`, whose visible cells are not read."""
        return self._answering._log_prob(torch.where(self._visible, self._x.to(x.dtype), x)) - self.log_evidence

    def _row(self, shape: Size) -> tuple[Tensor, Tensor]:
        shape = shape + self.batch_shape + self.event_shape
        return self._x.expand(shape), self._visible.expand(shape)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            return self._drawn(sample_shape)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """Completions that carry gradients, where `has_rsample` says so."""
        if not self.has_rsample:
            raise NotImplementedError(f"completions by {type(self.joint).__name__} carry no gradients; sample them")
        return self._drawn(sample_shape)

    def _drawn(self, sample_shape: Any) -> Tensor:
        return self._where_possible(self._answering._complete(*self._row(Size(sample_shape))))

    @property
    def mean(self) -> Tensor:
        """The posterior-mean imputation, `(*batch, *event)`: visible cells as they are. Raises as `Joint.mean`."""
        return self._answering._moments(*self._row(Size()))[0]

    @property
    def variance(self) -> Tensor:
        """Of every cell given the visible ones, 0 where visible. Raises as `Joint.mean`."""
        return self._answering._moments(*self._row(Size()))[1]

    def entropy(self) -> Tensor:
        """Of the hidden cells given the visible ones, in nats, `(*batch)`. Raises as `Joint.entropy`."""
        return self._answering._entropy(*self._row(Size())).expand(self.batch_shape)

    def latent(self) -> "Latent":
        """The same over all real vectors, for sites that a guide or MCMC moves; see `Latent`.

        Raises:
            IntractableError: The joint is discrete.
        """
        return Latent(self)

    @property
    def mode(self) -> Tensor:
        """The most likely completion, `(*batch, *event)`; the first one where several tie.

        Raises:
            IntractableError: The joint has no exact one.
        """
        with torch.no_grad():
            return self._where_possible(self._answering._most_likely(*self._row(Size())))

    def _where_possible(self, completions: Tensor) -> Tensor:
        if not is_mapped(self.log_evidence):
            return completions  # anything else was refused
        dead = self.log_evidence.isnan()
        return torch.where(dead.reshape(*dead.shape, *[1] * len(self.event_shape)), math.nan, completions)


def is_shape(shape: Any) -> bool:
    """Whether this is a shape: a tuple or list of whole numbers."""
    return isinstance(shape, tuple | list) and all(isinstance(k, int) for k in shape)


def shapes_of(cls: type, joint: Any) -> tuple[Size, Size]:
    """Batch and event shape of a joint, given as itself or by the two; `cls` is what asks."""
    if isinstance(joint, _Expandable):
        return joint.batch_shape, joint.event_shape
    if isinstance(joint, tuple | list) and len(joint) == 2 and all(is_shape(part) for part in joint):
        return Size(joint[0]), Size(joint[1])
    raise NotImplementedError(f"the shapes of {cls.__name__} follow from those of its joint: give the joint, or the pair of shapes that its own "
                              f"infer_shapes gives; got {joint!r}")


def batch_of(cls: type, shapes: Mapping[str, Any], event_dims: Mapping[str, int]) -> Size:
    """The broadcast batch shape of tensors of these shapes, each with so many event dimensions.

    Raises:
        ValueError: No shape, too few dimensions, or batch dimensions that do not broadcast.
    """
    for name, shape in shapes.items():
        require(is_shape(shape) and len(shape) >= event_dims[name],
                f"{cls.__name__} wants for {name} a shape of at least {event_dims[name]} dimensions", shape)
    lefts = [tuple(shape[: len(shape) - event_dims[name]]) for name, shape in shapes.items()]
    try:
        return torch.broadcast_shapes(*lefts)
    except RuntimeError:
        raise ValueError(f"the batch dimensions of the tensors of {cls.__name__} must broadcast; got {lefts}") from None


def draw_states(logits: Tensor, batch_shape: Size, shape: Size) -> Tensor:
    """States `(*shape)` drawn from `logits` `(*B, K)`; `shape` ends in `batch_shape`, and `B` broadcasts to it."""
    if math.prod(shape) == 0:  # torch draws none of nothing
        return torch.zeros(shape, dtype=torch.long, device=logits.device)
    states = Categorical(logits=logits, validate_args=False).expand(batch_shape)
    return states.sample(shape[: len(shape) - len(batch_shape)])


def _check_readable(validates: bool, name: str, *tensors: Tensor | None) -> None:
    """Refuse to validate what a `vmap` keeps back."""
    if validates and is_mapped(*tensors):
        raise RuntimeError(f"{name} looks at the values that it checks, and vmap keeps them back: make the joint with validate_args=False")


def _seen(visible: Tensor, event_shape: Size) -> str:
    """A pattern in words."""
    cells = math.prod(event_shape)
    rows = visible.flatten(-len(event_shape)).sum(-1)
    few, most = (int(rows.min()), int(rows.max())) if rows.numel() else (0, 0)
    many = f" of {rows.numel():,} patterns" if rows.ndim else ""
    return f"{few if few == most else f'{few} to {most}'} of {cells} cells visible" + (f" in each{many}" if many else "")


class Latent(_Expandable):
    r"""p(hidden | visible) on the hidden cells times a standard normal on the visible ones: the form of `Given` for latent sites.

    The visible cells of a value `z` mean nothing: they are standard normal and independent of the rest, so that the site has a
    positive density everywhere, and `complete` replaces them by what was seen. With :math:`T` that takes the reals onto the joint's support
    (`biject_to`; the identity where the support is the reals)

    .. math:: \log q(z) = \log p(z_h \mid x_v) + \sum_{i \in v} \left( \log \mathcal{N}(T^{-1}(z_i); 0, 1)
              + \log \left| \frac{d T^{-1}(z_i)}{d z_i} \right| \right)

    Shapes:
        - As `given`: its batch shape and event shape; each row has its own pattern.
        - `support` is that of the joint.

    Args:
        given: Of a continuous joint.

    Raises:
        IntractableError: The joint is discrete.

    Example:
        >>> from pyro_ar.elliptical import Gaussian
        >>> joint = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
        >>> given = joint.given(torch.tensor([1.0, math.nan]), torch.tensor([True, False]))
        >>> z = torch.tensor([3.0, 0.5])
        >>> given.latent().log_prob(z)  # N(3; 0, 1) N(0.5; 0.5, 0.75)
        tensor(-6.1940)
        >>> given.latent().complete(z)
        tensor([1.0000, 0.5000])
    """

    has_enumerate_support = False

    def __init__(self, given: Given) -> None:
        if given.joint.num_states is not None:
            raise IntractableError(given._advice)
        self.given = given
        self._to_support = biject_to(_of_cells(given.joint.support))
        super().__init__(given.batch_shape, given.event_shape, validate_args=given._validate_args)

    @classmethod
    def infer_shapes(cls, *, given: Any = None) -> tuple[Size, Size]:  # type: ignore[override]
        return shapes_of(cls, given)

    def __repr__(self) -> str:
        return repr(self.given).replace("Given", "Latent", 1)

    @property
    def support(self) -> constraints.Constraint | None:
        return self.given.joint.support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.given.has_rsample

    def log_prob(self, value: Tensor) -> Tensor:
        given = self.given
        z = given._answering._check_value(value)
        left = _broadcast("the value", z.shape[: z.ndim - len(self.event_shape)], self.batch_shape)
        visible = given._visible
        free = self._to_support.inv(z)
        cells = -(free.square() + math.log(2 * math.pi)) / 2 - self._to_support.log_abs_det_jacobian(free, z)
        log_p = given._log_hidden(z) + torch.where(visible, cells, 0).flatten(-len(self.event_shape)).sum(-1)
        return log_p.expand(left)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            return self._drawn(sample_shape)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """Draws that carry gradients, where `has_rsample` says so."""
        if not self.has_rsample:
            raise NotImplementedError(f"completions by {type(self.given.joint).__name__} carry no gradients; sample them")
        return self._drawn(sample_shape)

    def _drawn(self, sample_shape: Any) -> Tensor:
        x = self.given.expand(self.batch_shape)._drawn(sample_shape)
        return torch.where(self.given._visible, self._to_support(torch.randn_like(x)), x)

    def complete(self, z: Tensor) -> Tensor:
        """`z` with its visible cells replaced by what was seen there."""
        return torch.where(self.given._visible, self.given._x.to(z.dtype), z)


def _of_cells(support: Any) -> Any:
    """The constraint of a cell, from that of an event."""
    return support.base_constraint if isinstance(support, constraints.independent) else support


def _all_cells(good: Tensor, event_shape: Size) -> Tensor:
    return good.flatten(good.ndim - len(event_shape)).all(-1) if event_shape else good


def _broadcast(what: str, left: Size, batch_shape: Size) -> Size:
    try:
        return torch.broadcast_shapes(left, batch_shape)
    except RuntimeError:
        raise ValueError(f"{what} must have left dimensions that broadcast with the batch shape "
                         f"{tuple(batch_shape)}; got {tuple(left)}") from None


def _align(joint: Joint, value: Any, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Checked value and pattern with the same left dimensions (the batch's own may be absent)."""
    x = joint._check_value(value, visible)
    return x, visible.expand(x.shape)
