r"""Outputs: from the raw parameters that a net computes to the conditional distribution of one variable.

An output is a small frozen dataclass. To add one, say five things about one variable:

================  ==========================================================================
`raw`             how many real numbers a net must compute for it
`inputs`          how many features a net reads of it
`num_states`      how many states it has, or None when it is continuous
`support`         the constraint of its values
`encode(x)`       the features of values `(*L)`, `(*L, inputs)`
`distribution(r)` from raw parameters `(*L, raw)` the distribution of batch shape `(*L)`
================  ==========================================================================

Every real `raw` must be legal, raw zero must be a sensible start, and `log_prob` must stay finite
and differentiable for raw numbers of any size. `log_prob` and `sample` follow from
`distribution`; override them only to be faster.

One output usually serves all variables alike. `PerVariable` gives each its own; a net that asks `output.at(i)` before it
encodes a single variable, as those of this library do, serves both.
"""

import abc
import itertools
import math

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from pyro import distributions as dist
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_ar.checks import require, require_exact_states

__all__ = ["Bernoulli", "Categorical", "Constant", "DiscretisedLogisticMixture", "MixtureOfNormals", "Normal", "Output", "PerVariable"]

UNIT = math.log(math.e - 1)  # softplus of it is one


class Output(abc.ABC):
    """The conditional distribution of one variable, given the raw parameters of a net."""

    num_states: int | None = None
    support: constraints.Constraint = constraints.real

    @property
    @abc.abstractmethod
    def raw(self) -> int:
        """Raw parameters per variable."""

    @property
    def inputs(self) -> int:
        """Features per variable that a net reads."""
        return 1

    def encode(self, x: Tensor) -> Tensor:
        """The features of values `(*L)`, `(*L, inputs)`; x itself unless overridden."""
        return x.unsqueeze(-1)

    @abc.abstractmethod
    def distribution(self, raw: Tensor) -> TorchDistribution:
        """From `(*L, raw)` the distribution of one variable, batch shape `(*L)`."""

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """Log p(x) in nats; `raw` `(*L, raw)` and `x` `(*M)` broadcast."""
        return self.distribution(raw).log_prob(x)

    def sample(self, raw: Tensor) -> Tensor:
        """One floating value for each of `(*L, raw)`, of the dtype of `raw`."""
        require_exact_states(self.num_states, raw.dtype, type(self).__name__)
        return self.distribution(raw).sample().to(raw.dtype)

    # Which variable it answers for: the same for all, unless it is a `PerVariable`.

    def at(self, variable: int | Tensor) -> "Output":
        """What answers for variable `variable` alone, or for a tensor of them that broadcasts to the values."""
        return self

    def in_order(self, order: Sequence[int]) -> "Output":
        """What answers for the variables in another order."""
        return self

    def totals(self, n: int) -> tuple[int, int, int]:
        """Of the first n variables: raw parameters, features, and raw parameters times the features of the variables before. Allocates nothing."""
        return n * self.raw, n * self.inputs, self.raw * self.inputs * (n * (n - 1) // 2)

    def variables(self, n: int) -> tuple["Output", ...]:
        """The output of each of n variables.

        Raises:
            ValueError: It is not for n variables.
        """
        return (self,) * n


class _OfStates(Output):
    """A variable of `states` states."""

    states: int

    @property
    def num_states(self) -> int:  # type: ignore[override]
        return self.states

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.integer_interval(0, self.states - 1)


@dataclass(frozen=True)
class Bernoulli(Output):
    """A binary variable; the raw parameter is its logit.

    Example:
        >>> Bernoulli().log_prob(torch.zeros(1), torch.tensor(1.0))
        tensor(-0.6931)
    """

    num_states = 2
    support = constraints.boolean

    @property
    def raw(self) -> int:
        return 1

    def distribution(self, raw: Tensor) -> TorchDistribution:
        return dist.Bernoulli(logits=raw.squeeze(-1), validate_args=False)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        logits, x = torch.broadcast_tensors(raw.squeeze(-1), x)
        return -F.binary_cross_entropy_with_logits(logits, x, reduction="none")

    def sample(self, raw: Tensor) -> Tensor:
        probs = raw.squeeze(-1).sigmoid()
        return probs.bernoulli_(probs)


@dataclass(frozen=True)
class Categorical(_OfStates):
    r"""A variable of K states; the raw parameters are K - 1 logits against state 0.

    A net reads either its K - 1 steps, `[x >= 1, ..., x >= K - 1]` ('steps': any function of the state is
    linear in them, and neighbouring states begin alike, as suits grey levels), or the indicators of the
    states 1 to K - 1 ('one-hot', for states without an order), or x / (K - 1) alone ('level': few weights).

    Args:
        states: K, at least 2.
        encoding: 'steps', 'one-hot' or 'level'.

    Raises:
        ValueError: Fewer than two states, or another encoding.
    """

    states: int
    encoding: str = "steps"

    def __post_init__(self) -> None:
        require(isinstance(self.states, int) and self.states >= 2, "Categorical needs 2 states or more", self.states)
        require(self.encoding in ("steps", "one-hot", "level"), "encoding must be 'steps', 'one-hot' or 'level'",
                self.encoding)

    @property
    def raw(self) -> int:
        return self.states - 1

    @property
    def inputs(self) -> int:
        return 1 if self.encoding == "level" else self.states - 1

    def encode(self, x: Tensor) -> Tensor:
        if self.encoding == "level":
            return x.unsqueeze(-1) / (self.states - 1)
        state = torch.arange(1, self.states, device=x.device)
        x = x.unsqueeze(-1)
        return ((x >= state) if self.encoding == "steps" else (x == state)).to(x.dtype)

    def distribution(self, raw: Tensor) -> TorchDistribution:
        return dist.Categorical(logits=F.pad(raw, (1, 0)), validate_args=False)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        require_exact_states(self.states, x.dtype, type(self).__name__)
        log_p = F.pad(raw, (1, 0)).log_softmax(-1)
        left = torch.broadcast_shapes(log_p.shape[:-1], x.shape)
        index = x.long().expand(left).unsqueeze(-1)
        return log_p.expand(*left, self.states).gather(-1, index).squeeze(-1)


@dataclass(frozen=True)
class Constant(_OfStates):
    """A variable of a single state, 0, which is certain: a column of one value among others in a `PerVariable`."""

    states = 1

    @property
    def raw(self) -> int:
        return 0

    @property
    def inputs(self) -> int:
        return 0

    def encode(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1)[..., :0]

    def distribution(self, raw: Tensor) -> TorchDistribution:
        return dist.Categorical(logits=raw.new_zeros(*raw.shape[:-1], 1), validate_args=False)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return raw.new_zeros(torch.broadcast_shapes(raw.shape[:-1], x.shape))


@dataclass(frozen=True)
class DiscretisedLogisticMixture(_OfStates):
    r"""A variable of K ordered states (grey levels): M logistic densities, integrated over the cell of each state.

    The states stand at -1 to 1, the first and last cells reach to infinity, and the net reads the state's place alone.
    The raw parameters are M - 1 logits (against component 0), M means and M scales before softplus. It shares strength
    between neighbouring states, where `Categorical` learns each on its own.

    .. math:: p(x) = \sum_m w_m \left(\sigma\!\left(\tfrac{x + h - \mu_m}{s_m}\right)
              - \sigma\!\left(\tfrac{x - h - \mu_m}{s_m}\right)\right)

    Args:
        states: K, at least 2.
        components: M, at least 1.
        min_scale: No scale falls below it, in units of the range -1 to 1.

    Source:
        Salimans, Karpathy, Chen, Kingma (2017), *PixelCNN++*, ICLR, eq. 2.

    Example:
        >>> DiscretisedLogisticMixture(17, 5).log_prob(torch.zeros(14), torch.arange(17.0)).logsumexp(0).abs() < 1e-5
        tensor(True)
    """

    states: int
    components: int = 5
    min_scale: float = 1e-3

    def __post_init__(self) -> None:
        require(isinstance(self.states, int) and self.states >= 2, "DiscretisedLogisticMixture needs 2 states or more", self.states)
        require(isinstance(self.components, int) and self.components >= 1,
                "DiscretisedLogisticMixture needs 1 component or more", self.components)
        _check_min_scale(self.min_scale)

    @property
    def raw(self) -> int:
        return 3 * self.components - 1

    def encode(self, x: Tensor) -> Tensor:
        return (2 * x / (self.states - 1) - 1).unsqueeze(-1)

    def distribution(self, raw: Tensor) -> TorchDistribution:
        states = torch.arange(self.states, device=raw.device, dtype=raw.dtype)
        return dist.Categorical(logits=self.log_prob(raw.unsqueeze(-2), states), validate_args=False)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        require_exact_states(self.states, x.dtype, type(self).__name__)
        logits, loc, scale = mixture_parts(raw, self.components)
        scale = F.softplus(scale - 1) + self.min_scale  # raw zero: about a third of the range
        place, half = self.encode(x), 1 / (self.states - 1)
        below, above = (place - half - loc) / scale, (place + half - loc) / scale
        # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - exp(a - b)), without cancellation
        left = F.logsigmoid(above).masked_fill(place >= 1 - half, 0.0)
        right = F.logsigmoid(-below).masked_fill(place <= half - 1, 0.0)
        inside = (-torch.expm1(-2 * half / scale)).log()
        inside = inside.expand(left.shape).masked_fill((place >= 1 - half) | (place <= half - 1), 0.0)
        return (logits.log_softmax(-1) + left + right + inside).logsumexp(-1)


@dataclass(frozen=True)
class Normal(Output):
    """A real variable; the raw parameters are its mean and its scale before softplus (raw zero: standard normal).

    Args:
        min_scale: The scale never falls below it, so that a constant variable has a finite density.
    """

    min_scale: float = 1e-3

    def __post_init__(self) -> None:
        _check_min_scale(self.min_scale)

    @property
    def raw(self) -> int:
        return 2

    def distribution(self, raw: Tensor) -> TorchDistribution:
        loc, scale = raw.unbind(-1)
        return dist.Normal(loc, F.softplus(scale + UNIT) + self.min_scale, validate_args=False)


@dataclass(frozen=True)
class MixtureOfNormals(Output):
    r"""A real variable; the raw parameters are M - 1 logits (against component 0), M means, M scales as in `Normal`.

    Raw zero spreads the means over -1 to 1, so that the components differ from the start.

    Args:
        components: M, at least 1.
        min_scale: No scale falls below it: it bounds the density, which is otherwise infinite at a data point.

    Source:
        Uria, Murray, Larochelle (2013), *RNADE: the real-valued neural autoregressive density-estimator*.
    """

    components: int
    min_scale: float = 1e-3

    def __post_init__(self) -> None:
        require(isinstance(self.components, int) and self.components >= 1, "MixtureOfNormals needs 1 component or more",
                self.components)
        _check_min_scale(self.min_scale)

    @property
    def raw(self) -> int:
        return 3 * self.components - 1

    def distribution(self, raw: Tensor) -> TorchDistribution:
        logits, loc, scale = mixture_parts(raw, self.components)
        scale = F.softplus(scale + UNIT) + self.min_scale
        options: dict[str, Any] = {"validate_args": False}
        return dist.MixtureSameFamily(dist.Categorical(logits=logits, **options), dist.Normal(loc, scale, **options),
                                      **options)


@dataclass(frozen=True)
class PerVariable(Output):
    r"""An output for each variable, so that one row mixes binary, categorical, count and real columns.

    Each variable has as many raw parameters and features as the largest output needs, and reads the first of them;
    those beyond are zero, and not counted as parameters.

    Shapes:
        The last dimension of values runs over the variables, from the first one on: `encode` takes `(*L, m)` and gives
        `(*L, m, inputs)`, `log_prob` takes `(*L, m, raw)` and `(*L, m)`. For single variables see `at`.

    Args:
        outputs: One for each variable of the flattened event.

    Raises:
        ValueError: Not a sequence of outputs of single variables.

    Example:
        >>> mixed = PerVariable([Bernoulli(), Normal(), Categorical(3)])
        >>> mixed.log_prob(torch.zeros(3, 2), torch.tensor([1.0, 0.0, 2.0]))  # log 1/2, standard normal, log 1/3
        tensor([-0.6931, -0.9199, -1.0986])
    """

    outputs: tuple[Output, ...]

    def __post_init__(self) -> None:
        single = isinstance(self.outputs, Sequence) and len(self.outputs) > 0 and all(
            isinstance(o, Output) and not isinstance(o, PerVariable) for o in self.outputs)
        require(single, "PerVariable wants an output of par.outputs for each variable", self.outputs)
        object.__setattr__(self, "outputs", tuple(self.outputs))

    @classmethod
    def of_states(cls, num_states: Sequence[int], encoding: str = "steps") -> "PerVariable":
        """Categorical variables, each with its own number of states; a variable of one state is certain."""
        return cls(tuple(Constant() if k == 1 else Categorical(k, encoding) for k in num_states))

    def __repr__(self) -> str:
        names = [repr(o) for o in self.outputs]
        return f"PerVariable([{', '.join(names[:4])}{f', ... {len(names)} in all' if len(names) > 4 else ''}])"

    @property
    def raw(self) -> int:
        return max(o.raw for o in self.outputs)

    @property
    def inputs(self) -> int:
        return max(o.inputs for o in self.outputs)

    @property
    def num_states(self) -> int | None:  # type: ignore[override]
        """That of all the variables, None where they differ."""
        each = {o.num_states for o in self.outputs}
        return each.pop() if len(each) == 1 else None

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return support_of(self.outputs, (len(self.outputs),)).base_constraint  # type: ignore[attr-defined]

    def at(self, variable: int | Tensor) -> Output:
        return _At(self, variable)

    def in_order(self, order: Sequence[int]) -> "PerVariable":
        return PerVariable(tuple(self.outputs[i] for i in order))

    def totals(self, n: int) -> tuple[int, int, int]:
        some = self.outputs[:n]
        before = itertools.accumulate((o.inputs for o in some), initial=0)
        return sum(o.raw for o in some), sum(o.inputs for o in some), sum(o.raw * width for o, width in zip(some, before, strict=False))

    def variables(self, n: int) -> tuple[Output, ...]:
        require(n == len(self.outputs), f"this PerVariable has outputs for {len(self.outputs)} variables", n)
        return self.outputs

    def distribution(self, raw: Tensor) -> TorchDistribution:
        require(len(set(self.outputs)) == 1, "outputs of several kinds have no one distribution; ask at(variable)", self)
        return self.outputs[0].distribution(raw[..., :self.outputs[0].raw])

    def encode(self, x: Tensor) -> Tensor:
        return self._by_kind(lambda o, x: _padded(o.encode(x), self.inputs), (x,), (-1,), -2)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return self._by_kind(lambda o, raw, x: o.log_prob(raw[..., :o.raw], x), (raw, x), (-2, -1), -1)

    def sample(self, raw: Tensor) -> Tensor:
        return self._by_kind(lambda o, raw: o.sample(raw[..., :o.raw]), (raw,), (-2,), -1)

    def _by_kind(self, function: Callable[..., Tensor], values: tuple[Tensor, ...], dims: tuple[int, ...], dim: int) -> Tensor:
        """`function(output, *values)` of the variables of each kind at once; they lie along `dims` of the values and `dim` of the answer."""
        kinds: dict[Output, list[int]] = {}
        for i, output in enumerate(self.outputs[:values[0].shape[dims[0]]]):
            kinds.setdefault(output, []).append(i)
        device = values[0].device
        parts = []
        for output, places in kinds.items():
            index = torch.tensor(places, device=device)
            parts.append(function(output, *(t.index_select(d, index) for t, d in zip(values, dims, strict=True))))
        back = torch.tensor([i for places in kinds.values() for i in places], device=device).argsort()
        return torch.cat(parts, dim).index_select(dim, back)


@dataclass(frozen=True)
class _At(Output):
    """A `PerVariable` asked for one variable, or for a tensor of them that broadcasts to the values."""

    whole: PerVariable
    variable: int | Tensor

    @property
    def raw(self) -> int:
        return self.whole.raw

    @property
    def inputs(self) -> int:
        return self.whole.inputs

    def distribution(self, raw: Tensor) -> TorchDistribution:
        require(isinstance(self.variable, int), "outputs of several kinds have no one distribution", self.variable)
        mine = self.whole.outputs[int(self.variable)]
        return mine.distribution(raw[..., :mine.raw])

    def encode(self, x: Tensor) -> Tensor:
        return self._by_kind(lambda o, x: _padded(o.encode(x), self.inputs), x, features=True)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return self._by_kind(lambda o, x: o.log_prob(raw[..., :o.raw], x), x)

    def sample(self, raw: Tensor) -> Tensor:
        return self._by_kind(lambda o, _: o.sample(raw[..., :o.raw]), raw[..., 0])

    def _by_kind(self, function: Callable[..., Tensor], x: Tensor, *, features: bool = False) -> Tensor:
        """`function(output, values)` of each kind, kept where the variable is of that kind; other values are not read."""
        outputs, here = self.whole.outputs, self.variable
        if not isinstance(here, Tensor):
            return function(outputs[here], x)
        answer: Tensor | None = None
        for kind in dict.fromkeys(outputs):
            mine = torch.tensor([o == kind for o in outputs], device=here.device)[here]
            found = function(kind, torch.where(mine, x, 0))
            mine = mine.unsqueeze(-1) if features else mine
            answer = found if answer is None else torch.where(mine, found, answer)
        return answer  # type: ignore[return-value]


def _padded(features: Tensor, inputs: int) -> Tensor:
    return F.pad(features, (0, inputs - features.shape[-1]))


def support_of(outputs: Sequence[Output], event_shape: Sequence[int]) -> constraints.Constraint:
    """The support of events whose cells are variables of these outputs."""
    each: constraints.Constraint = _Mixed(tuple(outputs), tuple(event_shape))
    if len(set(outputs)) == 1 or all(o.support is constraints.real for o in outputs):
        each = outputs[0].support
    elif all(o.num_states is not None for o in outputs):
        most = torch.tensor([o.num_states for o in outputs]).reshape(event_shape) - 1
        each = constraints.integer_interval(torch.zeros_like(most), most)
    return constraints.independent(each, len(event_shape))


class _Mixed(constraints.Constraint):
    """Discrete and real variables in one row."""

    event_dim = 0

    def __init__(self, outputs: tuple[Output, ...], event_shape: tuple[int, ...]) -> None:
        self.outputs, self.event_shape = outputs, event_shape

    def __repr__(self) -> str:
        return f"the supports of {PerVariable(self.outputs)!r}"

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        return any(o.num_states is not None for o in self.outputs)

    def check(self, value: Tensor) -> Tensor:
        flat = value.flatten(value.ndim - len(self.event_shape)).unbind(-1)
        good: Any = [o.support.check(v) for o, v in zip(self.outputs, flat, strict=True)]
        return torch.stack(good, -1).unflatten(-1, self.event_shape)


def _check_min_scale(min_scale: Any) -> None:
    number = isinstance(min_scale, int | float)
    require(number and 0 < min_scale < math.inf, "min_scale must be a number above 0", min_scale)


def mixture_parts(raw: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, means and raw scales of a mixture, `(*L, M)` each; raw zero spreads the means over -1 to 1."""
    logits, loc, scale = raw.split([components - 1, components, components], -1)
    spread = torch.linspace(-1, 1, components, device=raw.device, dtype=raw.dtype)
    return F.pad(logits, (1, 0)), loc + (spread if components > 1 else 0.0), scale
