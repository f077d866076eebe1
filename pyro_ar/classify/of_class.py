r"""The joint of the class that y names, as a Pyro distribution."""

import math

from collections.abc import Sequence
from typing import Any

import torch

from pyro.distributions import constraints
from torch import Size, Tensor

from pyro_ar.expandable import Expandable
from pyro_ar.joint import Joint

__all__ = ["OfClass", "of_each_class"]


class OfClass(Expandable):
    r"""p(x_visible | y): every class answers, and y picks, so that an enumerated y copies no parameters.

    Shapes:
        - `batch_shape`: that of `y` broadcast with the left dimensions of `visible`; `event_shape` as the joints'.
        - Samples carry NaN where hidden.

    Args:
        joints: One joint of batch shape `(C,)`, or a list of C joints.
        visible: bool, `(*L, *E)`; True = seen.
        y: Positions of classes.
    """

    has_enumerate_support = False

    def __init__(self, joints: Joint | Sequence[Joint], visible: Tensor, y: Tensor) -> None:
        self._joints, self._visible, self._y = joints, visible, y
        first = joints if isinstance(joints, Joint) else joints[0]
        left = visible.shape[: visible.ndim - len(first.event_shape)]
        self._support: Any = first.support
        super().__init__(torch.broadcast_shapes(left, y.shape), first.event_shape, validate_args=first._validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return self._support

    def log_prob(self, value: Tensor) -> Tensor:
        answers = of_each_class(self._joints, value, self._visible)
        y = self._y.expand(torch.broadcast_shapes(answers.shape[:-1], self.batch_shape)).unsqueeze(-1)
        return answers.expand(*y.shape[:-1], answers.shape[-1]).gather(-1, y).squeeze(-1)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        shape, event = Size(sample_shape) + self.batch_shape, len(self.event_shape)
        if isinstance(self._joints, Joint):
            x = self._joints.expand(Size([*shape, *self._joints.batch_shape])).sample()
        else:
            x = torch.stack([joint.sample(shape) for joint in self._joints], -1 - event)
        y = self._y.expand(shape).reshape(*shape, *[1] * (event + 1)).expand(*shape, 1, *self.event_shape)
        return torch.where(self._visible, x.gather(-1 - event, y).squeeze(-1 - event), math.nan)


def of_each_class(joints: Joint | Sequence[Joint], x: Tensor, visible: Tensor) -> Tensor:
    """Log p(x_visible | y) of every y, `(*L, C)`."""
    if isinstance(joints, Joint):
        at = -1 - len(joints.event_shape)
        return joints.marginal(visible.unsqueeze(at)).log_prob(x.unsqueeze(at))
    return torch.stack([joint.marginal(visible).log_prob(x) for joint in joints], -1)
