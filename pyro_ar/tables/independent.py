r"""All variables independent: the smallest factorisation."""

from collections.abc import Sequence
from typing import Any, Self

import torch

from pyro.distributions import constraints
from torch import Size, Tensor

from pyro_ar.checks import require
from pyro_ar.expandable import batch_of, is_shape
from pyro_ar.tables.base import same_batch
from pyro_ar.tables.counts import Block
from pyro_ar.tables.local import FamilyJoint, Group

__all__ = ["FullyIndependent"]


class FullyIndependent(FamilyJoint):
    r"""p(x) = prod_i p(x_i); :math:`\sum_i (K_i - 1)` free parameters.

    Shapes:
        - `logits` `(*B, n, K)`, or a list of n tensors `(*B, K_i)`.
        - `batch_shape` `B`, `event_shape` `(n,)`; values are states 0 to K_i - 1.

    Raises:
        ValueError: Wrong shapes or NaN.

    Example:
        >>> joint = FullyIndependent(torch.zeros(3, 2))
        >>> joint.log_prob(torch.tensor([1, 0, 1]))
        tensor(-2.0794)
        >>> joint.num_parameters
        3
    """

    arg_constraints = {"logits": constraints.real}

    def __init__(self, logits: Tensor | Sequence[Tensor], *, validate_args: bool | None = None) -> None:
        self.logits = logits
        if isinstance(logits, Tensor):
            require(logits.ndim >= 2 and logits.is_floating_point(), "logits must be a floating tensor (*B, n, K)", logits)
            tensors, batch = {"logits": logits}, logits.shape[:-2]
            sizes = (logits.shape[-1],) * logits.shape[-2]
            self._groups = (Group(tuple(range(len(sizes))), ((),) * len(sizes)),)
        else:
            tensors = {f"logits.{i}": t for i, t in enumerate(logits)}
            batch = same_batch(tensors, {name: 1 for name in tensors})
            sizes = tuple(t.shape[-1] for t in tensors.values())
            self._groups = tuple(Group((i,), ((),)) for i in range(len(sizes)))
            self.arg_constraints = {}
        super().__init__(tensors, batch, sizes, validate_args=validate_args)

    @classmethod
    def infer_shapes(cls, *, logits: Any) -> tuple[Size, Size]:  # type: ignore[override]
        if is_shape(logits):
            return batch_of(cls, {"logits": logits}, {"logits": 2}), Size(logits[-2:-1])
        shapes = {f"logits.{i}": shape for i, shape in enumerate(logits)}
        return batch_of(cls, shapes, dict.fromkeys(shapes, 1)), Size([len(shapes)])

    def with_tensors(self, tensors: Any) -> "FullyIndependent":
        logits = tensors["logits"] if "logits" in tensors else list(tensors.values())
        return FullyIndependent(logits, validate_args=self._validate_args)

    @classmethod
    def _blocks(cls, num_states: Sequence[int], **structure: Any) -> list[Block]:
        return [Block((), (v,)) for v in range(len(num_states))]

    @classmethod
    def _from_logits(cls, logits: list[Tensor], num_states: Sequence[int], **structure: Any) -> Self:
        return cls(torch.stack(logits, -2) if len(set(num_states)) == 1 else logits)

    @property
    def structure(self) -> dict[str, Any]:
        return {}

    def marginal_mode(self, visible: Tensor) -> Tensor:
        return self.most_likely(*self.unseen(visible.shape))

    def marginal_entropy(self, visible: Tensor) -> Tensor:
        # What the others are says nothing: as if they were seen, each in a possible state.
        with torch.no_grad():
            others = self.most_likely(*self.unseen(visible.shape))
        return self.entropy_given(others, ~visible)

    def _group_tables(self) -> list[Tensor]:
        if isinstance(self.logits, Tensor):
            return [self.logits.log_softmax(-1)]
        return [t.log_softmax(-1).unsqueeze(-2) for t in self._tensors.values()]
