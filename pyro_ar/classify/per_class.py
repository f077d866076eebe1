r"""One joint for each class: what turns rows and their shares in the classes into joints, patterns and a prior."""

import inspect

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from torch import Tensor

from pyro_ar.checks import require
from pyro_ar.classify.of_class import of_each_class
from pyro_ar.joint import Joint
from pyro_ar.latent import LatentTree
from pyro_ar.tables import ChowLiuTree

__all__ = ["class_weights", "count_parameters", "fit_classes", "fit_pattern", "fit_prior", "log_pattern", "sorted_classes"]


def sorted_classes(labels: np.ndarray, wanted: int | None) -> np.ndarray:
    """The labels in order; numbers from 0 where some of the wanted ones are not there."""
    seen = np.unique(labels)
    if wanted is None or len(seen) == wanted:
        return seen
    numbers = np.arange(wanted)
    require(bool(np.isin(seen, numbers).all()), f"y must hold {wanted} different labels, or numbers from 0 to {wanted - 1}",
            seen.tolist())
    return numbers


def class_weights(context: Tensor, classes: np.ndarray) -> Tensor:
    """One row of weights per class, `(C, N)`, from shares `(N, C)`."""
    empty = (context.sum(0) == 0).nonzero().flatten().tolist()
    require(not empty, "every class needs at least one training row", f"none of {classes[empty].tolist()}")
    return context.T


def fit_classes(like: Any, x: Tensor, weights: Tensor, visible: Tensor | None, options: dict[str, Any]) -> Any:
    """`from_data` with a row of weights per class: one joint of batch shape `(C,)`, or a list of trees.

    Latent trees share strength where they are told to; see `LatentTree.of_classes`.
    """
    if visible is not None:
        options["visible"] = visible = visible.expand(x.shape)
    if issubclass(like, LatentTree):
        return like.of_classes(x, weights, **options)
    if not issubclass(like, ChowLiuTree):
        return like.from_data(x, weights=weights, **options)
    if options.get("num_states") is None:  # the same for all classes
        seen = x if visible is None else torch.where(visible, x, 0)
        options["num_states"] = [max(int(k) + 1, 2) for k in seen.amax(0)]
    trees = []  # one call would give all classes one tree
    for w in weights:
        mine = options if visible is None else options | {"visible": visible[w > 0]}
        trees.append(like.from_data(x[w > 0], weights=w[w > 0], **mine))
    return trees


def fit_pattern(like: Any, seen: Tensor, context: Tensor, classes: np.ndarray, options: dict[str, Any]) -> Any:
    """Joints of the patterns of each class: fitted to `seen`, ones and zeros `(N, n)`, or checked where they are given."""
    if not isinstance(like, Joint | Sequence):
        takes = hasattr(like, "from_data") and "num_states" in inspect.signature(like.from_data).parameters
        require(takes, "pattern must be a table class such as FullyIndependent, or fitted joints, one per class", like)
        like = fit_classes(like, seen, class_weights(context, classes), None, {"num_states": 2} | options)
    parts = [like] if isinstance(like, Joint) else list(like)
    many = tuple(like.batch_shape) if isinstance(like, Joint) else (len(parts),)
    binary = all(isinstance(j, Joint) and j.num_states == (2,) * seen.shape[1] for j in parts)
    require(binary and many == (len(classes),), f"pattern must have one joint of {seen.shape[1]} binary cells for each of the "
            f"{len(classes)} classes", like)
    return like if isinstance(like, Joint) else parts


def log_pattern(joints: Any, visible: Tensor | None) -> Tensor:
    """Log p(visible | y), `(N or 1, C)`; None: all is seen."""
    first = joints if isinstance(joints, Joint) else joints[0]
    everything = torch.ones(first.event_shape, dtype=torch.bool, device=first.device)
    seen = everything.unsqueeze(0) if visible is None else visible.reshape(len(visible), *first.event_shape)
    return of_each_class(joints, seen.to(first.device, first.dtype), everything)


def fit_prior(prior: Any, context: Tensor) -> Tensor:
    """p(y), `(C,)`: the mean shares, uniform, or what is given."""
    C = context.shape[1]
    if prior is None:
        return context.double().sum(0) / context.double().sum()
    if isinstance(prior, str):
        require(prior == "uniform", "prior must be None, 'uniform', or the probabilities of the classes", prior)
        return torch.full((C,), 1 / C, dtype=torch.float64, device=context.device)
    try:
        given = torch.as_tensor(prior, dtype=torch.float64, device=context.device)
    except (TypeError, ValueError):
        given = torch.zeros(0)
    fits = given.shape == (C,) and bool((given >= 0).all()) and abs(float(given.sum()) - 1) < 1e-6
    require(fits, f"prior must be {C} probabilities that sum to 1", prior)
    return given / given.sum()


def count_parameters(joints: Joint | Sequence[Joint]) -> int:
    """Free parameters of all classes together."""
    if isinstance(joints, Joint):
        return joints.batch_shape[0] * joints.num_parameters
    return sum(joint.num_parameters for joint in joints)
