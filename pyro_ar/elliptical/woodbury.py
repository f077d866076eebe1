r"""Woodbury's identity for many rows: the small matrices C = I + F_v' D_v^-1 F_v, and what they take off the lengths."""

import torch

from torch import Tensor

from pyro_ar.budget import at_once
from pyro_ar.elliptical.columns import solve_columns
from pyro_ar.elliptical.dense import NotPositiveDefinite
from pyro_ar.elliptical.factor_analysis import identity_like
from pyro_ar.transforms import is_mapped

__all__ = ["alone", "by_factor", "cholesky", "sums", "together"]



def cholesky(C: Tensor) -> Tensor:
    """Lower factors; raises where rounding has left nothing of the diagonal."""
    if is_mapped(C):
        return torch.linalg.cholesky(C)  # torch can tell what is under a vmap
    factor, info = torch.linalg.cholesky_ex(C)
    if bool((info != 0).any()):
        raise NotPositiveDefinite("the diagonal is too small beside the factor for this precision; use float64 or shrinkage")
    return factor


def sums(error: Tensor, visible: Tensor, F: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """C `(n, r, r)` and b `(n, r)` of rows, each with its own factor `(n, D, r)`."""
    scaled = F * (visible / d).unsqueeze(-1)
    return identity_like(F) + scaled.mT @ F, torch.einsum("ndr,nd->nr", scaled, torch.where(visible, error, 0))


def by_factor(rows: Tensor, F: Tensor) -> Tensor:
    """Rows `(R, D)` by factors `(E, D, r)`: `(r, R, E)`."""
    return torch.matmul(rows, F.permute(2, 1, 0))


def together(patterns: Tensor, which: Tensor, F: Tensor, inverse: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers b' C^-1 b and half log |C|, `(R, E)`; one factor per pattern, differentiable."""
    less, half, rows_done = [], [], []
    for u, pattern in enumerate(patterns):
        f = F[:, pattern]
        factor = cholesky(identity_like(F) + f.mT @ (f * inverse[:, pattern, None]))
        rows = (which == u).nonzero().squeeze(-1)
        mine = b[:, rows].permute(2, 0, 1)  # (E, r, rows)
        less.append(torch.linalg.solve_triangular(factor, mine, upper=False).square().sum(1).T)
        half.append(factor.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(len(rows), -1))
        rows_done.append(rows)
    back = torch.cat(rows_done).argsort()
    return torch.cat(less)[back], torch.cat(half)[back]


def alone(visible: Tensor, F: Tensor, inverse: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """As `together`, a pattern per row and no gradient: the columns of C are products of the patterns."""
    (E, _, r), (R, _) = F.shape, visible.shape
    f, scaled = F.permute(2, 1, 0).contiguous(), (F * inverse[..., None]).permute(2, 1, 0).contiguous()  # (r, D, E)
    answers = []
    for turn in torch.arange(R, device=F.device).split(at_once(E * (r + 1) * r // 2)):

        def column(j: int, turn: Tensor = turn) -> Tensor:
            a = visible.new_empty(r - j + 1, len(turn), E)
            torch.matmul(visible[turn], f[j:] * scaled[j], out=a[:-1])
            a[0] += 1
            a[-1] = b[j, turn]
            return a

        answers.append(solve_columns(column, r))
    return torch.cat([a[0] for a in answers]), torch.cat([a[1] for a in answers])
