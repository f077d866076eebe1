"""Outputs of few states: binary, categorical, constant."""

import math

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from pyro import distributions as dist
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_ar.checks import require, require_exact_states
from pyro_ar.outputs.base import Output

__all__ = ["Bernoulli", "Categorical", "Constant", "RestrictedBernoulli", "TiedCategorical"]


class OfStates(Output):
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
class RestrictedBernoulli(Output):
    r"""A binary variable whose probability of 1 lies between two bounds; one raw parameter r.

    .. math:: p = a + (b - a)\, \sigma(r)

    Args:
        low: a.
        high: b.

    Raises:
        ValueError: Not :math:`0 \le a < b \le 1`.

    Example:
        >>> RestrictedBernoulli(0.2, 0.6).log_prob(torch.tensor([[-90.0], [0.0], [90.0]]), torch.tensor(1.0)).exp()
        tensor([0.2000, 0.4000, 0.6000])
    """

    low: float
    high: float

    num_states = 2
    support = constraints.boolean

    def __post_init__(self) -> None:
        numbers = all(isinstance(bound, int | float) for bound in (self.low, self.high))
        require(numbers and 0 <= self.low < self.high <= 1, "RestrictedBernoulli needs bounds 0 <= low < high <= 1", self.low, self.high)

    @property
    def raw(self) -> int:
        return 1

    def _of_each(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of 0 and 1, each a sum of two positive terms: nothing cancels."""
        raw = raw.squeeze(-1)
        below, above = F.logsigmoid(-raw), F.logsigmoid(raw)

        def between(low: float, high: float) -> Tensor:
            terms = [side + math.log(share) for side, share in ((below, low), (above, high)) if share > 0]
            return torch.logaddexp(*terms) if len(terms) == 2 else terms[0]

        return between(1 - self.low, 1 - self.high), between(self.low, self.high)

    def distribution(self, raw: Tensor) -> TorchDistribution:
        zero, one = self._of_each(raw)
        return dist.Bernoulli(logits=one - zero, validate_args=False)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        zero, one = self._of_each(raw)
        return x * one + (1 - x) * zero


class OfSteps(OfStates):
    """States that a net reads by their steps, one by one, or by their level; see `Categorical`."""

    encoding: str

    def __post_init__(self) -> None:
        require(self.encoding in ("steps", "one-hot", "level"), "encoding must be 'steps', 'one-hot' or 'level'",
                self.encoding)

    @property
    def inputs(self) -> int:
        return 1 if self.encoding == "level" else self.states - 1

    def encode(self, x: Tensor) -> Tensor:
        if self.encoding == "level":
            return x.unsqueeze(-1) / (self.states - 1)
        state = torch.arange(1, self.states, device=x.device)
        x = x.unsqueeze(-1)
        return ((x >= state) if self.encoding == "steps" else (x == state)).to(x.dtype)

    def _logits(self, raw: Tensor) -> Tensor:
        """Of all states, `(*L, K)`."""
        raise NotImplementedError

    def distribution(self, raw: Tensor) -> TorchDistribution:
        return dist.Categorical(logits=self._logits(raw), validate_args=False)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        require_exact_states(self.states, x.dtype, type(self).__name__)
        log_p = self._logits(raw).log_softmax(-1)
        left = torch.broadcast_shapes(log_p.shape[:-1], x.shape)
        index = x.long().expand(left).unsqueeze(-1)
        return log_p.expand(*left, self.states).gather(-1, index).squeeze(-1)


@dataclass(frozen=True)
class Categorical(OfSteps):
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
        super().__post_init__()

    @property
    def raw(self) -> int:
        return self.states - 1

    def _logits(self, raw: Tensor) -> Tensor:
        return F.pad(raw, (1, 0))


@dataclass(frozen=True)
class TiedCategorical(OfSteps):
    r"""A variable of K states of which some are tied: the states of a group have one probability; the raw parameters are a logit per group but the first.

    .. math:: p(x = k) = \frac{e^{r_{g(k)}}}{\sum_g |g|\, e^{r_g}}, \qquad r_0 = 0

    Raw zero is a fair die.

    Args:
        groups: Two or more, each the states that are tied; together every state from 0 to K - 1 once.
        encoding: As of `Categorical`: a net reads which state it was, not the group alone.

    Raises:
        ValueError: No partition of the states into two groups or more, or another encoding.

    Example:
        >>> die = TiedCategorical([[0, 1, 2], [3, 4, 5]])  # faces 1 to 3 are tied, and 4 to 6: one parameter
        >>> die.log_prob(torch.tensor([2.0]).log(), torch.arange(6.0)).exp()
        tensor([0.1111, 0.1111, 0.1111, 0.2222, 0.2222, 0.2222])
    """

    groups: tuple[tuple[int, ...], ...]
    encoding: str = "steps"

    def __post_init__(self) -> None:
        given: Any = self.groups
        listed = isinstance(given, Sequence) and all(isinstance(group, Sequence) and len(group) > 0 for group in given)
        whole = listed and all(isinstance(state, int) for group in given for state in group)
        once = whole and sorted(state for group in given for state in group) == list(range(sum(map(len, given))))
        require(once and len(given) >= 2, "TiedCategorical needs two groups or more that hold each state from 0 on once", given)
        object.__setattr__(self, "groups", tuple(tuple(group) for group in given))
        super().__post_init__()

    @property
    def states(self) -> int:  # type: ignore[override]
        return sum(len(group) for group in self.groups)

    @property
    def raw(self) -> int:
        return len(self.groups) - 1

    def _logits(self, raw: Tensor) -> Tensor:
        of_state = [g for _, g in sorted((state, g) for g, group in enumerate(self.groups) for state in group)]
        return F.pad(raw, (1, 0)).index_select(-1, torch.tensor(of_state, device=raw.device))


@dataclass(frozen=True)
class Constant(OfStates):
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
