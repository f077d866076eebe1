"""Distributions whose batch shape grows without copying their tensors, and what shapes they have before they are made."""

import copy
import math

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch

from pyro.distributions import Categorical, TorchDistribution, constraints
from torch import Size, Tensor

from pyro_ar.checks import broadcast, require
from pyro_ar.enumeration import (
    refuse,
)
from pyro_ar.recorded import arguments_read
from pyro_ar.transforms import is_mapped

__all__ = ["Expandable", "batch_of", "check_readable", "draw_states", "is_shape", "shapes_of", "support_of_cells"]


class Expandable(TorchDistribution):
    """A distribution whose tensors broadcast, so that expanding is a change of `batch_shape`."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    set_later: ClassVar[tuple[str, ...]] = ()
    """Attributes that are no arguments of the constructor and belong to what the distribution is, for `par.save`."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the constructor, by name, that make the same distribution before any `expand`."""
        return arguments_read(self)

    def expand(self, batch_shape: Size | Sequence[int], _instance: object = None) -> Self:
        batch_shape = Size(batch_shape)
        wanted = f"batch shape {tuple(self.batch_shape)} must expand to the one asked for"
        require(broadcast(wanted, self.batch_shape, batch_shape, came=(tuple(batch_shape),)) == batch_shape, wanted, tuple(batch_shape))
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


def is_shape(shape: Any) -> bool:
    """Whether this is a shape: a tuple or list of whole numbers."""
    return isinstance(shape, tuple | list) and all(isinstance(k, int) for k in shape)


def shapes_of(cls: type, joint: Any) -> tuple[Size, Size]:
    """Batch and event shape of a joint, given as itself or by the two; `cls` is what asks."""
    if isinstance(joint, Expandable):
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
    return broadcast(f"the batch dimensions of the tensors of {cls.__name__} must broadcast", *lefts)


def draw_states(logits: Tensor, batch_shape: Size, shape: Size) -> Tensor:
    """States `(*shape)` drawn from `logits` `(*B, K)`; `shape` ends in `batch_shape`, and `B` broadcasts to it."""
    if math.prod(shape) == 0:  # torch draws none of nothing
        return torch.zeros(shape, dtype=torch.long, device=logits.device)
    states = Categorical(logits=logits, validate_args=False).expand(batch_shape)
    return states.sample(shape[: len(shape) - len(batch_shape)])


def check_readable(validates: bool, name: str, *tensors: Tensor | None) -> None:
    """Refuse to validate what a `vmap` keeps back."""
    if validates and is_mapped(*tensors):
        raise RuntimeError(f"{name} looks at the values that it checks, and vmap keeps them back: make the joint with validate_args=False")


def support_of_cells(support: Any) -> Any:
    """The constraint of a cell, from that of an event."""
    return support.base_constraint if isinstance(support, constraints.independent) else support
