r"""What a joint says of hidden variables: log p(x_hidden | x_visible), by which means, and draws of them."""

import math

from dataclasses import dataclass

import torch

from torch import Tensor

from pyro_ar.checks import IntractableError
from pyro_ar.inference import sample_given
from pyro_ar.joint import Joint
from pyro_ar.neural import Autoregressive

__all__ = ["Answer", "OfLevels", "answer"]

SHIFTS = 64  # points of a cell at which a density is read
TOGETHER = 50  # rows answered at once


@dataclass(frozen=True)
class OfLevels:
    r"""A joint over real values x + u, u uniform on [0, 1), that stands for one over whole numbers x.

    Its law of the hidden whole numbers, :math:`\int p(x_h + u \mid x_v + \tfrac12) \, du`, has no closed form. What is scored is the logarithm of a mean of the
    density over draws of u, in expectation a lower bound (Burda, Grosse, Salakhutdinov 2016).
    """

    joint: Joint
    levels: int


@dataclass(frozen=True)
class Answer:
    """Of N rows.

    Attributes:
        log_p: log p(x_hidden | x_visible), `(N,)`, in nats.
        kind: 'exact', 'estimate' or 'at least'.
        method: How, in words.
        error: Standard error of the estimate of each row, `(N,)`; zeros where there is none.
        trusted: Whether the estimate of each row may be trusted, `(N,)`.
        draws: Completions, `(S, N, n)`.
    """

    log_p: Tensor
    kind: str
    method: str
    error: Tensor
    trusted: Tensor
    draws: Tensor


def answer(joint: Joint | OfLevels, x: Tensor, visible: Tensor, draws: int, particles: int) -> Answer:
    """Exact where the joint has an answer, for a chain without one an estimate by sequential Monte Carlo.

    Args:
        joint: Over n variables, in one dimension or several.
        x: `(N, n)`.
        visible: `(N, n)`.
        draws: Completions of each row.
        particles: Of an estimate.

    Raises:
        IntractableError: It is no chain either.
    """
    parts = []
    with torch.no_grad():
        for rows, seen in zip(x.split(TOGETHER), visible.split(TOGETHER), strict=True):
            parts.append(_of_levels(joint, rows, seen, draws) if isinstance(joint, OfLevels) else _of_states(joint, rows, seen, draws, particles))
    whole = [torch.cat([getattr(part, name) for part in parts]) for name in ("log_p", "error", "trusted")]
    kinds, methods = (dict.fromkeys(getattr(part, name) for part in parts) for name in ("kind", "method"))
    kind = next(kind for kind in ("estimate", "at least", "exact") if kind in kinds)
    return Answer(whole[0], kind, ", ".join(methods), whole[1], whole[2], torch.cat([part.draws for part in parts], 1))


def _of_states(joint: Joint, x: Tensor, visible: Tensor, draws: int, particles: int) -> Answer:
    n = x.shape[-1]
    x, visible = x.reshape(-1, *joint.event_shape), visible.reshape(-1, *joint.event_shape)
    try:
        given = joint.given(x, visible)
    except IntractableError:
        if not isinstance(joint, Autoregressive):
            raise
        found = sample_given(joint, x, visible, draws, num_particles=particles)
        log_p = joint.log_prob(x) - found.log_marginal.estimate
        return Answer(log_p, "estimate", "sequential Monte Carlo", found.log_marginal.standard_error, found.log_marginal.trusted, found.x.reshape(draws, -1, n))
    method = " and ".join(dict.fromkeys(given.method.ravel().tolist()))
    drawn = given.sample(torch.Size([draws])).reshape(draws, -1, n)
    return Answer(given.log_prob(x), "exact", method, torch.zeros(len(x)), torch.ones(len(x), dtype=torch.bool), drawn)


def _of_levels(of: OfLevels, x: Tensor, visible: Tensor, draws: int) -> Answer:
    real = of.joint.dtype
    inside = x.to(real) + 0.5
    given = of.joint.given(inside, visible)
    shifted = x.to(real) + torch.rand(SHIFTS, *x.shape, dtype=real)
    log_p = given.log_prob(torch.where(visible, inside, shifted)).logsumexp(0) - math.log(SHIFTS)
    drawn = given.sample(torch.Size([draws])).floor().clamp(0, of.levels - 1)
    return Answer(log_p, "at least", "closed form of a density", torch.zeros(len(x)), torch.ones(len(x), dtype=torch.bool),
                  torch.where(visible, x, drawn.to(x.dtype)))
