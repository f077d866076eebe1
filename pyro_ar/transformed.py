r"""Element-wise monotone changes of variable around a joint, under which marginals and conditionals stay exact."""

import math

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pyro.distributions import constraints
from torch import Size, Tensor
from torch.distributions import transforms
from torch.distributions.transforms import AffineTransform, ComposeTransform, SigmoidTransform, Transform

from pyro_ar.checks import require
from pyro_ar.joint import Joint

__all__ = ["RankNormal", "Transformed", "logit"]


class Transformed(Joint):
    r"""The joint of x = T(z) for z of a real-valued joint and an increasing or decreasing T of each cell.

    .. math:: \log p(x_v) = \log p_Z(z_v) + \sum_{i \in v} \log \left| \frac{dz_i}{dx_i} \right|

    The direction is torch's (`TransformedDistribution`): the transform takes z to x. Since it acts on each cell by itself, a hidden cell
    integrates out as before, and `marginal`, `given` and the chain rule are those of the joint of z, exactly.
    The mode is not carried over, because a change of variable moves it.

    Values are real numbers and `log_prob` is a density also where the data lie on a finite grid, such as grey levels. Times
    the spacing of the grid it approximates the probability of the level (the midpoint rule), never of a single number.
    Ratios of densities at one x, such as the posterior of a class, do not depend on the spacing, nor on the Jacobian.

    Shapes:
        As `joint`: its batch shape and event shape.

    Args:
        joint: Over real values; its tensors get the prefix `joint.`.
        transform: Element-wise bijection of the reals onto an interval, `transform(z) = x`, with tensors that broadcast to the
            event. It is kept as it is: its own tensors are not among `tensors`. If it has `num_parameters`, they count.

    Raises:
        ValueError: The joint is discrete or not over the reals, or the transform is not element-wise or not a bijection.

    Example:
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
        self.joint, self.transform = joint, _owned(transform)
        super().__init__({f"joint.{name}": t for name, t in joint.tensors.items()}, joint.batch_shape, joint.event_shape,
                         validate_args=validate_args)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Transformed":
        return Transformed(self.joint.with_tensors({k.removeprefix("joint."): t for k, t in tensors.items()}), self.transform)

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

    def conditional_log_prob(self, x: Tensor) -> Tensor:
        z, log_slope = self._back(self._check_value(x))
        return self.joint.conditional_log_prob(z) + log_slope

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        return self.transform(self.joint.expand(self.batch_shape).rsample(sample_shape))

    def _back(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Z and log |dz/dx| of each cell."""
        z = self.transform.inv(x)
        return z, -self.transform.log_abs_det_jacobian(z, x)

    def _back_where(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """`_back` of the visible cells, zeros elsewhere."""
        # Where x is hidden it holds 0, which may lie outside the support and would make NaN gradients.
        inside = self.transform(torch.zeros(self.event_shape, dtype=x.dtype, device=x.device)).detach()
        z, log_slope = self._back(torch.where(visible, x, inside))
        return torch.where(visible, z, 0), torch.where(visible, log_slope, 0)

    def _total(self, log_slope: Tensor) -> Tensor:
        return log_slope.flatten(-len(self.event_shape)).sum(-1) if self.event_shape else log_slope

    def _log_prob(self, x: Tensor) -> Tensor:
        z, log_slope = self._back(x)
        return self.joint._log_prob(z) + self._total(log_slope)

    def _log_marginal(self, x: Tensor, visible: Tensor) -> Tensor:
        z, log_slope = self._back_where(x, visible)
        return self.joint._log_marginal(z, visible) + self._total(log_slope)

    def _sample(self, shape: Size) -> Tensor:
        return self.transform(self.joint.expand(self.batch_shape)._sample(shape))

    def _complete(self, x: Tensor, visible: Tensor) -> Tensor:
        z, _ = self._back_where(x, visible)
        return torch.where(visible, x, self.transform(self.joint._complete(z, visible)))

    def _method(self, visible: Tensor) -> np.ndarray:
        return self.joint._method(visible)

    def _answering(self, visible: Tensor) -> "Transformed":
        answering = self.joint._answering(visible)
        return self if answering is self.joint else Transformed(answering, self.transform)


class RankNormal(Transform):
    r"""Values from normal scores: x(z), increasing, through given points; the inverse turns values into smoothed ranks.

    `transform.inv(x)` is approximately standard normal in each cell, whatever the shape of the data: what a Gaussian or Student-t
    wants. A monotone rational-quadratic spline runs through the points, so the density has no jumps; beyond
    the outermost points it goes on as a straight line, so that every real number has a score.
    The slope dz/dx at a point is the mean slope of its two neighbour intervals, so that on a grid of levels density times spacing
    is the probability of the level's own interval by the midpoint rule.

    Args:
        scores: z, increasing along the last dimension, `(*event, K)` with K at least 2.
        values: x, likewise.
        num_parameters: Free numbers in the scores; all of them by default.

    Raises:
        ValueError: Shapes that differ, or numbers that do not increase.

    Source:
        The spline: Durkan, Bekasov, Murray, Papamakarios (2019), *Neural spline flows*, NeurIPS 32.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.0], [10.0]])
        >>> RankNormal.from_data(x, smoothing=0.1).inv(x).squeeze()
        tensor([-1.1321, -0.0608, -0.0608,  1.1321])
    """

    domain = codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, scores: Tensor, values: Tensor, *, num_parameters: int | None = None) -> None:
        super().__init__()
        fits = scores.shape == values.shape and scores.ndim >= 1 and scores.shape[-1] >= 2
        require(fits, "RankNormal wants scores and values of one shape (*event, K), K at least 2", scores, values)
        increasing = bool((scores.diff() > 0).all()) and bool((values.diff() > 0).all())
        require(increasing, "scores and values must increase along the last dimension")
        self.scores, self.values = scores, values
        self.num_parameters = scores.numel() if num_parameters is None else num_parameters
        steep = scores.diff() / values.diff()
        wide = (scores[..., 2:] - scores[..., :-2]) / (values[..., 2:] - values[..., :-2])
        self._slopes = torch.cat([steep[..., :1], wide, steep[..., -1:]], -1)

    @classmethod
    def from_data(cls, x: Tensor, *, smoothing: float = 0.6, max_points: int = 64) -> "RankNormal":
        r"""Scores :math:`\Phi^{-1}(u)` with :math:`u = (F(x) + a\,G(x)) / (1 + a)`.

        F is the mid-rank among the rows (share below, plus half the share of ties) and G the uniform distribution over the range of the cell.
        If the data hold at most `max_points` different numbers (grey levels), these are the points in every cell; otherwise
        each cell has its own different numbers, or so many of its quantiles.

        Args:
            x: Rows `(N, *event)`.
            smoothing: a, more than 0: how many rows G is worth, as a share of N.
            max_points: Most points of the spline in each cell, at least 2.

        Raises:
            ValueError: No rows, NaN, or options out of range.
        """
        require(x.ndim >= 2 and x.numel() > 0 and bool(x.isfinite().all()), "data must be finite rows (N, *event)", x)
        require(smoothing > 0, "smoothing must be more than 0", smoothing)
        require(max_points >= 2, "max_points must be 2 or more", max_points)
        x = x if x.is_floating_point() else x.double()
        columns = x.double().flatten(1).T.contiguous().sort(-1).values
        levels = columns.unique()
        shared = levels if 2 <= len(levels) <= max_points else None
        points = [shared if shared is not None else _points(column, max_points) for column in columns]
        scores = [_scores(column, p, smoothing) for column, p in zip(columns, points, strict=True)]
        most = max(len(p) for p in points)
        padded = [_padded(z, p, most) for z, p in zip(scores, points, strict=True)]
        shape = (*x.shape[1:], most)
        return cls(torch.stack([z for z, _ in padded]).reshape(shape).to(x), torch.stack([p for _, p in padded]).reshape(
            shape).to(x), num_parameters=sum(len(p) for p in points))

    def _knots(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(k.to(t).reshape(-1, k.shape[-1]) for k in (self.scores, self.values, self._slopes))  # type: ignore

    def _intervals(self, t: Tensor, at: Tensor, knots: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """`t` with one column per cell, `(cells, rows)`, and what its interval of `at` begins and ends with in `knots`."""
        event = self.scores.shape[:-1]
        wide = t.expand(torch.broadcast_shapes(t.shape, event))
        columns = wide.reshape(-1, len(at)).T.contiguous()
        k = (torch.searchsorted(at, columns.detach(), right=True) - 1).clamp(0, at.shape[-1] - 2)
        return columns, [end for knot in knots for end in (knot.gather(-1, k), knot.gather(-1, k + 1))]

    def _restore(self, columns: Tensor, t: Tensor) -> Tensor:
        return columns.T.reshape(torch.broadcast_shapes(t.shape, self.scores.shape[:-1]))

    def _inverse(self, y: Tensor) -> Tensor:
        return self._restore(self._score(y)[0], y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self._restore(self._score(y)[1], y)

    def _score(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The score z of each value, and log dz/dx, with one column per cell."""
        scores, values, slopes = self._knots(value)
        v, (z0, z1, x0, x1, d0, d1) = self._intervals(value, values, (scores, values, slopes))
        s, inside = (z1 - z0) / (x1 - x0), ((v - x0) / (x1 - x0)).clamp(0, 1)
        cross = inside * (1 - inside)
        below = s + (d0 + d1 - 2 * s) * cross
        z = z0 + (z1 - z0) * (s * inside.square() + d0 * cross) / below
        z = torch.where(v < x0, z0 + d0 * (v - x0), torch.where(v > x1, z1 + d1 * (v - x1), z))
        slope = s.square() * (d1 * inside.square() + 2 * s * cross + d0 * (1 - inside).square()) / below.square()
        return z, slope.log()

    def _call(self, x: Tensor) -> Tensor:
        scores, values, slopes = self._knots(x)
        z, (z0, z1, x0, x1, d0, d1) = self._intervals(x, scores, (scores, values, slopes))
        s, up = (z1 - z0) / (x1 - x0), (z.clamp(z0, z1) - z0)
        bend = d0 + d1 - 2 * s
        a = (z1 - z0) * (s - d0) + up * bend
        b = (z1 - z0) * d0 - up * bend
        inside = 2 * s * up / (b + (b.square() + 4 * a * s * up).clamp(min=0).sqrt())  # the root that loses no digits
        v = x0 + inside * (x1 - x0)
        return self._restore(torch.where(z < z0, x0 + (z - z0) / d0, torch.where(z > z1, x1 + (z - z1) / d1, v)), x)


def logit(low: float | Tensor, high: float | Tensor) -> Transform:
    r"""Values in (low, high) from logits: :math:`x = l + (h - l)\,\sigma(z)`.

    For levels 0 to 16, `logit(-1, 17)` keeps the extremes finite.

    Raises:
        ValueError: `low` is not below `high`.
    """
    require(bool(torch.as_tensor(low < high).all()), "low must be below high", low, high)
    return ComposeTransform([SigmoidTransform(), AffineTransform(low, high - low)])


class _Inverse(Transform):
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


def _owned(transform: Transform) -> Transform:
    """The same transform without torch's weak inverses."""
    if isinstance(transform, ComposeTransform):
        return ComposeTransform([_owned(part) for part in transform.parts])
    if isinstance(transform, transforms._InverseTransform):
        return _Inverse(_owned(transform._inv))
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


def _points(column: Tensor, most: int) -> Tensor:
    """Different numbers of a sorted column, or so many of its quantiles; around a constant, one to each side."""
    levels = column.unique()
    if len(levels) == 1:
        return torch.stack([levels[0] - 1, levels[0] + 1])
    if len(levels) <= most:
        return levels
    at = torch.linspace(0, len(column) - 1, most, dtype=column.dtype).round().long()
    return column[at.to(column.device)].unique()


def _scores(column: Tensor, points: Tensor, smoothing: float) -> Tensor:
    below, upto = (torch.searchsorted(column, points, right=right) for right in (False, True))
    rank = (below + upto).to(points) / (2 * len(column))
    half_gap = (points[-1] - points[0]) / (2 * (len(points) - 1))
    uniform = (points - points[0] + half_gap) / (points[-1] - points[0] + 2 * half_gap)
    return torch.special.ndtri((rank + smoothing * uniform) / (1 + smoothing))


def _padded(scores: Tensor, points: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """More points on the last one's straight line, so that cells with fewer points stack."""
    more = torch.arange(1, size - len(points) + 1, dtype=points.dtype, device=points.device)
    return (torch.cat([scores, scores[-1] + more * (scores[-1] - scores[-2])]),
            torch.cat([points, points[-1] + more * (points[-1] - points[-2])]))
