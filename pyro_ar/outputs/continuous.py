"""Outputs of real variables."""

import math

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_ar.checks import require
from pyro_ar.outputs.base import UNIT, OfComponents, Output

__all__ = ["Logistic", "MixtureOfLogistics", "MixtureOfNormals", "Normal"]

LEAST_SCALE = 1e-8  # squared, and divided by, it stays within single precision


class OfReals(Output):
    """A real variable whose draws carry gradients."""

    @property
    def has_rsample(self) -> bool:
        return True

    def reparameterised(self, raw: Tensor, x: Tensor) -> Tensor:
        r"""By implicit gradients, :math:`dx = -dF(x) / p(x)` where F is the distribution function.

        Source:
            Figurnov, Mohamed, Mnih (2018), *Implicit reparameterization gradients*, NeurIPS, eq. 6.
        """
        x, distribution = x.detach(), self.distribution(raw)
        below = distribution.cdf(x)
        return x - (below - below.detach()) * (-distribution.log_prob(x)).exp().detach()


class OfLocationAndScale(OfReals):
    """The raw parameters are its location and its scale before softplus."""

    min_scale: float

    def __post_init__(self) -> None:
        check_min_scale(self.min_scale)

    @property
    def raw(self) -> int:
        return 2

    def loc_and_scale(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = raw.unbind(-1)
        return loc, F.softplus(scale + UNIT) + self.min_scale

    def reparameterised(self, raw: Tensor, x: Tensor) -> Tensor:
        """As location + scale * noise."""
        loc, scale = self.loc_and_scale(raw)
        return loc + scale * ((x - loc) / scale).detach()


@dataclass(frozen=True)
class Normal(OfLocationAndScale):
    """A real variable; the raw parameters are its mean and its scale before softplus (raw zero: standard normal).

    Args:
        min_scale: The scale never falls below it, so that a constant variable has a finite density.
    """

    min_scale: float = 1e-3

    def distribution(self, raw: Tensor) -> TorchDistribution:
        return dist.Normal(*self.loc_and_scale(raw), validate_args=False)


@dataclass(frozen=True)
class Logistic(OfLocationAndScale):
    r"""A real variable with heavier tails than `Normal`; the raw parameters are its location and its scale before softplus (raw zero: 0 and 1).

    .. math:: \log p(x) = -z - \log s - 2 \log(1 + e^{-z}), \qquad z = (x - \mu) / s

    Args:
        min_scale: The scale s never falls below it. The standard deviation is s :math:`\pi / \sqrt 3`.

    Example:
        >>> Logistic().log_prob(torch.zeros(2), torch.tensor(0.0))  # log 1/4, for s = 1.001
        tensor(-1.3873)
    """

    min_scale: float = 1e-3

    def distribution(self, raw: Tensor) -> TorchDistribution:
        return dist.Logistic(*self.loc_and_scale(raw), validate_args=False)


@dataclass(frozen=True)
class _Mixture(OfReals, OfComponents):
    """M components of one kind."""

    components: int
    min_scale: float = 1e-3

    def __post_init__(self) -> None:
        require(isinstance(self.components, int) and self.components >= 1, f"{type(self).__name__} needs 1 component or more",
                self.components)
        check_min_scale(self.min_scale)

    def _of_parts(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        raise NotImplementedError

    def _weights_and_parts(self, raw: Tensor) -> tuple[Tensor, TorchDistribution]:
        logits, loc, scale = mixture_parts(raw, self.components)
        return logits, self._of_parts(loc, F.softplus(scale + UNIT) + self.min_scale)

    def distribution(self, raw: Tensor) -> TorchDistribution:
        logits, parts = self._weights_and_parts(raw)
        options: dict[str, Any] = {"validate_args": False}
        return dist.MixtureSameFamily(dist.Categorical(logits=logits, **options), parts, **options)

    def of_components(self, raw: Tensor, x: Tensor) -> Tensor:
        logits, parts = self._weights_and_parts(raw)
        return logits.log_softmax(-1) + parts.log_prob(x.unsqueeze(-1))


@dataclass(frozen=True)
class MixtureOfNormals(_Mixture):
    r"""A real variable; the raw parameters are M - 1 logits (against component 0), M means, M scales as in `Normal`.

    Raw zero spreads the means over -1 to 1, so that the components differ from the start.

    Args:
        components: M, at least 1.
        min_scale: No scale falls below it: it bounds the density, which is otherwise infinite at a data point.

    Source:
        Uria, Murray, Larochelle (2013), *RNADE: the real-valued neural autoregressive density-estimator*.
    """

    def _of_parts(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Normal(loc, scale, validate_args=False)


@dataclass(frozen=True)
class MixtureOfLogistics(_Mixture):
    r"""As `MixtureOfNormals`, of `Logistic` components: the density that `DiscretisedLogisticMixture` cuts into cells.

    Args:
        components: M, at least 1.
        min_scale: No scale falls below it.

    Source:
        Salimans, Karpathy, Chen, Kingma (2017), *PixelCNN++*, ICLR, section 2.1.
    """

    def _of_parts(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Logistic(loc, scale, validate_args=False)


def check_min_scale(min_scale: Any) -> None:
    """Refuse one under which a scale would collapse."""
    number = isinstance(min_scale, int | float)
    require(number and 0 < min_scale < math.inf, "min_scale must be a number above 0", min_scale)
    require(min_scale >= LEAST_SCALE, f"min_scale must be {LEAST_SCALE} or more: a scale that collapses has no finite density", min_scale)


def mixture_parts(raw: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, means and raw scales of a mixture, `(*L, M)` each; raw zero spreads the means over -1 to 1."""
    logits, loc, scale = raw.split([components - 1, components, components], -1)
    spread = torch.linspace(-1, 1, components, device=raw.device, dtype=raw.dtype)
    return F.pad(logits, (1, 0)), loc + (spread if components > 1 else 0.0), scale
