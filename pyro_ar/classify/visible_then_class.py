r"""The joint of visible cells and class of a classifier whose class follows what is visible, as a Pyro model."""

from typing import Any

import pyro
import torch

from pyro.distributions import Categorical
from torch import Tensor

from pyro_ar.joint import Joint

__all__ = ["visible_then_class"]


def visible_then_class(classifier: Any, joint: Joint, rows: Tensor | None, pattern: Tensor | None) -> Tensor:
    """A plate 'rows' with the sites 'x', observed through the marginal of the visible cells, then 'y', the position in `classes_`, which enumerates.

    Args:
        classifier: Its `log_posterior` answers.
        joint: Of the cells.
        rows: Checked rows; None: they are drawn.
        pattern: Checked, `(N or 1, *event)`; None: all is seen.

    Returns:
        The positions of the classes, `(N,)`.
    """
    event, own = joint.event_shape, classifier.event_shape_
    pattern = torch.ones(1, *own, dtype=torch.bool) if pattern is None else pattern
    with pyro.plate("rows", len(pattern) if rows is None else len(rows)):
        obs = None if rows is None else rows.to(joint.dtype).reshape(-1, *event)
        drawn = pyro.sample("x", joint.marginal(pattern.reshape(-1, *event)), obs=obs)
        left = drawn.shape[:drawn.ndim - len(event)]  # those of plates outside too
        patterns = pattern.expand(*left, *own).reshape(-1, *own)
        logits = classifier.log_posterior(drawn.reshape(-1, *own), patterns).reshape(*left, -1)
        return pyro.sample("y", Categorical(logits=logits), infer={"enumerate": "parallel"})
