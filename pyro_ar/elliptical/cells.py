r"""What each single cell may be, given the visible ones: a normal or Student-t line for every cell and component."""

import math

from collections.abc import Sequence
from typing import NamedTuple

import torch

from torch import Tensor

from pyro_ar.elliptical.base import Elliptical

__all__ = ["Components", "Lines"]


class Lines(NamedTuple):
    """Student-t distributions of single cells; with infinitely many degrees of freedom, normal ones.

    Attributes:
        loc: Centres, `(R, M, D)`.
        scale: `(R, M, D)`.
        df: Degrees of freedom, `(R, M)`.
    """

    loc: Tensor
    scale: Tensor
    df: Tensor


class Components:
    """The entries of elliptical joints of any form, one after the other, so that each row may ask a few of them.

    Args:
        joints: Of one event shape; the entries of their batches follow each other.
    """

    def __init__(self, joints: Sequence[Elliptical]) -> None:
        def flat(joint: Elliptical, t: Tensor, dims: int) -> Tensor:
            right = t.shape[t.ndim - dims:]
            return t.detach().expand((*joint.batch_shape, *right)).reshape(-1, *right)

        self.loc = torch.cat([flat(j, j.loc, 1) for j in joints])
        df = [getattr(j, "df", j.loc.new_tensor(math.inf)) for j in joints]
        self.df = torch.cat([flat(j, d, 0) for j, d in zip(joints, df, strict=True)])
        low_rank = [hasattr(j, "cov_factor") for j in joints]
        self.factor: Tensor | None = None
        if all(low_rank):
            rank = max(j.cov_factor.shape[-1] for j in joints)
            self.factor = torch.cat([torch.nn.functional.pad(f, (0, rank - f.shape[-1])) for f in (
                flat(j, j.cov_factor, 2) for j in joints)])
            self.diag = torch.cat([flat(j, j.cov_diag, 1) for j in joints])
        else:
            self.matrix = torch.cat([flat(j, _dense(j), 2) for j in joints])

    def given(self, x: Tensor, visible: Tensor, entry: Tensor) -> Lines:
        r"""Distributions of all cells of rows; of no use where a cell is visible.

        .. math:: x_i \mid x_v \sim t_{\nu + |v|}\left(\mu_i + \Sigma_{iv} \Sigma_{vv}^{-1} e_v,\;
                  \frac{\nu + q}{\nu + |v|} (\Sigma_{ii} - \Sigma_{iv} \Sigma_{vv}^{-1} \Sigma_{vi}) \right)

        Args:
            x: `(R, D)`.
            visible: `(R, D)`.
            entry: Which components each row asks, `(R, M)`.
        """
        loc, variance, q = (x.new_zeros(*entry.shape, *more).to(self.loc) for more in ((x.shape[1],), (x.shape[1],), ()))
        count = visible.sum(-1)
        for m in count.unique().tolist():
            rows = (count == m).nonzero().squeeze(-1)
            part = self._dense_given if self.factor is None else self._low_rank_given
            loc[rows], variance[rows], q[rows] = part(x[rows], visible[rows], entry[rows], m)
        df, seen = self.df[entry], count[:, None]
        stretch = torch.where(df.isinf(), 1.0, (df + q) / (df + seen))
        return Lines(loc, (variance * stretch.unsqueeze(-1)).sqrt(), df + seen)

    def _dense_given(self, x: Tensor, visible: Tensor, entry: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
        loc, whole = self.loc[entry], self.matrix.diagonal(dim1=-2, dim2=-1)[entry]
        if m == 0:
            return loc, whole, loc.new_zeros(entry.shape)
        index = visible.nonzero()[:, 1].reshape(len(x), 1, m)
        cross = self.matrix[entry.unsqueeze(-1), index]  # (R, M, m, D)
        block = cross.gather(-1, index.unsqueeze(-2).expand(*entry.shape, m, m))
        error = (x.unsqueeze(1) - loc).gather(-1, index.expand(*entry.shape, m))
        both = torch.cat([cross, error.unsqueeze(-1)], -1)
        white = torch.linalg.solve_triangular(torch.linalg.cholesky(block), both, upper=False)
        W, e = white[..., :-1], white[..., -1]
        return loc + torch.einsum("rmij,rmi->rmj", W, e), _positive(whole - W.square().sum(-2), whole), e.square().sum(-1)

    def _low_rank_given(self, x: Tensor, visible: Tensor, entry: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
        loc, d = self.loc[entry], self.diag[entry]
        F: Tensor = self.factor[entry]  # type: ignore[index]  # (R, M, D, r)
        error = torch.where(visible.unsqueeze(1), x.unsqueeze(1) - loc, 0)
        scaled = F * (visible.unsqueeze(1) / d).unsqueeze(-1)
        C = scaled.mT @ F + torch.eye(F.shape[-1], dtype=F.dtype, device=F.device)
        both = torch.cat([F.mT, torch.einsum("rmdk,rmd->rmk", scaled, error).unsqueeze(-1)], -1)
        white = torch.linalg.solve_triangular(torch.linalg.cholesky(C), both, upper=False)
        W, b = white[..., :-1], white[..., -1]
        q = (error.square() / d).sum(-1) - b.square().sum(-1)
        return loc + torch.einsum("rmij,rmi->rmj", W, b), d + W.square().sum(-2), q.clamp(min=0)


def _dense(joint: Elliptical) -> Tensor:
    factor = getattr(joint, "cov_factor", None)
    if factor is None:
        return joint.matrix
    return factor @ factor.mT + torch.diag_embed(joint.cov_diag)


def _positive(variance: Tensor, whole: Tensor) -> Tensor:
    """What is left of a variance: rounding may leave nothing where the cell follows from the visible ones (or is one)."""
    return torch.maximum(variance, torch.finfo(whole.dtype).eps * whole)
