r"""Low rank plus diagonal from a covariance: principal components, then EM for factor analysis."""

import torch

from torch import Tensor

from pyro_ar.checks import require

__all__ = ["identity_like", "low_rank_of"]

EXACT = 200  # features up to which all eigenvectors are computed


def low_rank_of(matrix: Tensor, rank: int, *, em_steps: int = 0) -> tuple[Tensor, Tensor]:
    r"""Factor `(*B, D, r)` and diagonal `(*B, D)` of a covariance `(*B, D, D)`, whose own diagonal they keep.

    The eigenvectors of the r largest eigenvalues, the mean of the others taken off; then EM for factor analysis. Above 200 features the
    eigenvectors are those of six steps of subspace iteration.

    Raises:
        ValueError: `rank` is not from 1 to D.
    """
    D = matrix.shape[-1]
    require(1 <= rank <= D, f"rank must be from 1 to the {D} features", rank)
    values, vectors = _leading(matrix, rank)
    total = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    rest = (total - values.sum(-1)).clamp(min=0) / max(D - rank, 1)
    factor = vectors * (values - rest[..., None]).clamp(min=0).sqrt().unsqueeze(-2)
    diag = matrix.diagonal(dim1=-2, dim2=-1) - factor.square().sum(-1)
    floor = 1e-6 * matrix.diagonal(dim1=-2, dim2=-1)  # of rank D, or after rounding, nothing might be left
    diag = torch.maximum(diag, floor)
    for _ in range(em_steps):
        scaled = factor / diag.unsqueeze(-1)
        C = identity_like(factor) + factor.mT @ scaled
        weights = torch.cholesky_solve(scaled.mT, torch.linalg.cholesky(C))  # (*B, r, D): factors from values
        cross = matrix @ weights.mT
        second = torch.cholesky_inverse(torch.linalg.cholesky(C)) + weights @ cross
        factor = torch.linalg.solve(second, cross.mT).mT
        diag = torch.maximum(matrix.diagonal(dim1=-2, dim2=-1) - (factor * cross).sum(-1), floor)
    return factor, diag


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    D, more = matrix.shape[-1], 10
    if D <= max(EXACT, rank + more):
        values, vectors = torch.linalg.eigh(matrix)
        return values[..., -rank:], vectors[..., -rank:]
    noise = torch.Generator().manual_seed(0)  # equal data give equal factors
    basis = torch.randn(*matrix.shape[:-2], D, rank + more, dtype=matrix.dtype, generator=noise).to(matrix.device)
    for _ in range(6):
        basis, _ = torch.linalg.qr(matrix @ basis)
    values, inner = torch.linalg.eigh(basis.mT @ (matrix @ basis))
    return values[..., -rank:], (basis @ inner)[..., -rank:]


def identity_like(F: Tensor) -> Tensor:
    """The identity of the factors, `(*B, r, r)`, for `F` `(*B, D, r)`."""
    return torch.eye(F.shape[-1], dtype=F.dtype, device=F.device).expand(*F.shape[:-2], -1, -1)
