r"""What a real cell tells about the class, where each class is a mixture of normal or Student-t lines: an integral to a tolerance.

.. math:: I(y; x) = \int \sum_c f_c(x) \log \frac{f_c(x)}{p_c\, f(x)}\, dx

with f_c the density of class c times its probability p_c, and f their sum. Mixtures have no closed form for it. The integrand is
never negative and analytic, so the trapezoid rule, after a change of variable that stretches the tails, converges faster than any power
of its step: each halving of the step about doubles the number of right digits, once the step is below the narrowest scale.
"""

import math

import torch

from torch import Tensor

from pyro_ar.budget import CACHE, at_once
from pyro_ar.checks import IntractableError
from pyro_ar.rising import log_rising_over_power

__all__ = ["line_information", "neglected"]

MAX_NODES = 2**15


def neglected(tolerance: float, num_classes: int) -> float:
    r"""The probability d that may be left out, whatever lies there, for an error of at most a quarter of `tolerance`.

    Leaving out a part of probability d, of the components or of the line, changes the information by at most
    h(d) + d log C, with h the entropy of a coin: the part is one more variable, which tells at most h(d).
    """
    d = tolerance / 4
    for _ in range(20):
        d = (tolerance / 4) / (1 - math.log(d) + math.log(max(num_classes, 2)))
    return d


def line_information(share: Tensor, owner: Tensor, loc: Tensor, scale: Tensor, df: Tensor, *, tolerance: float) -> Tensor:
    r"""I(y; x) in nats of P separate lines, `(P,)`, each to `tolerance`.

    What lies further out than probability `neglected` is bounded; the error of the sum is taken for its change when the
    step is halved, and the step is halved until it changes by less than half of the tolerance.

    Args:
        share: Probability of each component, `(P, M)`, rows that sum to one.
        owner: Its class, one-hot, `(P, M, C)`.
        loc: Centre, `(P, M)`.
        scale: `(P, M)`.
        df: Degrees of freedom, infinite for a normal, `(P, M)`.
        tolerance: In nats.

    Raises:
        IntractableError: Components so narrow, beside the distance between them, that it would take too many nodes.
    """
    low, high, centre, width = _range(share, loc, scale, df, neglected(tolerance, owner.shape[-1]))
    # At first one step for the narrowest scale, wherever it lies, so that no component falls between two nodes.
    step = (scale / (width[:, None].square() + (loc - centre[:, None]).square()).sqrt()).amin(-1)
    nodes = ((high - low) / step).clamp(min=8, max=2 * MAX_NODES).log2().ceil().exp2().round().long()
    answer = torch.zeros_like(low)
    for n in nodes.unique().tolist():
        lines = (nodes == n).nonzero().squeeze(-1)
        for turn in lines.split(at_once(2 * n * share.shape[1], CACHE)):
            parts = [t[turn] for t in (share, owner, loc, scale, df, low, high, centre, width)]
            answer[turn] = _integrate(*parts, n=n, tolerance=tolerance)
    return answer


def _range(share: Tensor, loc: Tensor, scale: Tensor, df: Tensor, tail: float) -> tuple[Tensor, ...]:
    """The ends of the line in the stretched variable u of x = centre + width sinh(u), with centre and width, `(P,)` each."""
    # A t is a normal over the root of a gamma, whence P(|t| > a) <= E exp(-a^2 gamma / 2) = (1 + a^2 / df)^(-df / 2).
    few = torch.where(df.isinf(), 1.0, df)
    reach = torch.where(df.isinf(), -2 * math.log(tail), few * torch.expm1(-2 * math.log(tail) / few)).sqrt() * scale
    centre = (share * loc).sum(-1)
    width = (share * scale.log()).sum(-1).exp()
    low, high = (loc - reach).amin(-1), (loc + reach).amax(-1)
    return ((low - centre) / width).asinh(), ((high - centre) / width).asinh(), centre, width


def _integrate(share: Tensor, owner: Tensor, loc: Tensor, scale: Tensor, df: Tensor, low: Tensor, high: Tensor, centre: Tensor,
               width: Tensor, *, n: int, tolerance: float) -> Tensor:
    front = torch.where(df.isinf(), -0.5 * math.log(2 * math.pi), _log_front(df)) - scale.log() + share.log()
    prior = torch.einsum("pm,pmc->pc", share, owner)
    answer, change, todo = torch.zeros_like(low), torch.full_like(low, math.inf), torch.arange(len(low), device=low.device)

    def total(at: Tensor, rows: Tensor) -> Tensor:
        """Sum of the integrand over nodes `at` `(Q,)`, as shares of the range, times the range."""
        span = (high - low)[rows]
        u = low[rows, None] + span[:, None] * at
        x = centre[rows, None] + width[rows, None] * u.sinh()
        density = _densities(x, front[rows], loc[rows], scale[rows], df[rows]) @ owner[rows]  # (P, Q, C)
        whole = density.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        told = torch.xlogy(density, density / (prior[rows].unsqueeze(1) * whole).clamp(min=torch.finfo(x.dtype).tiny)).sum(-1)
        return (told * width[rows, None] * u.cosh()).sum(-1) * span

    answer = total(torch.arange(n + 1, device=low.device).to(low) / n, todo) / n
    while len(todo):
        if n > MAX_NODES:
            raise IntractableError(f"the information of {len(todo)} cells is not settled to {tolerance:.2g} nats by {n} nodes: some "
                                   "component is too narrow beside the distance between components; more shrinkage, or a larger tolerance")
        turn = (torch.arange(n, device=low.device).to(low) + 0.5) / n
        finer = torch.cat([answer[part] / 2 + total(turn, part) / (2 * n)
                           for part in todo.split(at_once(n * share.shape[1], CACHE))])
        change = (finer - answer[todo]).abs()
        answer[todo] = finer
        todo, n = todo[change > tolerance / 2], 2 * n
    return answer.clamp(min=0)


def _log_front(df: Tensor) -> Tensor:
    return log_rising_over_power(df / 2, df.new_tensor(0.5)) - math.log(2 * math.pi) / 2


def _densities(x: Tensor, front: Tensor, loc: Tensor, scale: Tensor, df: Tensor) -> Tensor:
    """Each component's density times its share at `x` `(P, Q)`: `(P, Q, M)`."""
    square = ((x.unsqueeze(-1) - loc.unsqueeze(1)) / scale.unsqueeze(1)).square_()
    normal = df.isinf()
    if bool(normal.all()):
        return square.mul_(-0.5).add_(front.unsqueeze(1)).exp_()
    df = df.unsqueeze(1)
    student = (-(df + 1) / 2) * (square / df).log1p()
    exponent = torch.where(normal.unsqueeze(1), -square / 2, student) if bool(normal.any()) else student
    return exponent.add_(front.unsqueeze(1)).exp_()
