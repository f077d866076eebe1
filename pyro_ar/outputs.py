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
"""

import abc
import math

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from pyro import distributions as dist
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_ar.checks import require, require_exact_states

__all__ = ["Bernoulli", "Categorical", "DiscretisedLogisticMixture", "MixtureOfNormals", "Normal", "Output"]

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


def _check_min_scale(min_scale: Any) -> None:
    number = isinstance(min_scale, int | float)
    require(number and 0 < min_scale < math.inf, "min_scale must be a number above 0", min_scale)


def mixture_parts(raw: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, means and raw scales of a mixture, `(*L, M)` each; raw zero spreads the means over -1 to 1."""
    logits, loc, scale = raw.split([components - 1, components, components], -1)
    spread = torch.linspace(-1, 1, components, device=raw.device, dtype=raw.dtype)
    return F.pad(logits, (1, 0)), loc + (spread if components > 1 else 0.0), scale
