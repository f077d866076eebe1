r"""What analyses of several completed tables say together."""

import math

from typing import NamedTuple

import numpy as np

from scipy import stats

from pyro_ar.checks import require

__all__ = ["Pooled", "pool"]


class Pooled(NamedTuple):
    """Estimates from m completed tables as one.

    Attributes:
        estimate: Their mean, `(...)`.
        standard_error: The root of the total variance, within tables and between them.
        df: Degrees of freedom of its t distribution.
        missing_information: Share of the total variance that the holes add, from 0 to 1.
    """

    estimate: np.ndarray
    standard_error: np.ndarray
    df: np.ndarray
    missing_information: np.ndarray

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Both ends of the interval that holds the truth with this probability.

        Raises:
            ValueError: A level that is not between 0 and 1.
        """
        require(0 < level < 1, "the level must lie between 0 and 1", level)
        half = stats.t.ppf(0.5 + level / 2, self.df) * self.standard_error
        return self.estimate - half, self.estimate + half


def pool(estimates: object, variances: object, *, complete_df: float = math.inf) -> Pooled:
    r"""Pool the estimates of m completed tables by Rubin's rules.

    .. math:: \bar q = \frac1m \sum_k q_k, \quad T = \bar u + \left(1 + \frac1m\right) b

    with u the mean of the squared standard errors and b the variance of the estimates between tables. The degrees of freedom are Barnard's and Rubin's, never
    more than those that the analysis would have without holes.

    Args:
        estimates: One per table, `(m, ...)`, m 2 or more.
        variances: Their squared standard errors, `(m, ...)`.
        complete_df: Degrees of freedom of the analysis of a complete table, rows less coefficients.

    Raises:
        ValueError: One table only, shapes that differ, numbers that are not finite, variances below zero.

    Source:
        Rubin (1987), *Multiple imputation for nonresponse in surveys*, eq. 3.1.2 to 3.1.10; Barnard, Rubin (1999), *Small-sample degrees of freedom with
        multiple imputation*, Biometrika 86.

    Example:
        >>> found = pool([1.0, 1.2, 0.8], [0.04, 0.04, 0.04])
        >>> found.estimate.round(2), found.standard_error.round(3), found.df.round(1)
        (np.float64(1.0), np.float64(0.306), np.float64(6.1))
    """
    q, u = (np.asarray(values, dtype=float) for values in (estimates, variances))
    require(q.ndim >= 1 and len(q) >= 2 and q.shape == u.shape, "estimates and variances must be of two tables or more, in equal shapes", q.shape, u.shape)
    require(bool(np.isfinite(q).all() and np.isfinite(u).all() and (u >= 0).all()), "estimates must be finite, and variances 0 or more")
    require(complete_df > 0, "complete_df must be more than 0", complete_df)
    m = len(q)
    within, between = u.mean(0), q.var(0, ddof=1)
    total = within + (1 + 1 / m) * between
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(total > 0, (1 + 1 / m) * between / total, 0.0)
        old = np.where(share > 0, (m - 1) / share**2, math.inf)
        observed = (1 - share) * complete_df * ((complete_df + 1) / (complete_df + 3) if math.isfinite(complete_df) else 1)
        df = np.where(share < 1, 1 / (1 / old + 1 / observed), old)
    return Pooled(q.mean(0), np.sqrt(total), df, share)
