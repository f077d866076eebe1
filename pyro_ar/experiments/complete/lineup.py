"""The joints that complete: tables, mixtures, latent trees and the registered families, and the plain fills beside them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from torch import Generator, Tensor

from pyro_ar.elliptical import Gaussian
from pyro_ar.experiments.complete.answers import OfLevels
from pyro_ar.experiments.complete.spaces import Space
from pyro_ar.inference import fit
from pyro_ar.joint import Joint
from pyro_ar.latent import LatentTree
from pyro_ar.mixture import Mixture
from pyro_ar.neural import OverOrders
from pyro_ar.neural.registry import FAMILIES, Registered
from pyro_ar.outputs import Bernoulli, DiscretisedLogisticMixture
from pyro_ar.tables import ChowLiuTree, FullyIndependent

__all__ = ["FILLS", "MODELS", "OVER_ORDERS", "Fitted", "Model", "fill"]

PSEUDOCOUNTS = (0.003, 0.03, 0.3)
SHRINKAGES = (0.01, 0.03, 0.1, 0.3)
MIXTURES = ((3, 0.1), (10, 0.1), (10, 0.5), (20, 0.5), (20, 2.0))  # components, and what is added to each variance
LOGISTICS = 5  # of mixtures over levels
EPOCHS = 60  # at most, where the registry names no number
OVER_ORDERS = 4
WIDEST = 7  # kernel of a family of images


@dataclass(frozen=True)
class Fitted:
    """A joint, its free parameters, and its family where that takes any order and answers by one alone."""

    joint: Joint | OfLevels
    parameters: int
    any_order: Any = None


@dataclass(frozen=True)
class Model:
    """How a joint is made.

    Attributes:
        fit: From the space, a seed and a share of the usual training.
        usual: The spaces in which it is run unless asked for.
    """

    fit: Callable[[Space, int, float], Fitted]
    usual: tuple[str, ...] = ("pixels", "blocks", "colours")


def _inner(space: Space) -> tuple[Tensor, Tensor]:
    """Training rows, and a tenth of them, with which the others share no pixel, to choose settings and the best epoch by."""
    cut = max(1, len(space.train) // 10 // space.together) * space.together
    return space.train[cut:], space.train[:cut]


def _table(table: Any, space: Space, seed: int, steps: float) -> Fitted:
    train, held = _inner(space)
    scores = {p: table.from_data(train, pseudocount=p, num_states=space.num_states).log_prob(held).mean().item() for p in PSEUDOCOUNTS}
    joint = table.from_data(space.train, pseudocount=max(scores, key=lambda p: scores[p]), num_states=space.num_states)
    return Fitted(joint, joint.num_parameters)


def _real(x: Tensor, seed: int) -> Tensor:
    return x.double() + torch.rand(x.shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def _gaussian(space: Space, seed: int, steps: float) -> Fitted:
    train, held = (_real(part, seed) for part in _inner(space))
    scores = {s: Gaussian.from_data(train, shrinkage=s).log_prob(held).mean().item() for s in SHRINKAGES}
    joint = Gaussian.from_data(_real(space.train, seed), shrinkage=max(scores, key=lambda s: scores[s]))
    return Fitted(OfLevels(joint, space.num_states), joint.num_parameters)


def _mixture(space: Space, seed: int, steps: float) -> Fitted:
    from sklearn.mixture import GaussianMixture

    train, held = (_real(part, seed).numpy() for part in _inner(space))
    tried = [GaussianMixture(k, reg_covar=r, random_state=seed) for k, r in MIXTURES if k < len(train)]
    best = max(tried, key=lambda one: one.fit(train).score(held))
    found = best.fit(_real(space.train, seed).numpy())
    joint = Mixture(torch.tensor(found.weights_).log(), Gaussian(torch.tensor(found.means_), torch.tensor(found.covariances_)))
    return Fitted(OfLevels(joint, space.num_states), joint.num_parameters)


def _latent_tree(space: Space, seed: int, steps: float) -> Fitted:
    train, held = _inner(space)
    joint = LatentTree.from_data(train, num_hidden=16, num_states=space.num_states, smoothing=2.0, held_out=held, epochs=max(1, round(60 * steps)),
                                 generator=Generator().manual_seed(seed))
    return Fitted(joint, joint.num_parameters)


def _family(entry: Registered, orders: int, space: Space, seed: int, steps: float) -> Fitted:
    assert entry.shown is not None  # noqa: S101
    output = Bernoulli() if space.num_states == 2 else DiscretisedLogisticMixture(space.num_states, LOGISTICS)
    make: Any = entry.family
    family = make(space.event_shape, output=output, **_sizes(entry, space))
    options = {"epochs": EPOCHS, "batch_size": 64, "lr": 3e-3, "patience": 10, **entry.shown.fit}
    options["epochs"] = max(1, round(options["epochs"] * steps))
    train, held = (part.reshape(-1, *space.event_shape) for part in _inner(space))
    fit(family, train, held_out=(held,), seed=seed, progress=False, accelerator="cpu", **options)
    family.eval()
    made = family if orders == 1 else OverOrders(family, orders, generator=Generator().manual_seed(seed))
    return Fitted(made(), family.num_parameters, family if family.any_order and orders == 1 else None)


def _sizes(entry: Registered, space: Space) -> dict[str, Any]:
    """Of a family; one of images wants equally many features for each channel, and a kernel that is no larger than the image."""
    sizes = dict(entry.shown.options if entry.shown is not None else {})
    if entry.images:
        channels, side = space.event_shape[0], min(space.event_shape[1:])
        sizes["hidden"] = -(-sizes["hidden"] // channels) * channels
        if side < WIDEST:
            sizes["kernel"] = max(3, 2 * ((side + 1) // 2) - 1)
    return sizes


QUICK = ("NADE", "OrderlessNADE", "gated PixelCNN")


def _families() -> dict[str, Model]:
    models = {}
    for name, entry in FAMILIES.items():
        if entry.shown is not None:
            models[name] = Model(partial(_family, entry, 1), ("pixels", "blocks", "colours") if name in QUICK else ())
    models[f"OrderlessNADE x{OVER_ORDERS}"] = Model(partial(_family, FAMILIES["OrderlessNADE"], OVER_ORDERS), ("pixels",))
    return models


MODELS: Mapping[str, Model] = {
    "independent": Model(partial(_table, FullyIndependent)),
    "Chow-Liu tree": Model(partial(_table, ChowLiuTree)),
    "Gaussian": Model(_gaussian),
    "Gaussian mixture": Model(_mixture),
    "latent tree": Model(_latent_tree),
    **_families(),
}

FILLS = ("median", "nearest neighbour")


def fill(name: str, space: Space, x: Tensor, visible: Tensor) -> Tensor:
    """Rows with their hidden variables filled in plainly: by the median of the training rows, or by those of the training row that is nearest where visible."""
    if name == "median":
        return torch.where(visible, x, space.train.median(0).values)
    seen = visible.float()
    square = (seen @ space.train.square().T) - 2 * (x * seen) @ space.train.T  # and what does not depend on the training row
    return torch.where(visible, x, space.train[square.argmin(1)])
