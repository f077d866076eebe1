r"""Differences of log-gamma functions that keep their digits however large the numbers are.

:math:`\log\Gamma(a + n) - \log\Gamma(a)` as it stands loses as many digits as :math:`\log\Gamma(a)` has before the point: at
:math:`a = 10^{14}`, in double precision, all that matter.
"""

import torch

from torch import Tensor

__all__ = ["log_rising_over_power"]

LARGE = 10.0  # from here on Stirling's series, seven terms of it, is exact in double precision
SMALL = 0.1  # up to here the series of log(1 + x) - x is


def log_rising_over_power(a: Tensor, n: Tensor) -> Tensor:
    r"""Log of a (a + 1) ... (a + n - 1) over a to the n, also where n is no whole number.

    .. math:: \log \frac{\Gamma(a + n)}{\Gamma(a)\, a^n}

    It tends to zero as a grows. Value and derivatives of any order keep their digits.

    Args:
        a: More than 0, floating.
        n: 0 or more; broadcasts with `a`.

    Source:
        Stirling's series: *NIST Digital Library of Mathematical Functions*, 5.11.1.

    Example:
        >>> log_rising_over_power(torch.tensor([2.0, 1e30]), torch.tensor(2.0)).exp()  # 2 3 / 4
        tensor([1.5000, 1.0000])
    """
    large = a >= LARGE
    some, few = torch.where(large, a, LARGE), torch.where(large, 1.0, a)
    x = n / some
    # (a + n - 1/2) log(1 + x) - n, without the difference of large numbers
    series = n * x - x / 2 + (some + n - 0.5) * _log1p_less_its_argument(x) + (_stirling(some + n) - _stirling(some))
    return torch.where(large, series, torch.lgamma(few + n) - torch.lgamma(few) - n * few.log())


def _log1p_less_its_argument(x: Tensor) -> Tensor:
    """log(1 + x) - x for x of 0 or more."""
    small = x <= SMALL
    few = torch.where(small, x, 0.0)
    r = few / (2 + few)  # log(1 + x) = 2 artanh r
    square, total = r.square(), torch.zeros_like(r)
    for k in range(15, 1, -2):
        total = total * square + 2 / k
    return torch.where(small, r * (square * total - few), torch.log1p(x) - x)


def _stirling(z: Tensor) -> Tensor:
    """What Stirling's formula leaves of log-gamma."""
    inverse = 1 / z
    square, total = inverse.square(), torch.zeros_like(z)
    for term in (1 / 156, -691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        total = total * square + term
    return total * inverse
