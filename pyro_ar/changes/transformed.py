r"""Element-wise monotone changes of variable around a joint, under which marginals and conditionals stay exact."""

import math

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pyro.distributions import constraints
from torch import Size, Tensor
from torch.distributions import biject_to, transform_to, transforms
from torch.distributions.transforms import AffineTransform, ComposeTransform, SigmoidTransform, Transform

from pyro_ar.arrays import Array
from pyro_ar.checks import require
from pyro_ar.enumeration import refuse
from pyro_ar.expandable import shapes_of
from pyro_ar.joint import Joint
from pyro_ar.transforms import transforms_active

__all__ = ["Transformed", "logit"]


class Transformed(Joint):
    r"""The joint of x = T(z) for z of a real-valued joint and an increasing or decreasing T of each cell.

    .. math:: \log p(x_v) = \log p_Z(z_v) + \sum_{i \in v} \log \left| \frac{dz_i}{dx_i} \right|

    The direction is torch's (`TransformedDistribution`): the transform takes z to x. Since it acts on each cell by itself, a hidden cell
    integrates out as before, and `marginal`, `given` and the chain rule are those of the joint of z, exactly.
    Mean, variance, entropy and mode are carried over by affine transforms only: any other moves them.

    Values are real numbers and `log_prob` is a density also where the data lie on a finite grid, such as grey levels. Times
    the spacing of the grid it approximates the probability of the level (the midpoint rule), never of a single number.
    Ratios of densities at one x, such as the posterior of a class, do not depend on the spacing, nor on the Jacobian.

    Shapes:
        As `joint`: its batch shape and event shape.

    Args:
        joint: Over real values; its tensors get the prefix `joint.`.
        transform: Element-wise bijection of all the reals onto an interval, `transform(z) = x`, with tensors that broadcast to the
            event. In a composition every part must take all that the part before it gives: a logarithm may follow `exp`, not the reals. It is kept as it
            is: its own tensors are not among `tensors`. If it has `num_parameters`, they count.

    Raises:
        ValueError: The joint is discrete or not over the reals, or the transform is not element-wise, not a bijection, or not defined on all the reals.

    Example:
        >>> import math
        >>> from pyro_ar.elliptical import Gaussian
        >>> joint = Transformed(Gaussian(torch.zeros(2), torch.eye(2)), transforms.ExpTransform())  # log-normal
        >>> joint.marginal(torch.tensor([True, False])).log_prob(torch.tensor([1.0, math.nan]))
        tensor(-0.9189)
    """

    def __init__(self, joint: Joint, transform: Transform, *, validate_args: bool | None = None) -> None:
        real = joint.num_states is None and getattr(joint.support, "base_constraint", joint.support) is constraints.real
        require(real, "Transformed wants a joint over real values", type(joint).__name__, joint.support)
        element_wise = (isinstance(transform, Transform) and transform.bijective
                        and transform.domain.event_dim == 0 and transform.codomain.event_dim == 0)
        require(element_wise, "Transformed wants an element-wise bijection", transform)
        if validate_args is not False and not transforms_active():
            _check_domain(transform, torch.zeros(joint.event_shape, dtype=torch.float64, device=joint.device))
        self.joint, self.transform = joint, _owned(transform)
        super().__init__({f"joint.{name}": t for name, t in joint.tensors.items()}, joint.batch_shape, joint.event_shape,
                         validate_args=validate_args)

    @classmethod
    def infer_shapes(cls, *, joint: Any = None, transform: Any = None) -> tuple[Size, Size]:  # type: ignore[override]
        return shapes_of(cls, joint)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Transformed":
        joint = self.joint.with_tensors({k.removeprefix("joint."): t for k, t in tensors.items()})
        return Transformed(joint, self.transform, validate_args=self._validate_args)

    def _particulars(self) -> list[str]:
        return [f"{type(self.transform).__name__} of {type(self.joint).__name__}"]

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(_Image(self.transform), len(self.event_shape))

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.joint.has_rsample

    @property
    def coherent(self) -> bool:  # type: ignore[override]
        return self.joint.coherent

    @property
    def order(self) -> Tensor:
        return self.joint.order

    @property
    def num_parameters(self) -> int:
        return self.joint.num_parameters + getattr(self.transform, "num_parameters", 0)

    def conditional_log_prob(self, x: Array) -> Tensor:
        x = self.check_value(x)
        z, log_slope = self._back(x)
        shape = torch.broadcast_shapes(x.shape, self.batch_shape + self.event_shape)
        return (self.joint.conditional_log_prob(z) + log_slope).expand(shape)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        return self.transform(self.joint.expand(self.batch_shape).rsample(sample_shape))

    def _back(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Z and log |dz/dx| of each cell."""
        z = self.transform.inv(x)
        return z, -self.transform.log_abs_det_jacobian(z, x)

    def back_where(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """`_back` of the visible cells, zeros elsewhere."""
        # Where x is hidden it holds 0, which may lie outside the support and would make NaN gradients.
        inside = self.transform(torch.zeros(self.event_shape, dtype=x.dtype, device=x.device)).detach()
        z, log_slope = self._back(torch.where(visible, x, inside))
        return torch.where(visible, z, 0), torch.where(visible, log_slope, 0)

    def _total(self, log_slope: Tensor) -> Tensor:
        return log_slope.flatten(-len(self.event_shape)).sum(-1) if self.event_shape else log_slope

    def log_density(self, x: Tensor) -> Tensor:
        z, log_slope = self._back(x)
        return self.joint.log_density(z) + self._total(log_slope)

    def log_marginal(self, x: Tensor, visible: Tensor) -> Tensor:
        z, log_slope = self.back_where(x, visible)
        return self.joint.log_marginal(z, visible) + self._total(log_slope)

    # An affine change of variable moves means, variances, entropies and modes with it; any other moves each in its own way.

    def _slopes(self, what: str) -> Tensor:
        """Log |dx/dz| of each cell, of an affine transform."""
        if not _is_affine(self.transform):
            raise refuse(self, what, f" under {type(self.transform).__name__}, as it would have under an affine transform")
        zero = torch.zeros(self.event_shape, dtype=self.dtype, device=self.device)
        return self.transform.log_abs_det_jacobian(zero, self.transform(zero)).expand(self.event_shape)

    def moments(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        slopes = self._slopes("mean and variance")
        mean, variance = self.joint.moments(self.back_where(x, visible)[0], visible)
        return torch.where(visible, x, self.transform(mean)), variance * (2 * slopes).exp()

    def entropy_given(self, x: Tensor, visible: Tensor) -> Tensor:
        slopes = self._slopes("entropy")
        return self.joint.entropy_given(self.back_where(x, visible)[0], visible) + self._total(torch.where(visible, 0, slopes))

    def most_likely(self, x: Tensor, visible: Tensor) -> Tensor:
        self._slopes("mode")
        return torch.where(visible, x, self.transform(self.joint.most_likely(self.back_where(x, visible)[0], visible)))

    def marginal_mode(self, visible: Tensor) -> Tensor:
        self._slopes("mode")
        return self.transform(self.joint.marginal_mode(visible))

    def marginal_entropy(self, visible: Tensor) -> Tensor:
        slopes = self._slopes("entropy")
        return self.joint.marginal_entropy(visible) + self._total(torch.where(visible, slopes, 0))

    def draw(self, shape: Size) -> Tensor:
        return self.transform(self.joint.expand(self.batch_shape).draw(shape))

    def complete(self, x: Tensor, visible: Tensor) -> Tensor:
        z, _ = self.back_where(x, visible)
        return torch.where(visible, x, self.transform(self.joint.complete(z, visible)))

    def methods(self, visible: Tensor) -> np.ndarray:
        return self.joint.methods(visible)

    def answering(self, visible: Tensor) -> "Transformed":
        answering = self.joint.answering(visible)
        return self if answering is self.joint else Transformed(answering, self.transform)


def logit(low: float | Tensor, high: float | Tensor) -> Transform:
    r"""Values in (low, high) from logits: :math:`x = l + (h - l)\,\sigma(z)`.

    For levels 0 to 16, `logit(-1, 17)` keeps the extremes finite.

    Raises:
        ValueError: `low` is not below `high`.
    """
    require(bool(torch.as_tensor(low < high).all()), "low must be below high", low, high)
    return ComposeTransform([SigmoidTransform(), AffineTransform(low, high - low)])


def _is_affine(transform: Transform) -> bool:
    if isinstance(transform, ComposeTransform):
        return all(map(_is_affine, transform.parts))
    if isinstance(transform, Inverse):
        return _is_affine(transform.transform)
    return isinstance(transform, AffineTransform)


class Inverse(Transform):
    """The inverse of a transform, which it owns: torch's refers to it weakly and is lost by pickle."""

    bijective = True

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        return self.transform.codomain

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return self.transform.domain

    @property
    def sign(self) -> Any:
        return self.transform.sign

    def _call(self, x: Tensor) -> Tensor:
        return self.transform._inverse(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.transform(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.transform.log_abs_det_jacobian(y, x)


@torch.no_grad()
def _check_domain(transform: Transform, zero: Tensor) -> None:
    """Raise `ValueError` unless the transform takes all real numbers, and one to one.

    The ends of the interval that each part gives are followed, because the constraints of torch do not know them: those of a
    shift are the reals, whatever is shifted.
    """
    low, high = zero - math.inf, zero + math.inf
    below, above = zero - 1, zero + 1
    for part in _parts(transform):
        bounds = _bounds(part.domain)
        fits = bounds is not None and bool((low >= bounds[0]).all()) and bool((high <= bounds[1]).all())
        require(fits, "Transformed wants a bijection of all the reals, every part of which takes all that the part before it gives",
                type(part).__name__, f"which takes {part.domain}")
        try:
            low, high, below, above = (part(t) for t in (low, high, below, above))
        except RuntimeError:
            require(False, f"Transformed wants a transform of cells of shape {tuple(zero.shape)}", part)
        low, high = torch.minimum(low, high), torch.maximum(low, high)
        if bool(low.isnan().any()):  # no limit there: what the part promises
            low, high = (zero + b for b in _bounds(part.codomain) or (-math.inf, math.inf))
        changes = (below != above) & below.isfinite() & above.isfinite()
        require(bool(changes.all()), "Transformed wants a transform that is one to one; this one maps -1 and 1 to the same number, or "
                "to none", type(part).__name__)


def _parts(transform: Transform) -> list[Transform]:
    """Those of a composition, and of compositions within."""
    if isinstance(transform, ComposeTransform):
        return [part for inner in transform.parts for part in _parts(inner)]
    return [transform]


def _bounds(constraint: Any) -> tuple[Any, Any] | None:
    """The ends of an interval of real numbers; None for any other set."""
    if isinstance(constraint, constraints.independent):
        return _bounds(constraint.base_constraint)
    if isinstance(constraint, constraints.cat):
        each = [_bounds(part) for part in constraint.cseq]
        return each[0] if all(b == (-math.inf, math.inf) for b in each) else None
    ends = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    if constraint.is_discrete or (ends == (None, None) and constraint is not constraints.real):
        return None
    return -math.inf if ends[0] is None else ends[0], math.inf if ends[1] is None else ends[1]


def _owned(transform: Transform) -> Transform:
    """The same transform without torch's weak inverses."""
    if isinstance(transform, ComposeTransform):
        return ComposeTransform([_owned(part) for part in transform.parts])
    if isinstance(transform, transforms._InverseTransform):
        inner: Any = transform._inv
        return Inverse(_owned(inner))
    return transform


class _Image(constraints.Constraint):
    """Finite values that the transform can give; a composition says only what its last part can."""

    event_dim = 0

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __repr__(self) -> str:
        return f"the finite image of {type(self.transform).__name__}"

    def check(self, value: Tensor) -> Tensor:
        good = value.isfinite()
        for part in reversed(getattr(self.transform, "parts", [self.transform])):
            good = good & part.codomain.check(value)
            value = part.inv(value)
        return good


@biject_to.register(_Image)
@transform_to.register(_Image)
def _onto(image: _Image) -> Transform:
    return image.transform
