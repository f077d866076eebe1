"""Outputs over levels, by a density cut into bins."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_ar.checks import require, require_exact_states
from pyro_ar.outputs.base import OfComponents
from pyro_ar.outputs.continuous import check_min_scale, mixture_parts
from pyro_ar.outputs.discrete import OfStates

__all__ = ["DiscretisedLogisticMixture"]


@dataclass(frozen=True)
class DiscretisedLogisticMixture(OfStates, OfComponents):
    r"""A variable of K ordered states (grey levels): M logistic densities, integrated over the cell of each state.

    The states stand at -1 to 1, the first and last cells reach to infinity, and the net reads the state's place alone.
    The raw parameters are M - 1 logits (against component 0), M means and M scales before softplus. It shares strength
    between neighbouring states, where `Categorical` learns each on its own.

    .. math:: p(x) = \sum_m w_m \left(\sigma\!\left(\tfrac{x + h - \mu_m}{s_m}\right)
              - \sigma\!\left(\tfrac{x - h - \mu_m}{s_m}\right)\right)

    Args:
        states: K, at least 2.
        components: M, at least 1.
        min_scale: No scale falls below it, in units of the range -1 to 1.

    Source:
        Salimans, Karpathy, Chen, Kingma (2017), *PixelCNN++*, ICLR, eq. 2.

    Example:
        >>> DiscretisedLogisticMixture(17, 5).log_prob(torch.zeros(14), torch.arange(17.0)).logsumexp(0).abs() < 1e-5
        tensor(True)
    """

    states: int
    components: int = 5
    min_scale: float = 1e-3

    def __post_init__(self) -> None:
        require(isinstance(self.states, int) and self.states >= 2, "DiscretisedLogisticMixture needs 2 states or more", self.states)
        require(isinstance(self.components, int) and self.components >= 1,
                "DiscretisedLogisticMixture needs 1 component or more", self.components)
        check_min_scale(self.min_scale)

    def encode(self, x: Tensor) -> Tensor:
        return (2 * x / (self.states - 1) - 1).unsqueeze(-1)

    def _parts(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, means and scales; of raw zero the scale is about a third of the range."""
        logits, loc, scale = mixture_parts(raw, self.components)
        return logits, loc, F.softplus(scale - 1) + self.min_scale

    def distribution(self, raw: Tensor) -> TorchDistribution:
        states = torch.arange(self.states, device=raw.device, dtype=raw.dtype)
        return dist.Categorical(logits=self.log_prob(raw.unsqueeze(-2), states), validate_args=False)

    def of_components(self, raw: Tensor, x: Tensor) -> Tensor:
        require_exact_states(self.states, x.dtype, type(self).__name__)
        logits, loc, scale = self._parts(raw)
        place, half = self.encode(x), 1 / (self.states - 1)
        below, above = (place - half - loc) / scale, (place + half - loc) / scale
        # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - exp(a - b)), without cancellation
        left = F.logsigmoid(above).masked_fill(place >= 1 - half, 0.0)
        right = F.logsigmoid(-below).masked_fill(place <= half - 1, 0.0)
        inside = (-torch.expm1(-2 * half / scale)).log()
        inside = inside.expand(left.shape).masked_fill((place >= 1 - half) | (place <= half - 1), 0.0)
        return logits.log_softmax(-1) + left + right + inside

    def sample(self, raw: Tensor) -> Tensor:
        """A component, a logistic draw of it, and the state in whose cell that lies: the cost does not grow with the states."""
        require_exact_states(self.states, raw.dtype, type(self).__name__)
        logits, loc, scale = self._parts(raw)
        which = (logits - (-torch.rand_like(logits).log()).log()).argmax(-1, keepdim=True)  # by Gumbel noise
        noise = torch.rand_like(logits[..., :1]).logit()
        place = (loc.gather(-1, which) + scale.gather(-1, which) * noise).squeeze(-1)
        return ((place + 1) * ((self.states - 1) / 2)).round().clamp(0, self.states - 1)
