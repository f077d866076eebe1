"""An output of its own for each variable."""

import itertools

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_ar.checks import require
from pyro_ar.outputs.base import Output
from pyro_ar.outputs.discrete import Categorical, Constant

__all__ = ["PerVariable"]


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
        >>> from pyro_ar.outputs import Bernoulli, Categorical, Normal
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

    @property
    def has_rsample(self) -> bool:
        return all(o.has_rsample for o in self.outputs)

    def reparameterised(self, raw: Tensor, x: Tensor) -> Tensor:
        return self._by_kind(lambda o, raw, x: o.reparameterised(raw[..., :o.raw], x), (raw, x), (-2, -1), -1)

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

    def reparameterised(self, raw: Tensor, x: Tensor) -> Tensor:
        return self._by_kind(lambda o, x: o.reparameterised(raw[..., :o.raw], x), x)

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


def alike(outputs: Sequence[Output]) -> bool:
    """Whether all are the same; quick where it is one object again and again."""
    return outputs.count(outputs[0]) == len(outputs)


def support_of(outputs: Sequence[Output], event_shape: Sequence[int]) -> constraints.Constraint:
    """The support of events whose cells are variables of these outputs."""
    each: constraints.Constraint = _Mixed(tuple(outputs), tuple(event_shape))
    if alike(outputs) or all(o.support is constraints.real for o in outputs):
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
