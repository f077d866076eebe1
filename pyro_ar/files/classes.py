"""The classes that a file may name: all that are exported by the packages of models, and a few of torch, Pyro and scikit-learn."""

import sys

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pyro import distributions as dist
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.distributions import Transform, transforms

from pyro_ar import changes, classify, elliptical, imputation, latent, mixture, neural, outputs, queries, tables
from pyro_ar.changes.transformed import Inverse
from pyro_ar.checks import require
from pyro_ar.classify import PosteriorEstimate
from pyro_ar.classify.around.corrected import Weights
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.classify.pattern_net import ConvolutionalLayers, DenseLayers
from pyro_ar.expandable import Expandable
from pyro_ar.imputation import Column
from pyro_ar.inference.annealing import Evidence
from pyro_ar.inference.bayesian import Bayesian, Posterior, Refit
from pyro_ar.neural.family import Family
from pyro_ar.neural.net import Net
from pyro_ar.neural.registry import FAMILIES
from pyro_ar.outputs import Output
from pyro_ar.tables import TablePosterior

__all__ = ["CLASSES", "FOREIGN", "name_of"]

BASES = (Output, Expandable, nn.Module, BaseEstimator, Transform)  # of what packages export, these can be written
OWN = (Output, Expandable, Family, Net, PartlySeenClassifier)  # users derive from these


def _exported(*packages: ModuleType) -> dict[str, type]:
    named = {name: getattr(package, name) for package in packages for name in package.__all__}
    return {name: cls for name, cls in named.items() if isinstance(cls, type) and issubclass(cls, BASES)}


def _of_families() -> dict[str, type]:
    """The registered families, and the nets that stand in their files."""
    found = [cls for entry in FAMILIES.values() for cls in vars(sys.modules[entry.family.__module__]).values() if isinstance(cls, type)]
    return {cls.__name__: cls for cls in found if issubclass(cls, Family | Net)}


# Classes of other libraries: their own names begin with that of the library, and with them stand their arguments by the names of the attributes.
FOREIGN: dict[str, tuple[type, Mapping[str, str]]] = {
    "torch.AffineTransform": (transforms.AffineTransform, {"loc": "loc", "scale": "scale", "event_dim": "event_dim"}),
    "torch.CatTransform": (transforms.CatTransform, {"tseq": "transforms", "dim": "dim", "lengths": "lengths"}),
    "torch.ComposeTransform": (transforms.ComposeTransform, {"parts": "parts"}),
    "torch._InverseTransform": (transforms._InverseTransform, {"transform": "_inv"}),
    "torch.PowerTransform": (transforms.PowerTransform, {"exponent": "exponent"}),
    **{f"torch.{cls.__name__}": (cls, {}) for cls in (
        transforms.ExpTransform, transforms.SigmoidTransform, transforms.SoftplusTransform, transforms.TanhTransform)},
    **{f"pyro.{cls.__name__}": (cls, {}) for cls in (dist.transforms.LeakyReLUTransform, dist.transforms.SoftplusTransform)},
    **{f"pyro.{cls.__name__}": (cls, {name: name for name in cls.arg_constraints}) for cls in (
        dist.AsymmetricLaplace, dist.Cauchy, dist.Gumbel, dist.Laplace, dist.Logistic, dist.Normal, dist.SkewLogistic, dist.SoftLaplace, dist.StudentT)},
}

CLASSES: dict[str, type] = {
    **_exported(outputs, tables, elliptical, changes, latent, mixture, neural, queries, classify, imputation),
    **_of_families(),
    **{cls.__name__: cls for cls in (Column, PosteriorEstimate, TablePosterior,
                                     Bayesian, Posterior, Refit, Evidence, Inverse, DenseLayers, ConvolutionalLayers, Weights)},
    **{name: cls for name, (cls, _) in FOREIGN.items()},
    "sklearn.LogisticRegression": LogisticRegression,
}

_NAMES: dict[type, str] = {cls: name for name, cls in CLASSES.items()}


def name_of(cls: type, where: str) -> str:
    """The name of a class in a file: one of `CLASSES`, or that of a user's own.

    Raises:
        ValueError: There is none.
    """
    if cls in _NAMES:
        return _NAMES[cls]
    name: Any = cls.__name__
    require(issubclass(cls, OWN), f"save does not know how to write {where}; see its documentation for what it covers", name)
    require(name not in CLASSES, "a class of your own that is saved wants a name of its own, not one of pyro_ar's", name)
    return name
