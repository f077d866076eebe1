r"""Estimates where no exact answer exists: by name, and with their error."""

import math

from typing import NamedTuple

import torch

from torch import Tensor

from pyro_ar.arrays import Array
from pyro_ar.budget import CACHE, at_once
from pyro_ar.checks import require
from pyro_ar.neural.autoregressive import Autoregressive
from pyro_ar.visible import check_visible

__all__ = ["LogMarginal", "estimate_log_marginal"]



class LogMarginal(NamedTuple):
    """An estimate of log p(x_visible), each `(*S, *B)`.

    Attributes:
        estimate: In nats; its exponential is unbiased, itself it is biased downwards.
        standard_error: Of the estimate, by the delta method; trust it only if the sample size is far above one.
        effective_sample_size: Of the weights, from 1 to the number of particles.
    """

    estimate: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor


def estimate_log_marginal(joint: Autoregressive, x: Array, visible: Array, *, num_particles: int = 1000) -> LogMarginal:
    r"""Estimate log p(x_visible) of a chain by likelihood weighting.

    Hidden variables are drawn along the chain, visible ones stand at their values and weigh the draw:

    .. math:: \hat p(x_v) = \frac1P \sum_p \prod_{i \in v} p(x_i \mid x^{(p)}_{<i})

    The weights of variables *after* a hidden one vary, so the effective sample size falls with their number; a row
    that `marginal` answers exactly has equal weights, and no error.

    Args:
        joint: A chain of neural conditionals.
        x: `(*S, *B, *E)`; what is stored under a hidden cell is never read.
        visible: bool, broadcastable to `x`; True = seen.
        num_particles: P, at least 2.

    Raises:
        ValueError: Bad shapes or values, or a joint that is no chain (the others answer exactly).

    Source:
        Fung, Chang (1990), *Weighing and integrating evidence for stochastic simulation in Bayesian networks*, UAI.

    Example:
        >>> from pyro_ar.neural import FVSBN
        >>> answer = estimate_log_marginal(FVSBN(8)(), torch.zeros(8), torch.arange(8) >= 4, num_particles=100)
        >>> bool(answer.effective_sample_size > 50)
        True
    """
    require(isinstance(joint, Autoregressive), "estimate_log_marginal wants a chain (Autoregressive)", type(joint).__name__)
    require(isinstance(num_particles, int) and num_particles >= 2, "num_particles must be 2 or more", num_particles)
    event = len(joint.event_shape)
    visible = check_visible(visible, joint.event_shape)
    chain = joint._answering(visible)
    values = chain._check_value(x, visible)
    left = torch.broadcast_shapes(values.shape[: values.ndim - event], chain.batch_shape)
    values, visible = (t.expand(left + joint.event_shape) for t in (values, visible))
    step = at_once(math.prod(left), CACHE)
    with torch.no_grad():
        parts = [_weigh(chain, values, visible, min(step, num_particles - done)) for done in range(0, num_particles, step)]
    log_w = torch.cat(parts)
    total, square = log_w.logsumexp(0), (2 * log_w).logsumexp(0)
    size = (2 * total - square).exp()
    # var(w) / (P mean(w)^2) = (P / size - 1) / (P - 1)
    error = ((num_particles / size - 1).clamp(min=0) / (num_particles - 1)).sqrt()
    return LogMarginal(total - math.log(num_particles), error, size)


def _weigh(chain: Autoregressive, x: Tensor, visible: Tensor, particles: int) -> Tensor:
    """Draw the hidden variables and weigh them, `(particles, *L)`."""
    shape = (particles, *x.shape)
    seen = visible.expand(shape)
    drawn = chain._walk(torch.Size(shape[: len(shape) - len(chain.event_shape)]), chain._in_chain(x.expand(shape)),
                        chain._in_chain(seen))
    terms = torch.where(seen, chain.conditional_log_prob(drawn), 0)
    return terms.flatten(-len(chain.event_shape)).sum(-1)
