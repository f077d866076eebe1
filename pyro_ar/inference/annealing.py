r"""Evidence by annealing from the prior to the posterior: sequential Monte Carlo, or annealed importance sampling.

.. math:: Z = \int p(\theta) \prod_n p(x_n \mid \theta) \, d\theta

Particles start as draws of the prior. At each of a rising sequence of temperatures :math:`\beta` they are weighted by
:math:`L(\theta)^{\Delta\beta}`, resampled (not in annealed importance sampling), and moved by Hamiltonian steps that leave
:math:`p(\theta) L(\theta)^\beta` invariant. A first run finds the temperatures and the step sizes; independent runs with both held fixed
give unbiased estimates of Z, and their spread the error.
"""

import math

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torch import Size, Tensor

from pyro_ar.checks import require

__all__ = ["Evidence", "annealed_log_evidence"]

ACCEPT = 0.8  # share of moves to be accepted: Neal (2011), section 5.4.4, has 0.65 as the best one, and 0.8 is as good and safer


class Evidence(NamedTuple):
    """Log evidence with its error.

    Attributes:
        value: Log of the mean of the runs' estimates of Z, in nats.
        error: Its standard error, in nats; 0 where it is exact, infinite where the runs disagree so much that it means nothing.
        runs: Log Z of each run.
        temperatures: How many were used.
        method: 'exact', 'SMC' or 'AIS'.
    """

    value: float
    error: float
    runs: tuple[float, ...] = ()
    temperatures: int = 0
    method: str = "exact"

    @property
    def reliable(self) -> bool:
        """The error is below one nat, a factor of e in a Bayes factor."""
        return self.error < 1


class _Stage(NamedTuple):
    beta: float
    step: float
    scale: Tensor


def annealed_log_evidence(log_likelihood: Callable[[Tensor], Tensor], prior: Any, *, num_particles: int = 128, num_runs: int = 8,
                          method: str = "smc", moves: int = 2, leapfrog: int = 8, efficiency: float | None = None,
                          max_temperatures: int = 1000, seed: int = 0) -> Evidence:
    r"""Estimate log Z of a model with real parameters.

    The default is SMC. The error of AIS is optimistic: over 25 seeds its answers spread 1.9 times as wide as their errors say.

    Args:
        log_likelihood: From parameters `(P, D)` to log-likelihoods `(P,)`, differentiable.
        prior: A distribution over vectors of D reals, with `sample` and `log_prob`.
        num_particles: Per run.
        num_runs: Independent ones, at least 2, for the error.
        method: 'smc' or 'ais'; prefer 'smc'.
        moves: Hamiltonian moves of each particle at each temperature.
        leapfrog: Steps of each move.
        efficiency: The share of effective particles that one change of temperature may leave; by default 0.7 for SMC, and 0.97 for
            AIS, which never resamples.
        max_temperatures: Give up beyond.
        seed: Of the draws.

    Raises:
        ValueError: Bad arguments, a likelihood that is not finite anywhere, or one that needs more temperatures.

    Source:
        Neal (2001), *Annealed importance sampling*. Del Moral, Doucet, Jasra (2006), *Sequential Monte Carlo samplers*.

    Example:
        >>> prior = torch.distributions.Normal(torch.zeros(1), 1.0)
        >>> prior = torch.distributions.Independent(prior, 1)
        >>> found = annealed_log_evidence(lambda t: -0.5 * (t[:, 0] - 1) ** 2, prior)
        >>> abs(found.value - (-0.25 - 0.5 * math.log(2))) < 5 * found.error  # a Gaussian integral
        True
    """
    require(method in ("smc", "ais"), "method must be 'smc' or 'ais'", method)
    require(min(num_particles, num_runs) >= 2 and min(moves, leapfrog, max_temperatures) >= 1,
            "num_particles and num_runs must be 2 or more, moves and leapfrog 1 or more", num_particles, num_runs, moves, leapfrog)
    efficiency = (0.7 if method == "smc" else 0.97) if efficiency is None else efficiency
    require(0 < efficiency < 1, "efficiency must lie between 0 and 1", efficiency)
    target = _Target(log_likelihood, prior)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stages = _pilot(target, num_particles, moves, leapfrog, efficiency, max_temperatures)
        runs = _run(target, stages, num_particles, num_runs, moves, leapfrog, resample=method == "smc")
    value = (runs.logsumexp(0) - math.log(num_runs)).item()
    error = ((runs - value).exp().std() / math.sqrt(num_runs)).item()
    # With runs orders of magnitude apart the largest one is all there is, and the spread saturates.
    error = error if (runs.max() - runs.min()).item() < 10 else math.inf
    return Evidence(value, error, tuple(runs.tolist()), len(stages), method.upper())


class _Target:
    """Log prior and log-likelihood with gradients."""

    def __init__(self, log_likelihood: Callable[[Tensor], Tensor], prior: Any) -> None:
        self.log_likelihood, self.prior = log_likelihood, prior

    def start(self, count: int) -> Tensor:
        with torch.no_grad():
            return self.prior.sample(Size([count]))

    def likelihood(self, theta: Tensor) -> Tensor:
        with torch.no_grad():
            value = self.log_likelihood(theta)
        require(value.shape == theta.shape[:1], f"log_likelihood must return ({len(theta)},)", value)
        require(not bool(value.isnan().any()) and bool((value > -math.inf).any()), "log_likelihood must be finite somewhere, and never NaN")
        return value

    def with_gradient(self, theta: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """The tempered log density up to a constant, `(P,)`, and its gradient `(P, D)`."""
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            value = self.prior.log_prob(theta) + beta * self.log_likelihood(theta)
            (gradient,) = torch.autograd.grad(value.sum(), theta)
        return value.detach(), gradient


def _pilot(target: _Target, particles: int, moves: int, leapfrog: int, efficiency: float, limit: int) -> list[_Stage]:
    """Temperatures at which the weights stay even enough, each with a step size that is accepted."""
    theta, beta, step = target.start(particles), 0.0, 0.2
    stages: list[_Stage] = []
    while beta < 1:
        require(len(stages) < limit, f"the evidence needs more than max_temperatures={limit}: more particles, or a tighter prior, would help")
        log_l = target.likelihood(theta)
        beta_next = _next(log_l, beta, efficiency)
        weights = ((beta_next - beta) * log_l).softmax(0)
        theta = theta[_systematic(weights.log())]
        beta = beta_next
        scale = theta.std(0).clamp(min=1e-6)
        for _ in range(moves + 2):  # the first ones settle the step size
            theta, accepted = _move(target, theta, _Stage(beta, step, scale), leapfrog)
            step *= math.exp(0.7 * (accepted - ACCEPT))
        stages.append(_Stage(beta, step, theta.std(0).clamp(min=1e-6)))
    return stages


def _next(log_l: Tensor, beta: float, efficiency: float) -> float:
    """The largest temperature that leaves this share of effective particles, by bisection."""
    def effective(new: float) -> float:
        w = ((new - beta) * log_l).softmax(0)
        return 1 / (len(w) * w.square().sum().item())

    low, high = beta, 1.0
    if effective(high) >= efficiency:
        return 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if effective(middle) >= efficiency else (low, middle)
    return max(low, beta + 1e-9)


def _run(target: _Target, stages: list[_Stage], particles: int, runs: int, moves: int, leapfrog: int, *, resample: bool) -> Tensor:
    """Log Z of each run; all runs move together, and are resampled each by itself."""
    theta = target.start(runs * particles)
    log_w = theta.new_zeros(runs, particles)
    log_z = theta.new_zeros(runs)
    beta = 0.0
    for stage in stages:
        log_w = log_w + (stage.beta - beta) * target.likelihood(theta).reshape(runs, particles)
        beta = stage.beta
        if resample:
            log_z = log_z + log_w.logsumexp(-1) - math.log(particles)
            chosen = torch.stack([_systematic(w.log_softmax(0)) + r * particles for r, w in enumerate(log_w)])
            theta, log_w = theta[chosen.reshape(-1)], torch.zeros_like(log_w)
        if beta < 1:
            for _ in range(moves):
                theta, _accepted = _move(target, theta, stage, leapfrog)
    return log_z + (log_w.logsumexp(-1) - math.log(particles) if not resample else 0.0)


def _systematic(log_w: Tensor) -> Tensor:
    """Indices of a systematic resampling of normalised weights."""
    count = len(log_w)
    at = (torch.rand((), dtype=log_w.dtype, device=log_w.device) + torch.arange(count, device=log_w.device)) / count
    return torch.searchsorted(log_w.exp().cumsum(0), at).clamp(max=count - 1)


def _move(target: _Target, theta: Tensor, stage: _Stage, leapfrog: int) -> tuple[Tensor, float]:
    """One Hamiltonian move of every particle, and the share that was accepted."""
    step = stage.step * stage.scale * (0.8 + 0.4 * torch.rand((len(theta), 1), dtype=theta.dtype, device=theta.device))
    momentum = torch.randn_like(theta)
    before, gradient = target.with_gradient(theta, stage.beta)
    energy = before - 0.5 * momentum.square().sum(-1)
    new = theta
    for _ in range(leapfrog):
        momentum = momentum + 0.5 * step * gradient
        new = new + step * momentum
        after, gradient = target.with_gradient(new, stage.beta)
        momentum = momentum + 0.5 * step * gradient
    gain = after - 0.5 * momentum.square().sum(-1) - energy
    gain = torch.where(gain.isfinite() & new.isfinite().all(-1), gain, -math.inf)
    accepted = torch.rand_like(gain).log() < gain
    return torch.where(accepted[:, None], new, theta), gain.clamp(max=0).exp().mean().item()
