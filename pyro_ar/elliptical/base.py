r"""What Gaussians and Student-t joints share: a centre, a scale matrix, and a density of the length of the whitened value.

.. math:: \log p(x_v) = r(q, |v|) - \tfrac12 \log |\Sigma_{vv}|, \quad
          q = (x_v - \mu_v)^\top \Sigma_{vv}^{-1} (x_v - \mu_v)

A concrete joint is a *form* of the matrix (dense, or low rank plus diagonal) with a *radius* (the r above).
"""

import math

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pyro.distributions import constraints
from torch import Size, Tensor

from pyro_ar.arrays import Array
from pyro_ar.checks import broadcast, require
from pyro_ar.expandable import batch_of
from pyro_ar.joint import Joint
from pyro_ar.rising import log_rising_over_power
from pyro_ar.transforms import is_mapped

__all__ = ["Elliptical", "NormalRadius", "StudentRadius", "moments"]


class Elliptical(Joint):
    """Joint with exact sub-block marginals. The form of the matrix fills the first hooks, the radius the last two."""

    support = constraints.real_vector
    has_rsample = True
    loc: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], event_dims: Mapping[str, int], *,
                 validate_args: bool | None = None) -> None:
        loc = tensors["loc"]
        require(len({t.dtype for t in tensors.values()}) == 1, f"{', '.join(tensors)} must have one dtype", *tensors.values())
        lefts = (t.shape[: t.ndim - event_dims[name]] for name, t in tensors.items())
        own = broadcast(f"the batch dimensions of {', '.join(tensors)} must broadcast", *lefts, came=tuple(tensors.values()))
        self._own_batch_shape = own
        # Every tensor has all batch dimensions (of size 1 where it had none), so that a mixture, or more dimensions left of
        # the batch, find them in place. A tensor that has them is kept itself: it may be a leaf.
        short = {name: len(own) - (t.ndim - event_dims[name]) for name, t in tensors.items()}
        tensors = {name: t[(None,) * short[name]] if short[name] else t for name, t in tensors.items()}
        for name, t in tensors.items():
            setattr(self, name, t)
        if validate_args is not False and not is_mapped(*tensors.values()):
            require(bool(loc.isfinite().all()), "loc must be finite, without NaN", loc)
            self._check_tensors()  # before torch's own checks, which do not say what would help
        super().__init__(tensors, own, loc.shape[-1:], validate_args=validate_args)

    @classmethod
    def infer_shapes(cls, **arg_shapes: Any) -> tuple[Size, Size]:
        dims: dict[str, int] = {name: constraint.event_dim for name, constraint in cls.arg_constraints.items()}
        shapes: dict[str, Any] = {name: arg_shapes.get(name, () if name == "df" else None) for name in dims}
        require(not set(arg_shapes) - set(dims), f"{cls.__name__} is made of {', '.join(dims)}", sorted(arg_shapes))
        return batch_of(cls, shapes, dims), Size(shapes["loc"][-1:])

    # Hooks of the form. `left` is rows and batch together.

    def _check_tensors(self) -> None:
        """Raise `ValueError` where a tensor is not what it must be."""
        raise NotImplementedError

    def whitened(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lengths q and half the log determinant of all cells, each broadcastable to `left`."""
        raise NotImplementedError

    def _part(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Lengths q and half the log determinant of the visible cells, each broadcastable to `left`."""
        raise NotImplementedError

    def _whiten(self, error: Tensor) -> tuple[Tensor, Tensor]:
        """Independent standardised errors of the chain, `(*left, D)`, and the log of their scales."""
        raise NotImplementedError

    def _noise(self, shape: Size) -> Tensor:
        """Gaussian draws with this matrix as covariance, `(*shape, D)`."""
        raise NotImplementedError

    def _regress(self, error: Tensor, visible: Tensor) -> Tensor:
        """Sigma[:, v] Sigma[v, v]^-1 error[v], of the shape of `error`, whose hidden cells are zero."""
        raise NotImplementedError

    def _unexplained(self, visible: Tensor) -> Tensor:
        """Sigma[i, i] - Sigma[i, v] Sigma[v, v]^-1 Sigma[v, i] of every hidden cell i, of the shape of `visible`."""
        raise NotImplementedError

    # Hooks of the radius.

    def radial(self, q: Tensor, m: Any, q_seen: Any = 0.0, m_seen: Any = 0) -> Tensor:
        """Log density of m whitened coordinates of squared length q, given m_seen others of squared length q_seen."""
        raise NotImplementedError

    def _radial_entropy(self, m: Tensor, q_seen: Any = 0.0, m_seen: Any = 0) -> Tensor:
        """Entropy of m whitened coordinates, given others as in `radial`."""
        raise NotImplementedError

    def _radial_moments(self, q_seen: Any, m_seen: Any) -> tuple[Tensor, Tensor]:
        """What to multiply centres (1 or NaN) and variances of whitened coordinates by, given others as in `radial`."""
        raise NotImplementedError

    def _stretch(self, shape: Size, evidence: tuple[Tensor, Tensor] | None = None) -> Tensor | None:
        """What multiplies Gaussian noise, `shape`, given (q, m) of what is seen; None: nothing does."""
        raise NotImplementedError

    # What follows.

    _needs_evidence = True

    def log_density(self, x: Tensor) -> Tensor:
        q, half = self.whitened(x)
        return self.radial(q, self.event_shape[0]) - half

    def log_marginal(self, x: Tensor, visible: Tensor) -> Tensor:
        q, half = self._part(x, visible)
        return self.radial(q, visible.sum(-1, dtype=q.dtype)) - half

    def conditional_log_prob(self, x: Array) -> Tensor:
        x = self.check_value(x)
        z, log_scale = self._whiten(x - self.loc)
        square = z.square().movedim(-1, 0)  # the batch rightmost, as in the tensors of the radius
        before = torch.cat([torch.zeros_like(square[:1]), square[:-1].cumsum(0)])
        count = torch.arange(len(square), device=x.device, dtype=square.dtype).reshape(-1, *[1] * (square.ndim - 1))
        terms = self.radial(square, 1, before, count).movedim(0, -1) - log_scale
        return terms.expand(torch.broadcast_shapes(terms.shape, self.batch_shape + self.event_shape))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        return self.draw(Size(sample_shape) + self.batch_shape)

    def draw(self, shape: Size) -> Tensor:
        return self.loc + self._draw(shape, None)

    def _draw(self, shape: Size, evidence: tuple[Tensor, Tensor] | None) -> Tensor:
        noise, stretch = self._noise(shape), self._stretch(shape, evidence)
        return noise if stretch is None else noise * stretch.unsqueeze(-1)

    def methods(self, visible: Tensor) -> np.ndarray:
        return np.full(tuple(visible.shape[:-1]), "closed form")

    def most_likely(self, x: Tensor, visible: Tensor) -> Tensor:
        error = torch.where(visible, x - self.loc, 0)
        return torch.where(visible, x, self.loc + self._regress(error, visible))

    def _seen_length(self, x: Tensor, visible: Tensor) -> Tensor:
        return self._part(x, visible)[0] if self._needs_evidence else torch.zeros(x.shape[:-1], dtype=x.dtype, device=x.device)

    def moments(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        centre, stretch = self._radial_moments(self._seen_length(x, visible), visible.sum(-1, dtype=x.dtype))
        mean = torch.where(visible, x, self.most_likely(x, visible) * centre.unsqueeze(-1))
        return mean, torch.where(visible, 0, self._unexplained(visible) * stretch.unsqueeze(-1))

    def entropy_given(self, x: Tensor, visible: Tensor) -> Tensor:
        q, half = self._part(x, visible)
        seen = visible.sum(-1, dtype=x.dtype)
        return self._radial_entropy(x.shape[-1] - seen, q, seen) + self.whitened(x)[1] - half

    def marginal_mode(self, visible: Tensor) -> Tensor:
        return self.loc.expand(visible.shape)

    def marginal_entropy(self, visible: Tensor) -> Tensor:
        _, half = self._part(self.loc.expand(visible.shape), visible)
        return self._radial_entropy(visible.sum(-1, dtype=self.dtype)) + half

    def complete(self, x: Tensor, visible: Tensor) -> Tensor:
        # Matheron's rule: a draw of the joint, corrected by what its visible cells are wrong by. Of a Student-t, the
        # hidden cells given the visible ones are the Gaussian's, stretched by how far out the visible ones lie.
        evidence = None
        if self._needs_evidence:
            evidence = self._part(x, visible)[0], visible.sum(-1, dtype=self.dtype)
        draw = self.loc + self._draw(x.shape[:-1], evidence)
        return torch.where(visible, x, draw + self._regress(torch.where(visible, x - draw, 0), visible))


class NormalRadius:
    """The radius of a Gaussian."""

    _needs_evidence = False

    def radial(self, q: Tensor, m: Any, q_seen: Any = 0.0, m_seen: Any = 0) -> Tensor:
        return -0.5 * (q + m * math.log(2 * math.pi))

    def _radial_entropy(self, m: Tensor, q_seen: Any = 0.0, m_seen: Any = 0) -> Tensor:
        return m * (0.5 * math.log(2 * math.pi * math.e))

    def _radial_moments(self, q_seen: Any, m_seen: Any) -> tuple[Tensor, Tensor]:
        return torch.ones_like(m_seen), torch.ones_like(m_seen)

    def _stretch(self, shape: Size, evidence: tuple[Tensor, Tensor] | None = None) -> Tensor | None:
        return None


class StudentRadius:
    """The radius of a multivariate Student-t with `df` degrees of freedom, `(*B)`."""

    df: Tensor
    _needs_evidence = True

    def radial(self, q: Tensor, m: Any, q_seen: Any = 0.0, m_seen: Any = 0) -> Tensor:
        # What is given adds its number to the degrees of freedom, and its length to the spread.
        df, spread = self.df + m_seen, self.df + q_seen
        half = torch.as_tensor(m, dtype=df.dtype, device=df.device) / 2
        front = log_rising_over_power(df / 2, half) + half * torch.log(df / (2 * math.pi * spread))
        return front - (df + m) / 2 * torch.log1p(q / spread)

    def _radial_entropy(self, m: Tensor, q_seen: Any = 0.0, m_seen: Any = 0) -> Tensor:
        # -E log p, with E log(1 + q / spread) the difference of two digammas.
        df = self.df + m_seen
        front = self.radial(torch.zeros_like(m), m, q_seen, m_seen)
        return (df + m) / 2 * (torch.digamma((df + m) / 2) - torch.digamma(df / 2)) - front

    def _radial_moments(self, q_seen: Any, m_seen: Any) -> tuple[Tensor, Tensor]:
        df = self.df + m_seen
        centre = torch.where(df > 1, 1.0, math.nan).to(df)
        stretch = (self.df + q_seen) / torch.where(df > 2, df - 2, 1)
        return centre, torch.where(df > 2, stretch, math.inf) * centre

    def _stretch(self, shape: Size, evidence: tuple[Tensor, Tensor] | None = None) -> Tensor | None:
        q, m = evidence if evidence is not None else (0.0, 0.0)
        shape_of_gamma = (self.df + m) / 2
        gamma = torch._standard_gamma(shape_of_gamma.expand(shape))
        return ((self.df + q) / (2 * gamma.clamp(min=torch.finfo(gamma.dtype).tiny))).sqrt()


def moments(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Checked rows `(N, D)`, floating, and weights `(*B, N)` that sum to one.

    Raises:
        ValueError: Wrong shapes, NaN, negative weights, or no weight at all.
    """
    require(isinstance(x, Tensor) and x.ndim == 2 and x.numel() > 0, "data must be rows of shape (N, D)", x)
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    require(bool(x.isfinite().all()), "data must be finite: without NaN", x)
    weights = x.new_ones(len(x)) if weights is None else weights.to(x)
    require(weights.ndim >= 1 and weights.shape[-1] == len(x), f"weights must end in ({len(x)},)", weights)
    require(bool((weights >= 0).all()) and bool((weights.sum(-1) > 0).all()),
            "weights must be 0 or more, with a positive sum in each batch entry", weights)
    return x, weights / weights.sum(-1, keepdim=True)
