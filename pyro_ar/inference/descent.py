"""AdamW down a loss for a number of steps that is known beforehand: the small trainings inside classifiers, where nothing is held out to stop by.

Families are trained by `par.fit`, which validates, stops early and resumes.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from torch import Tensor

__all__ = ["descend"]

LEAST_CYCLE = 20  # steps: OneCycleLR divides by what a tenth of them is more than one


def descend(parameters: Iterable[Any], loss: Callable[[int], Tensor], steps: int, *, lr: float, weight_decay: float = 0.01,
            one_cycle: bool = False) -> None:
    """Change parameters in place.

    Args:
        parameters: Tensors, or groups of them as `torch.optim` takes them.
        loss: From the number of the step to the scalar to be lowered; it draws its own rows.
        steps: How many.
        lr: Step size: the first one, which falls to zero along a line, or the highest of the cycle.
        weight_decay: Decoupled.
        one_cycle: Rise for a tenth of the steps, then fall along a cosine.

    Source:
        Loshchilov, Hutter (2019), *Decoupled weight decay regularization*, ICLR; Smith, Topin (2019), *Super-convergence*, SPIE 11006.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> descend([x], lambda step: (x - 1).square(), 200, lr=0.1)
        >>> abs(x.item() - 1) < 0.01
        True
    """
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    schedule: Any = (torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=max(steps, LEAST_CYCLE), pct_start=0.1) if one_cycle
                     else torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / max(steps, 1)))
    with torch.enable_grad():
        for step in range(steps):
            value = loss(step)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            schedule.step()
