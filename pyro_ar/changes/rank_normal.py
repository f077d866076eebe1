r"""Normal scores: each cell's smoothed ranks among the training rows, as an invertible transform."""

from collections.abc import Sequence

import torch

from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.transforms import Transform

from pyro_ar.arrays import Array, as_tensor
from pyro_ar.checks import require
from pyro_ar.visible import read_rows

__all__ = ["RankNormal"]

MAX_ROWS = 10_000  # that ranks are learnt from; more change them by less than a hundredth


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
    def from_data(cls, x: Array, *, smoothing: float = 0.6, max_points: int = 64, visible: Array | None = None,
                  weights: Array | None = None) -> "RankNormal":
        r"""Scores :math:`\Phi^{-1}(u)` with :math:`u = (F(x) + a\,G(x)) / (1 + a)`.

        F is the mid-rank among the rows (share below, plus half the share of ties) and G the uniform distribution over the range of the cell.
        If the data hold at most `max_points` different numbers (grey levels), these are the points in every cell; otherwise
        each cell has its own different numbers, or so many of its quantiles.

        Args:
            x: Rows `(N, *event)`; of more than 10,000, evenly spaced ones are used.
            smoothing: a, more than 0: how many rows G is worth, as a share of N.
            max_points: Most points of the spline in each cell, at least 2.
            visible: bool, `(N, *event)`; True = seen. Ranks are then those among the visible values of each cell. None: NaN hides a cell.
            weights: `(N,)`, 0 or more: a row of weight 2 is two equal rows, one of weight 0 is no row. Their scale does not matter.

        Raises:
            ValueError: No rows, NaN, options out of range, or a cell without visible values.
        """
        x, visible = read_rows(x, visible)
        seen = torch.ones_like(x, dtype=torch.bool) if visible is None else visible
        require(seen.shape == x.shape and seen.dtype == torch.bool, "visible must be bool, of the shape of the data", seen)
        finite = x.ndim >= 2 and x.numel() > 0 and bool((x.isfinite() | ~seen).all())
        require(finite, "data must be finite rows (N, *event)", x)
        require(smoothing > 0, "smoothing must be more than 0", smoothing)
        require(max_points >= 2, "max_points must be 2 or more", max_points)
        x = x if x.is_floating_point() else x.double()
        w = torch.ones(len(x), dtype=torch.float64, device=x.device)
        if weights is not None:
            w = as_tensor(weights, x.device).double()
            good = w.shape == (len(x),) and bool((w >= 0).all()) and bool(w.isfinite().all()) and bool((w > 0).any())
            require(good, f"weights must be ({len(x)},), 0 or more, not all 0", w)
            x, seen, w = x[w > 0], seen[w > 0], w[w > 0]
        step = -(-len(x) // MAX_ROWS)
        rows = x[::step].double().flatten(1).T.contiguous()
        if visible is None:
            columns = [_Column(row, w[::step]) for row in rows]
            levels = rows.unique()
        else:
            mine = seen[::step].flatten(1).T
            never = (~mine.any(-1)).nonzero().flatten().tolist()
            require(not never, "every cell must be visible in some row (leave out a cell that is never seen)", f"cells {never} hidden")
            columns = [_Column(row[m], w[::step][m]) for row, m in zip(rows, mine, strict=True)]
            levels = rows[mine].unique()
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


class _Column:
    """Sorted values of a cell, and the weight of those up to each, 0 before the first."""

    def __init__(self, values: Tensor, weights: Tensor) -> None:
        self.values, order = values.sort()
        self.upto = torch.nn.functional.pad(weights[order].cumsum(0), (1, 0))
        self.unit = min(1.0, float(weights.min()))  # a weight is so many of it, as a row is one


def _points(column: _Column, most: int) -> Tensor:
    """Different numbers of a column, or so many of its quantiles; around a constant, one to each side."""
    levels = column.values.unique()
    if len(levels) == 1:
        return torch.stack([levels[0] - 1, levels[0] + 1])
    if len(levels) <= most:
        return levels
    units = float(column.upto[-1]) / column.unit
    at = (torch.linspace(0, max(units - 1, 0), most, dtype=levels.dtype, device=levels.device).round() + 0.5) * column.unit
    return column.values[torch.searchsorted(column.upto[1:], at).clamp(max=len(column.values) - 1)].unique()


def _scores(column: _Column, points: Tensor, smoothing: float) -> Tensor:
    below, upto = (column.upto[torch.searchsorted(column.values, points, right=right)] for right in (False, True))
    rank = (below + upto) / (2 * column.upto[-1])
    half_gap = (points[-1] - points[0]) / (2 * (len(points) - 1))
    uniform = (points - points[0] + half_gap) / (points[-1] - points[0] + 2 * half_gap)
    return torch.special.ndtri((rank + smoothing * uniform) / (1 + smoothing))


def _padded(scores: Tensor, points: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """More points on the last one's straight line, so that cells with fewer points stack."""
    more = torch.arange(1, size - len(points) + 1, dtype=points.dtype, device=points.device)
    return (torch.cat([scores, scores[-1] + more * (scores[-1] - scores[-2])]),
            torch.cat([points, points[-1] + more * (points[-1] - points[-2])]))
