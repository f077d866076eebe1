r"""Many small Cholesky factors at once, the matrices innermost in memory.

LAPACK takes one small matrix after the other, and most of its time is overhead. Here each step of the factorisation is one
operation on all of them: 4 to 8 times faster for 400 matrices of 16 x 16, and for no gradient.
"""

from collections.abc import Callable

import torch

from torch import Tensor

from pyro_ar.budget import CACHE, at_once

__all__ = ["solve_columns", "squared_lengths"]



def solve_columns(column: Callable[[int], Tensor], size: int) -> tuple[Tensor, Tensor]:
    r"""Squared length of :math:`L^{-1} e` and half the log determinant of matrices :math:`A = L L^\top`.

    Args:
        column: `column(j)` gives column j of the lower triangles with e_j below it, `(size - j + 1, *N)`, contiguous and
            free to be overwritten.
        size: Of the matrices.

    Returns:
        Both `(*N)`; NaN where a matrix is not positive definite.
    """
    done: list[Tensor] = []
    for j in range(size):
        a = column(j)
        for k in range(j):
            a.addcmul_(done[k][j - k:], done[k][j - k], value=-1)
        a.mul_(a[0].rsqrt())
        done.append(a)
    q = done[0][-1].square()
    for a in done[1:]:
        q.addcmul_(a[-1], a[-1])
    return q, torch.stack([a[0] for a in done]).log_().sum(0)


def squared_lengths(matrices: Tensor, index: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    r"""Squared length of the whitened `residual`, and half the log determinant, for sub-blocks of many matrices.

    Args:
        matrices: `(D, D, E)`, symmetric, contiguous.
        index: Rows and columns of the sub-block of each pattern, `(P, m)` with m at least 1.
        residual: `(P, E, m)`.

    Returns:
        Both `(P, E)`.
    """
    (P, m), D, E = index.shape, matrices.shape[0], matrices.shape[-1]
    flat, at = matrices.reshape(D * D, E), index.mT.contiguous()
    answers = []
    step = at_once(E * m * (m + 1) // 2, 2 * CACHE)
    for turn in range(0, P, step):
        here, error = at[:, turn:turn + step], residual[turn:turn + step].movedim(-1, 0).contiguous()
        answers.append(solve_columns(_gather(flat, here, error, D), m))
    return torch.cat([a[0] for a in answers]), torch.cat([a[1] for a in answers])


def _gather(flat: Tensor, at: Tensor, error: Tensor, D: int) -> Callable[[int], Tensor]:
    """Columns of the sub-blocks `at` `(m, P)`, each with its line of `error` `(m, P, E)` below."""
    m, P, E = error.shape

    def column(j: int) -> Tensor:
        a = flat.new_empty(m - j + 1, P, E)
        torch.index_select(flat, 0, (at[j:] * D + at[j]).reshape(-1), out=a[:-1].view(-1, E))
        a[-1] = error[j]
        return a

    return column
