r"""The Markov chain: each variable depends on the k before it."""

import math

from collections.abc import Sequence
from typing import Any, Self

import torch

from pyro.distributions import constraints
from torch import Size, Tensor

from pyro_ar.checks import require
from pyro_ar.expandable import batch_of, is_shape
from pyro_ar.tables.base import same_batch
from pyro_ar.tables.counts import Block
from pyro_ar.tables.local import FamilyJoint, Group, conditionals_of
from pyro_ar.transforms import is_mapped

__all__ = ["MarkovChain"]

MAX_TUPLES = 1024  # states of k variables whose stationary distribution is solved for


class MarkovChain(FamilyJoint):
    r"""p(x) = p(x_1, ..., x_k) prod_{i>k} p(x_i | x_{i-k}, ..., x_{i-1}).

    The transitions may differ from place to place. With K states everywhere it has
    :math:`K^k - 1 + (n - k) K^k (K - 1)` free parameters: 2n - 1 for a binary first-order chain.

    With `num_variables` one transition table serves all places: :math:`K^k - 1 + K^k (K - 1)` free parameters, however long the chain.
    Without `initial_logits` such a chain starts in the stationary distribution of its table, which leaves :math:`K^k (K - 1)`.
    `from_data`, `log_evidence` and `posterior` take `stationary=True`: one table for all places, and a table of its own for the first k
    variables. All variables then have the states of the largest.

    Shapes:
        - `initial_logits` `(*B, K_1, ..., K_k)`: the joint of the first k variables.
        - `transition_logits` `(*B, n - k, K, ..., K, K)` with k + 1 dimensions of states, the last
          one the next variable; or a list of n - k tensors `(*B, K_{i-k}, ..., K_i)`; with `num_variables` one table
          `(*B, K, ..., K, K)`.
        - `batch_shape` `B`, `event_shape` `(n,)`; values are states 0 to K_i - 1.

    Args:
        initial_logits: Unnormalised log-probabilities; None, of a chain of one transition table: its stationary distribution.
        transition_logits: Unnormalised over the last dimension.
        order: k, at least 1.
        num_variables: n, more than k, of a chain of one transition table.

    Raises:
        ValueError: Shapes that do not fit each other, NaN, or a table some of whose states cannot reach each other and that so may have
            several stationary distributions.

    Example:
        >>> chain = MarkovChain(torch.zeros(2), torch.zeros(4, 2, 2))
        >>> chain.log_prob(torch.tensor([1, 0, 1, 1, 0]))  # five fair coins
        tensor(-3.4657)
        >>> chain.num_parameters  # 2 n - 1
        9
        >>> weather = MarkovChain(None, torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log(), num_variables=365)
        >>> weather.marginal(torch.arange(365) == 100).log_prob(torch.zeros(365)).exp()  # dry: 5 of 6 days
        tensor(0.8333)
        >>> weather.num_parameters
        2
    """

    arg_constraints = {"initial_logits": constraints.real}

    def __init__(self, initial_logits: Tensor | None, transition_logits: Tensor | Sequence[Tensor], order: int = 1,
                 num_variables: int | None = None, *, validate_args: bool | None = None) -> None:
        require(isinstance(order, int) and order >= 1, "order must be a whole number of at least 1", order)
        self.initial_logits, self.transition_logits, self.markov_order, self.num_variables = initial_logits, transition_logits, order, num_variables
        shared = num_variables is not None
        require(shared or initial_logits is not None, "initial_logits may be left out where one transition table serves num_variables")
        tensors = {} if initial_logits is None else {"initial_logits": initial_logits}
        if isinstance(transition_logits, Tensor):
            tensors["transition_logits"] = transition_logits
            batch = same_batch(tensors, {"initial_logits": order, "transition_logits": order + 2 - shared})
        else:
            require(not shared, "with num_variables transition_logits must be one table", transition_logits)
            tensors |= {f"transition_logits.{i}": t for i, t in enumerate(transition_logits)}
            batch = same_batch(tensors, {name: order + (name != "initial_logits") for name in tensors})
        sizes = self._shared_sizes() if shared else self._chained_sizes()
        self._groups = self._group(len(sizes))
        if initial_logits is None:
            self.arg_constraints = {}
        validates = self._validate_args if validate_args is None else validate_args
        if initial_logits is None and validates and not is_mapped(*tensors.values()):
            with torch.no_grad():
                proper = bool((self._initial() > -math.inf).all())
            require(proper, "the stationary distribution wants a transition table all of whose states reach each other; give initial_logits")
        super().__init__(tensors, batch, sizes, validate_args=validate_args)

    def _shared_sizes(self) -> list[int]:
        """The states of each variable where one table serves all places."""
        k, table, n = self.markov_order, self.transition_logits, self.num_variables or 0
        require(isinstance(n, int) and n > k, f"num_variables must be a whole number of more than the order {k}", n)
        size = table.shape[-1]  # type: ignore[union-attr]
        require(tuple(table.shape[-k - 1:]) == (size,) * (k + 1),  # type: ignore[union-attr]
                f"one transition table for all places must end in {(size,) * (k + 1)}, the same states for all variables", table)
        first = self.initial_logits
        require(first is None or tuple(first.shape[-k:]) == (size,) * k, f"initial_logits must end in {(size,) * k}, the states of the transition table", first)
        return [size] * n

    def _chained_sizes(self) -> list[int]:
        """The states of each variable where each place has its own table, checked from one to the next."""
        k, first = self.markov_order, torch.as_tensor(self.initial_logits)
        blocks = self.transition_logits.unbind(-k - 2) if isinstance(self.transition_logits, Tensor) else self.transition_logits
        sizes = list(first.shape[first.ndim - k:])
        for i, t in enumerate(blocks):
            wanted = tuple(sizes[i:])
            require(tuple(t.shape[-k - 1:-1]) == wanted,
                    f"transition {i} must have the states {wanted} of the {k} variables before it, then its own", t)
            sizes.append(t.shape[-1])
        return sizes

    def _group(self, n: int) -> tuple[Group, ...]:
        k = self.markov_order
        start = tuple(Group((i,), (tuple(range(i)),)) for i in range(k))
        before = tuple(tuple(range(i - k, i)) for i in range(k, n))
        if isinstance(self.transition_logits, Tensor):
            return start + ((Group(tuple(range(k, n)), before),) if before else ())
        return start + tuple(Group((i,), (p,)) for i, p in enumerate(before, start=k))

    @classmethod
    def infer_shapes(cls, *, initial_logits: Sequence[int] | None, transition_logits: Any, order: Any = 1,  # type: ignore[override]
                     num_variables: Any = None) -> tuple[Size, Size]:
        if not (isinstance(order, int) and (num_variables is None or isinstance(num_variables, int))):
            raise NotImplementedError("how many dimensions are the event's is said by the order of the chain, and by num_variables: give their numbers")
        shapes: dict[str, Any] = {} if initial_logits is None else {"initial_logits": initial_logits}
        dims = {"initial_logits": order}
        if num_variables is not None:
            return batch_of(cls, {**shapes, "transition_logits": transition_logits}, {**dims, "transition_logits": order + 1}), Size([num_variables])
        if is_shape(transition_logits):
            shapes["transition_logits"], dims["transition_logits"] = transition_logits, order + 2
            batch = batch_of(cls, shapes, dims)
            return batch, Size([order + transition_logits[-order - 2]])
        rest = {f"transition_logits.{i}": shape for i, shape in enumerate(transition_logits)}
        return batch_of(cls, shapes | rest, dims | dict.fromkeys(rest, order + 1)), Size([order + len(rest)])

    def with_tensors(self, tensors: Any) -> "MarkovChain":
        rest = tensors.get("transition_logits")
        if rest is None:
            rest = [t for name, t in tensors.items() if name != "initial_logits"]
        return MarkovChain(tensors.get("initial_logits"), rest, self.markov_order, self.num_variables, validate_args=self._validate_args)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"initial_logits": self.initial_logits, "transition_logits": self.transition_logits, "order": self.markov_order,
                "num_variables": self.num_variables}

    _options = ("order", "stationary")

    @classmethod
    def _blocks(cls, num_states: Sequence[int], *, order: int = 1, stationary: bool = False, **structure: Any) -> list[Block]:
        n = len(num_states)
        require(isinstance(order, int) and 1 <= order <= n, f"order must be between 1 and the {n} variables", order)
        require(not stationary or order < n, "stationary wants more variables than the order, so that there is a step", n, order)
        return [Block((), tuple(range(order)))] + [Block(tuple(range(i - order, i)), (i,)) for i in range(order, n)]

    @classmethod
    def sharing(cls, num_states: Sequence[int], *, stationary: bool = False, **structure: Any) -> list[list[Block]]:
        first, *rest = cls._blocks(num_states, stationary=stationary, **structure)
        return [[first], rest] if stationary else [[first], *([block] for block in rest)]

    @classmethod
    def table_sizes(cls, num_states: Sequence[int], structure: dict[str, Any]) -> tuple[int, ...]:
        return (max(num_states),) * len(num_states) if structure.get("stationary") else tuple(num_states)

    @classmethod
    def _from_logits(cls, logits: list[Tensor], num_states: Sequence[int], *, order: int = 1, stationary: bool = False,
                     **structure: Any) -> Self:
        if stationary:
            return cls(logits[0], logits[1], order, len(num_states))
        rest: Tensor | list[Tensor] = logits[1:]
        if len(set(num_states)) == 1 and rest:
            rest = torch.stack(logits[1:], -order - 2)
        return cls(logits[0], rest, order)

    @property
    def structure(self) -> dict[str, Any]:
        return {"order": self.markov_order} | ({} if self.num_variables is None else {"stationary": True})

    @property
    def num_parameters(self) -> int:
        first = math.prod(self.num_states[:self.markov_order]) - 1
        return super().num_parameters - (first if self.initial_logits is None else 0)

    def _particulars(self) -> list[str]:
        start = "stationary start" if self.initial_logits is None else ""
        return [f"order {self.markov_order}", "" if self.num_variables is None else "one transition table", start]

    def _initial(self) -> Tensor:
        """The log probabilities of the first k variables, `(*B, *K)`."""
        k = self.markov_order
        if self.initial_logits is None:
            return _stationary(torch.as_tensor(self.transition_logits).log_softmax(-1), k)
        return self.initial_logits.flatten(-k).log_softmax(-1).unflatten(-1, self.initial_logits.shape[-k:])

    def _group_tables(self) -> list[Tensor]:
        k, rest = self.markov_order, self.transition_logits
        tables = [t.unsqueeze(-2 - i) for i, t in enumerate(conditionals_of(self._initial(), k))]
        if not isinstance(rest, Tensor):
            return tables + [t.log_softmax(-1).unsqueeze(-k - 2) for t in rest]
        if self.num_variables is not None:
            shape = rest.shape[:-k - 1], rest.shape[-k - 1:]
            return [*tables, rest.log_softmax(-1).unsqueeze(-k - 2).expand(*shape[0], self.num_variables - k, *shape[1])]
        return tables + ([rest.log_softmax(-1)] if rest.shape[-k - 2] else [])


def _stationary(log_table: Tensor, order: int) -> Tensor:
    r"""The log of the stationary distribution of the last k variables, `(*B, K, ..., K)`; NaN or -inf where it is not unique and positive.

    States are k-tuples; they are eliminated one after another by sums, products and quotients of positive numbers, so that small
    probabilities keep their digits.

    Source:
        Grassmann, Taksar, Heyman (1985), *Regenerative analysis and steady state distributions for Markov chains*, Oper. Res. 33.
    """
    size, left = log_table.shape[-1], log_table.shape[:-order - 1]
    many = size**order
    require(many <= MAX_TUPLES, f"a stationary start wants at most {MAX_TUPLES} states of {order} variables; give initial_logits", many)
    step = log_table.double().exp().reshape(*left, many, size)
    # The tuple (s_1, ..., s_k) is followed by (s_2, ..., s_k, s): its number times K, without what overflows, plus s.
    after = torch.arange(many, device=step.device)[:, None] * size % many + torch.arange(size, device=step.device)
    table = torch.zeros(*left, many, many, dtype=step.dtype, device=step.device).scatter(-1, after.expand(step.shape), step)
    arrivals = []
    for m in range(many - 1, 0, -1):
        into = table[..., :m, m] / table[..., m, :m].sum(-1, keepdim=True)
        arrivals.append(into)
        table = table[..., :m, :m] + into[..., :, None] * table[..., m, None, :m]
    share = torch.ones(*left, 1, dtype=step.dtype, device=step.device)
    for into in reversed(arrivals):
        share = torch.cat([share, (share * into).sum(-1, keepdim=True)], -1)
    return (share / share.sum(-1, keepdim=True)).log().to(log_table.dtype).reshape(*left, *[size] * order)
