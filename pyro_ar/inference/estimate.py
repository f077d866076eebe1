r"""Estimates where no exact answer exists: by name, and with their error."""

import math

from typing import NamedTuple

import torch

from torch import Tensor

from pyro_ar.arrays import Array
from pyro_ar.budget import TURN, at_once
from pyro_ar.checks import broadcast, require
from pyro_ar.joint import Joint
from pyro_ar.neural.autoregressive import Autoregressive
from pyro_ar.neural.particles import Cloud, run_particles
from pyro_ar.visible import check_visible

__all__ = ["Completions", "LogMarginal", "estimate_log_marginal", "sample_given"]

LARGE = 0.3  # nats: beyond it the delta method says little


class LogMarginal(NamedTuple):
    """An estimate of log p(x_visible), each `(*S, *B)`.

    Attributes:
        estimate: In nats; its exponential is unbiased, itself it is biased downwards by about half the square of its error.
        standard_error: Of the estimate, in nats: the spread of the islands' estimates over the root of their number, by the delta method.
        effective_sample_size: How many independent exact draws would have this error, from 1 to the number of particles.
        trusted: False where the error is above 0.3 nats, or one island makes up more than half of the estimate.
    """

    estimate: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor
    trusted: Tensor


class Completions(NamedTuple):
    """Draws of the hidden variables given the visible ones.

    Attributes:
        x: `(num_samples, *S, *B, *E)`; visible cells as they came.
        log_marginal: What the same particles say of log p(x_visible); draws are as good as its error is small.
    """

    x: Tensor
    log_marginal: LogMarginal


def estimate_log_marginal(joint: Autoregressive, x: Array, visible: Array, *, num_particles: int = 1024, num_islands: int = 16,
                          look_ahead: Joint | None = None) -> LogMarginal:
    r"""Estimate log p(x_visible) of a chain by sequential Monte Carlo along its order.

    Hidden variables are drawn from the chain, visible ones stand at their values and weigh the particle by :math:`p(x_i \mid x_{<i})`. Within an
    island, particles whose weights have become too unequal are resampled. A row that `marginal` answers exactly has equal weights, and no error.

    With `num_islands = num_particles` every particle is alone, and this is likelihood weighting (Fung, Chang 1990).

    Args:
        joint: A chain of neural conditionals.
        x: `(*S, *B, *E)`; what is stored under a hidden cell is never read.
        visible: bool, broadcastable to `x`; True = seen.
        num_particles: In all, 2 or more, rounded up to a multiple of the islands.
        num_islands: 2 or more, and as many as particles at most; many give a better known error, large ones a smaller error.
        look_ahead: A joint over the same event that is exact for every pattern, such as a `LatentTree` or an any-order family fitted to the same data: draws
            and weights follow what it says of the visible variables still to come. The estimate stays unbiased; a good one divides its error by
            many, at the cost of two marginals per state and hidden variable.

    Raises:
        ValueError: Bad shapes, values or numbers, a joint that is no chain (the others answer exactly), or a look-ahead over another event, or
            for weights with draws.
        IntractableError: The look-ahead does not answer a pattern.

    Source:
        Doucet, Johansen (2009), *A tutorial on particle filtering and smoothing*; islands: Whiteley, Lee, Heine (2016), *On the role of interaction
        in sequential Monte Carlo algorithms*, Bernoulli 22; twisting: Guarniero, Johansen, Lee (2017), *The iterated auxiliary particle filter*, JASA 112.

    Example:
        >>> from pyro_ar.neural import FVSBN
        >>> answer = estimate_log_marginal(FVSBN(8)(), torch.zeros(8), torch.arange(8) >= 4, num_particles=128)
        >>> bool(answer.effective_sample_size > 50), bool(answer.trusted)
        (True, True)
    """
    chain, values, seen = _asked(joint, x, visible, num_particles, num_islands, look_ahead)
    clouds = _clouds(chain, values, seen, num_particles, num_islands, look_ahead, complete=False)
    return _summary(torch.cat([cloud.log_weight for cloud in clouds]))


def sample_given(joint: Autoregressive, x: Array, visible: Array, num_samples: int = 1, *, num_particles: int = 1024, num_islands: int = 16,
                 look_ahead: Joint | None = None) -> Completions:
    r"""Draw hidden variables of a chain given the visible ones from the particles of `estimate_log_marginal`.

    As the number of particles grows these become draws of `given`; draws of one call share particles, so they are not independent.

    Args:
        joint: As in `estimate_log_marginal`.
        x: As there.
        visible: As there.
        num_samples: Draws.
        num_particles: As there.
        num_islands: As there.
        look_ahead: As there.

    Raises:
        ValueError: As there, no draws asked for, or visible values that no particle can explain.

    Example:
        >>> from pyro_ar.neural import FVSBN
        >>> sample_given(FVSBN(8)(), torch.ones(8), torch.arange(8) >= 4, 3, num_particles=64).x[:, 4:].sum()
        tensor(12.)
    """
    require(isinstance(num_samples, int) and num_samples >= 1, "num_samples must be 1 or more", num_samples)
    chain, values, seen = _asked(joint, x, visible, num_particles, num_islands, look_ahead)
    clouds = _clouds(chain, values, seen, num_particles, num_islands, look_ahead, complete=True)
    log_w = torch.cat([cloud.log_weight for cloud in clouds])
    particles = torch.cat([cloud.x for cloud in clouds]).flatten(0, 1)
    weights = log_w.flatten(0, 1).movedim(0, -1)
    require(bool((weights > -math.inf).any(-1).all()), "the visible values of some row have probability zero for all particles")
    chosen = torch.distributions.Categorical(logits=weights, validate_args=False).sample(torch.Size([num_samples]))
    drawn = particles.gather(0, chosen.unsqueeze(-1).expand(num_samples, *particles.shape[1:]))
    return Completions(torch.where(seen, values, chain.from_chain(drawn)), _summary(log_w))


def _asked(joint: Autoregressive, x: Array, visible: Array, num_particles: int, num_islands: int,
           look_ahead: Joint | None) -> tuple[Autoregressive, Tensor, Tensor]:
    """The chain that answers, values and patterns with all its batch dimensions, both event-shaped."""
    require(isinstance(joint, Autoregressive), "estimate_log_marginal and sample_given want a chain (Autoregressive)", type(joint).__name__)
    for name, number in (("num_particles", num_particles), ("num_islands", num_islands)):
        require(isinstance(number, int) and number >= 2, f"{name} must be 2 or more", number)
    if look_ahead is not None:
        require(isinstance(look_ahead, Joint) and look_ahead.event_shape == joint.event_shape, f"look_ahead must be a joint over {tuple(joint.event_shape)}",
                look_ahead)
        require(not joint.has_draws, "a look-ahead wants a chain without draws of its weights", joint.batch_shape)
    event = len(joint.event_shape)
    seen = check_visible(visible, joint.event_shape)
    chain = joint.answering(seen)
    values = chain.check_value(x, seen)
    left = broadcast("values, patterns and the joint must broadcast", values.shape[: values.ndim - event], seen.shape[: seen.ndim - event], chain.batch_shape)
    return chain, values.expand(left + joint.event_shape), seen.expand(left + joint.event_shape)


def _clouds(chain: Autoregressive, x: Tensor, visible: Tensor, particles: int, islands: int, look_ahead: Joint | None, *, complete: bool) -> list[Cloud]:
    """So many islands at a time as memory allows."""
    islands = min(islands, particles)
    each = math.ceil(particles / islands)
    values, seen = chain.to_chain(x), chain.to_chain(visible)
    step = at_once(each * values.numel(), 4 * TURN)
    with torch.no_grad():
        return [run_particles(chain, values, seen, min(step, islands - done), each, look_ahead=look_ahead, complete=complete)
                for done in range(0, islands, step)]


def _summary(log_w: Tensor) -> LogMarginal:
    """From weights `(islands, particles, *L)`."""
    islands, each = log_w.shape[:2]
    by_island = log_w.logsumexp(1) - math.log(each)
    estimate = by_island.logsumexp(0) - math.log(islands)
    share = (by_island - estimate).exp().nan_to_num(1.0)  # of mean one
    error = share.std(0) / math.sqrt(islands)
    size = islands * each / (1 + (islands * each - 1) * error.square())
    trusted = (error <= LARGE) & (share.amax(0) <= islands / 2) & (estimate > -math.inf)
    return LogMarginal(estimate, error, size, trusted)
