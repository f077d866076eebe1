r"""The Markov chain: each variable depends on the k before it."""

from collections.abc import Sequence
from typing import Any, Self

import torch

from pyro.distributions import constraints
from torch import Tensor

from pyro_ar.checks import require
from pyro_ar.tables.base import same_batch
from pyro_ar.tables.counts import Block
from pyro_ar.tables.families import FamilyJoint, Group, conditionals_of

__all__ = ["MarkovChain"]


class MarkovChain(FamilyJoint):
    r"""p(x) = p(x_1, ..., x_k) prod_{i>k} p(x_i | x_{i-k}, ..., x_{i-1}).

    The transitions may differ from place to place. With K states everywhere it has
    :math:`K^k - 1 + (n - k) K^k (K - 1)` free parameters: 2n - 1 for a binary first-order chain.

    Shapes:
        - `initial_logits` `(*B, K_1, ..., K_k)`: the joint of the first k variables.
        - `transition_logits` `(*B, n - k, K, ..., K, K)` with k + 1 dimensions of states, the last
          one the next variable; or a list of n - k tensors `(*B, K_{i-k}, ..., K_i)`.
        - `batch_shape` `B`, `event_shape` `(n,)`; values are states 0 to K_i - 1.

    Args:
        initial_logits: Unnormalised log-probabilities.
        transition_logits: Unnormalised over the last dimension.
        order: k, at least 1.

    Raises:
        ValueError: Shapes that do not fit each other, or NaN.

    Example:
        >>> chain = MarkovChain(torch.zeros(2), torch.zeros(4, 2, 2))
        >>> chain.log_prob(torch.tensor([1, 0, 1, 1, 0]))  # five fair coins
        tensor(-3.4657)
        >>> chain.num_parameters  # 2 n - 1
        9
    """

    arg_constraints = {"initial_logits": constraints.real}

    def __init__(self, initial_logits: Tensor, transition_logits: Tensor | Sequence[Tensor], order: int = 1,
                 *, validate_args: bool | None = None) -> None:
        require(isinstance(order, int) and order >= 1, "order must be a whole number of at least 1", order)
        self.initial_logits, self.transition_logits, self.markov_order = initial_logits, transition_logits, order
        k = order
        tensors = {"initial_logits": initial_logits}
        if isinstance(transition_logits, Tensor):
            tensors["transition_logits"] = transition_logits
            batch = same_batch(tensors, {"initial_logits": k, "transition_logits": k + 2})
            blocks = list(transition_logits.unbind(-k - 2))
        else:
            blocks = list(transition_logits)
            tensors |= {f"transition_logits.{i}": t for i, t in enumerate(blocks)}
            batch = same_batch(tensors, {name: k + (name != "initial_logits") for name in tensors})
        sizes = list(initial_logits.shape[initial_logits.ndim - k:])
        for i, t in enumerate(blocks):
            wanted = tuple(sizes[i:])
            require(tuple(t.shape[-k - 1:-1]) == wanted,
                    f"transition {i} must have the states {wanted} of the {k} variables before it, then its own", t)
            sizes.append(t.shape[-1])
        start = tuple(Group((i,), (tuple(range(i)),)) for i in range(k))
        before = tuple(tuple(range(i - k, i)) for i in range(k, len(sizes)))
        rest: tuple[Group, ...]
        if isinstance(transition_logits, Tensor):
            rest = (Group(tuple(range(k, len(sizes))), before),) if before else ()
        else:
            rest = tuple(Group((i,), (p,)) for i, p in enumerate(before, start=k))
        self._groups = start + rest
        super().__init__(tensors, batch, sizes, validate_args=validate_args)

    def with_tensors(self, tensors: Any) -> "MarkovChain":
        rest = tensors.get("transition_logits")
        if rest is None:
            rest = [t for name, t in tensors.items() if name != "initial_logits"]
        return MarkovChain(tensors["initial_logits"], rest, self.markov_order, validate_args=self._validate_args)

    _options = ("order",)

    @classmethod
    def _blocks(cls, num_states: Sequence[int], *, order: int = 1, **structure: Any) -> list[Block]:
        n = len(num_states)
        require(isinstance(order, int) and 1 <= order <= n, f"order must be between 1 and the {n} variables", order)
        return [Block((), tuple(range(order)))] + [Block(tuple(range(i - order, i)), (i,)) for i in range(order, n)]

    @classmethod
    def _from_logits(cls, logits: list[Tensor], num_states: Sequence[int], *, order: int = 1, **structure: Any) -> Self:
        rest: Tensor | list[Tensor] = logits[1:]
        if len(set(num_states)) == 1 and rest:
            rest = torch.stack(logits[1:], -order - 2)
        return cls(logits[0], rest, order)

    @property
    def _structure(self) -> dict[str, Any]:
        return {"order": self.markov_order}

    def _group_tables(self) -> list[Tensor]:
        k = self.markov_order
        first = self.initial_logits.flatten(-k).log_softmax(-1).unflatten(-1, self.initial_logits.shape[-k:])
        tables = [t.unsqueeze(-2 - i) for i, t in enumerate(conditionals_of(first, k))]
        if isinstance(self.transition_logits, Tensor):
            return tables + ([self.transition_logits.log_softmax(-1)] if self.transition_logits.shape[-k - 2] else [])
        return tables + [t.log_softmax(-1).unsqueeze(-k - 2) for t in self.transition_logits]
