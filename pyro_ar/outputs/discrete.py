"""Outputs of few states: binary, categorical, constant."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pyro import distributions as dist
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_ar.checks import require, require_exact_states
from pyro_ar.outputs.base import Output

__all__ = ["Bernoulli", "Categorical", "Constant"]


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
class Categorical(OfStates):
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
