"""The picture of a task: some images as the best models complete them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from matplotlib.figure import Figure
from torch import Tensor

from pyro_ar.experiments.complete.run import SHOWN, Plan
from pyro_ar.experiments.complete.spaces import Space
from pyro_ar.experiments.complete.tasks import TASKS
from pyro_ar.plots import Completed, completion_panel

__all__ = ["picture"]

MODELS_SHOWN = 4


def picture(plan: Plan, task: str, cells: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """The first held-out images, completed by the models of the highest log p; None where no model has an answer."""
    models = [name for name, cell in cells.items() if "draws" in cell][:MODELS_SHOWN]
    if not models:
        return None
    space, x, visible = plan.asked(task)
    originals, seen = space.images(x[:SHOWN].double()), what_is_seen(space, x[:SHOWN], visible[:SHOWN])
    groups = []
    for i in range(len(originals)):
        image = originals[i].numpy()
        groups.append([Completed(name, image, seen[i].numpy(), [np.array(draw[i], float) for draw in cells[name]["draws"]],
                                 np.array(cells[name]["mean"][i]).reshape(image.shape), _per_pixel(cells[name]["deviation"][i], image)) for name in models])
    note = f"The first held-out images, by the models of the highest log p of what is hidden. Mean and standard deviation of {plan.draws} draws."
    return completion_panel(groups, space.levels, title=f"{task}: hidden is {TASKS[task].label}", note=note)


def what_is_seen(space: Space, x: Tensor, visible: Tensor) -> Tensor:
    """The visible pixels, NaN elsewhere; the coarse image; or the grey one."""
    planes = x.double().reshape(-1, *space.event_shape)
    if space.name == "pixels":
        return torch.where(visible.reshape(planes.shape), planes, torch.nan).squeeze(1)
    grey = planes[:, 0]
    if space.name == "blocks":
        return grey.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return grey.unsqueeze(-1).expand(*grey.shape, 3)


def _per_pixel(deviation: list[float], image: np.ndarray) -> np.ndarray:
    """Of colours the root of the mean square."""
    each = np.array(deviation).reshape(image.shape)
    return each if each.ndim == 2 else np.sqrt((each**2).mean(-1))
