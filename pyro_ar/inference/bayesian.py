r"""Bayesian neural joints: a family, a prior on its weights, and draws of the posterior.

The draws are batch dimensions of one joint, and their mixture, the posterior predictive, is again a `Joint`: it has
marginals, completes, and classifies.
"""

import math

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch

from pyro import poutine
from pyro.distributions import Normal, TorchDistribution, constraints
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    init_to_value,
)
from pyro.optim import ClippedAdam
from torch import Size, Tensor
from tqdm.auto import tqdm

from pyro_ar.arrays import Array
from pyro_ar.checks import IntractableError, counted, one_line, require
from pyro_ar.inference.annealing import Evidence, annealed_log_evidence
from pyro_ar.inference.arviz_bridge import diagnostics, to_arviz
from pyro_ar.joint import Joint
from pyro_ar.mixture import Averaged
from pyro_ar.neural.family import Family
from pyro_ar.visible import read_rows

__all__ = ["MAX_EVIDENCE_WEIGHTS", "Bayesian", "Diagnostics", "Posterior", "Refit"]

# NUTS adapts to the full covariance of the weights if it sees so many steps of warm-up for each; with fewer, the covariance is mostly noise, and
# trajectories are many times as long as with variances alone (136 weights, 300 steps: see benchmarks/nltcs_nuts.py).
WARMUP_PER_WEIGHT = 6
MAX_EVIDENCE_WEIGHTS = 1000  # beyond, annealing from the prior needs more temperatures than anyone waits for
GUIDES: dict[str, Callable[..., Any]] = {
    "mean-field": AutoDiagonalNormal, "low-rank": AutoLowRankMultivariateNormal, "laplace": AutoLaplaceApproximation,
}


class Diagnostics(NamedTuple):
    """The worst figures over all weights.

    Attributes:
        r_hat: Largest split R-hat; NaN with one chain. Trust draws below 1.01.
        ess_bulk: Smallest bulk effective sample size. Trust means above 100 per chain.
        ess_tail: Smallest tail effective sample size.
        divergences: Draws after a divergent trajectory; a trustworthy run has none.
        draws: In all chains.
    """

    r_hat: float
    ess_bulk: float
    ess_tail: float
    divergences: int
    draws: int


@dataclass
class Refit:
    """A fit with given settings to other rows, as an object: unlike a function that was made on the way, it can be pickled and saved.

    Attributes:
        model: Whose `fit` it calls.
        options: Arguments of that, besides the rows.
    """

    model: "Bayesian"
    options: dict[str, Any]

    def __call__(self, x: Array, visible: Array | None = None) -> "Posterior":
        """The posterior given these rows."""
        return self.model.fit(x, visible, **self.options)


@dataclass
class Posterior:
    r"""Draws of the weights of a family given rows.

    Attributes:
        joint: The joints of all draws, of batch shape `(chains, draws)`.
        draws: The free entries of each weight, `(chains, draws, entries)`.
        x: The rows.
        visible: What of them was seen; None: all.
        method: 'nuts', 'mean-field', 'low-rank' or 'laplace'.
        diverging: Draws after a divergent trajectory, bool `(chains, draws)`; all False without NUTS.
        refit: Makes the posterior of other rows in the same way.
        evidence: Of `Bayesian.log_evidence`, if it was asked for.
        elbo: Of variational fits, the mean ELBO over the last tenth of steps, in nats; None for NUTS. Of 'laplace', the log density of
            its mode.
        elbo_change: By how much it differs from the tenth of steps before, relative to itself: a fit has settled when this is small.
    """

    joint: Joint
    draws: dict[str, Tensor]
    x: Tensor
    visible: Tensor | None
    method: str
    diverging: Tensor
    refit: Callable[..., "Posterior"]
    evidence: Evidence | None = None
    elbo: float | None = None
    elbo_change: float | None = None

    def __repr__(self) -> str:
        chains, draws = self.joint.batch_shape
        weights = sum(t.shape[-1] for t in self.draws.values())
        return one_line("Posterior", self.method, f"{counted(chains, 'chain')} of {counted(draws, 'draw')}", counted(weights, "weight"),
                        f"given {counted(len(self.x), 'row')}", "" if self.visible is None else "with hidden cells",
                        f"{int(self.diverging.sum())} divergent" if bool(self.diverging.any()) else "")

    @property
    def num_parameters(self) -> int:
        """Free parameters of one draw."""
        return self.joint.num_parameters

    def predictive(self, max_draws: int | None = None) -> Averaged:
        """p(x | rows): the equal mixture over the draws, or over `max_draws` of them evenly spaced."""
        count = math.prod(self.joint.batch_shape)
        keep = torch.arange(count)
        if max_draws is not None:
            require(max_draws >= 1, "max_draws must be 1 or more", max_draws)
            keep = torch.linspace(0, count - 1, min(max_draws, count)).round().long()
        flat = {name: t.flatten(0, 1)[keep] for name, t in self.joint.tensors.items()}
        return Averaged(torch.zeros(len(keep), dtype=self.joint.dtype), self.joint.with_tensors(flat))

    def diagnostics(self) -> Diagnostics:
        """R-hat, effective sample sizes and divergences, by ArviZ; independent draws of a guide have R-hat 1."""
        found = diagnostics(to_arviz({"posterior": {name: t.cpu().numpy() for name, t in self.draws.items()}}))
        return Diagnostics(float(found["r_hat"].max()), float(found["ess_bulk"].min()), float(found["ess_tail"].min()),
                           int(self.diverging.sum()), self.diverging.numel())


class Bayesian:
    r"""A family with independent priors on its weights.

    Weights that never enter (a dense matrix under a triangular pattern) have no prior and are not drawn, wherever the
    family's own count of parameters says how many there are.

    Args:
        family: Without context. Classes get a `Bayesian` each; the `Mixture` of their predictives classifies.
        prior: A standard deviation for all weights, or by weight name a distribution over one real number.

    Raises:
        ValueError: A family with context, names that are no weights, or priors that are no scalar distributions over the reals.

    Example:
        >>> from pyro_ar.neural import FVSBN
        >>> model = Bayesian(FVSBN(3), prior=2.0)
        >>> model.num_weights, sorted(model.sizes.items())
        (6, [('bias', 3), ('weight', 3)])
    """

    def __init__(self, family: Family, prior: float | Mapping[str, TorchDistribution] = 1.0) -> None:
        require(isinstance(family, Family), "Bayesian wants a family of neural joints, such as FVSBN(3); tables have exact posteriors "
                "(FullTable.posterior)", family)
        width = getattr(family, "context_dim", 0)
        require(width == 0, "Bayesian wants a family without context, since its draws are the only batch dimensions; for classes fit one Bayesian to "
                f"each and take the Mixture of their predictives, which classifies (this family has context_dim={width})")
        self.family = family
        joint = family()
        require(not isinstance(joint, Averaged), "Bayesian wants a family of one joint, whose weights its draws are; not a mixture of several, as of a MADE "
                "of masks", joint)
        self._template: Joint = joint.with_tensors({name: t.detach() for name, t in joint.tensors.items()})
        self._shapes = {name: t.shape for name, t in self._template.tensors.items()}
        if isinstance(prior, Mapping):
            require(set(prior) == set(self._shapes), f"prior must name the weights {sorted(self._shapes)}", sorted(prior))
            self.prior = dict(prior)
        else:
            require(isinstance(prior, int | float) and math.isfinite(prior) and prior > 0, "prior must be a positive standard deviation", prior)
            zero = torch.zeros((), dtype=self._template.dtype, device=self._template.device)
            self.prior = {name: Normal(zero, zero + prior) for name in self._shapes}
        for name, p in self.prior.items():
            require(p.batch_shape == () and p.event_shape == () and p.support is constraints.real,
                    f"the prior of {name} must be a distribution over one real number", p)
        self._free = _free_entries(self._template, family.num_parameters)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the constructor, by name."""
        return {"family": self.family, "prior": self.prior}

    @property
    def sizes(self) -> dict[str, int]:
        """Free entries by weight."""
        return {name: len(index) for name, index in self._free.items()}

    @property
    def num_weights(self) -> int:
        """How many numbers are drawn."""
        return sum(self.sizes.values())

    def bind(self, draws: Mapping[str, Tensor]) -> Joint:
        """The joint of these weights: free entries `(*D, entries)` by name; `D` become batch dimensions."""
        tensors = {}
        for name, index in self._free.items():
            flat = draws[name]
            whole = flat.new_zeros(*flat.shape[:-1], math.prod(self._shapes[name]))
            tensors[name] = whole.index_copy(-1, index, flat).reshape(*flat.shape[:-1], *self._shapes[name])
        return self._template.with_tensors(tensors)

    def model(self, x: Tensor, visible: Tensor | None = None, counts: Tensor | None = None) -> None:
        """The Pyro model, for guides and samplers of your own: a site per weight, and the rows in the plate 'rows'.

        Args:
            x: `(N, *event)`.
            visible: bool, broadcastable to `x`.
            counts: `(N,)`, how often each row stands for itself.
        """
        draws = {name: pyro.sample(name, self.prior[name].expand([size]).to_event(1)) for name, size in self.sizes.items()}
        joint = self.bind(draws)
        scale = poutine.scale(scale=x.new_ones(()) if counts is None else counts)
        with pyro.plate("rows", len(x)), scale:
            pyro.sample("x", joint if visible is None else joint.marginal(visible), obs=x)

    def fit(self, x: Array, visible: Array | None = None, *, method: str = "nuts", num_draws: int = 500, num_chains: int = 4,
            warmup: int = 300, steps: int = 2000, lr: float = 0.02, rank: int = 10, max_tree_depth: int = 8, start: str = "zeros", seed: int = 0,
            progress: bool = True) -> Posterior:
        r"""Draws of the weights given the rows.

        Args:
            x: `(N, *event)`.
            visible: What of each row was seen; None: NaN hides a cell.
            method: 'nuts' for small models, or a guide: 'mean-field', 'low-rank', 'laplace' (its Hessian is `num_weights` squared).
            num_draws: Per chain; guides give `num_draws * num_chains` independent ones.
            num_chains: Of NUTS, one after another.
            warmup: Steps of NUTS that are thrown away. With 6 or more per weight it adapts to their full covariance, else to their variances.
            steps: Of stochastic variational inference.
            lr: Its step size, decayed to a tenth.
            rank: Of 'low-rank'.
            max_tree_depth: Of NUTS.
            start: Where guides begin: 'zeros', or 'family' for the family's present weights, as nets of several layers want it.
            seed: Of everything.
            progress: Show a bar on standard error: a chain of NUTS may take minutes. Refits say nothing.

        Raises:
            ValueError: Bad arguments, or rows that are not of the family's event shape and states.
            IntractableError: A pattern of hidden cells that the family cannot sum out.
        """
        require(method == "nuts" or method in GUIDES, f"method must be nuts, {', '.join(GUIDES)}", method)
        require(num_draws >= 2 and num_chains >= 1, "num_draws must be 2 or more (one draw is no posterior), num_chains 1 or more", num_draws, num_chains)
        require(method != "nuts" or num_draws >= 4, "num_draws of nuts must be 4 or more, so that its diagnostics can be computed", num_draws)
        require(min(warmup, steps) >= 1 and lr > 0, "warmup, steps and lr must be positive", warmup, steps, lr)
        require(isinstance(rank, int) and rank >= 1, "rank must be 1 or more", rank)
        require(start in ("zeros", "family"), "start must be 'zeros' or 'family'", start)
        x, visible = read_rows(x, visible)
        rows = self._rows(x, visible)
        losses: list[float] = []
        with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
            torch.manual_seed(seed)
            if method == "nuts":
                draws, diverging = self._nuts(rows, num_draws, num_chains, warmup, max_tree_depth, seed, progress)
            else:
                draws, losses = self._svi(rows, method, num_draws * num_chains, steps, lr, rank, start, progress)
                draws = {name: t.unflatten(0, (num_chains, num_draws)) for name, t in draws.items()}
                diverging = torch.zeros(num_chains, num_draws, dtype=torch.bool)

        options = {"method": method, "num_draws": num_draws, "num_chains": num_chains, "warmup": warmup, "steps": steps, "lr": lr, "rank": rank,
                   "max_tree_depth": max_tree_depth, "start": start, "seed": seed, "progress": False}
        return Posterior(self.bind(draws), draws, x, visible, method, diverging, Refit(self, options), None, *_settling(losses))

    def _rows(self, x: Tensor, visible: Tensor | None) -> dict[str, Tensor | None]:
        """Checked rows, each distinct one once with its count."""
        event = tuple(self._template.event_shape)
        require(isinstance(x, Tensor) and tuple(x.shape[1:]) == event and len(x) > 0, f"data must be one or more rows of shape (N, {event})", x)
        with torch.no_grad():
            probe = self._template.log_prob(x) if visible is None else self._template.marginal(visible).log_prob(x)
        require(bool(probe.isfinite().all()), "rows must have positive probability under the family")
        if visible is not None:
            return {"x": x, "visible": visible.expand(x.shape), "counts": None}
        unique, counts = x.unique(dim=0, return_counts=True)
        return {"x": unique, "visible": None, "counts": counts.to(self._template.dtype)}

    def _nuts(self, rows: dict[str, Tensor | None], num_draws: int, num_chains: int, warmup: int, depth: int, seed: int,
              progress: bool) -> tuple[dict[str, Tensor], Tensor]:
        chains, diverging = [], torch.zeros(num_chains, num_draws, dtype=torch.bool)
        for c in range(num_chains):
            torch.manual_seed(1000 * seed + c)
            start = {name: 0.1 * torch.randn(size, dtype=self._template.dtype, device=self._template.device) for name, size in self.sizes.items()}
            kernel = NUTS(self.model, init_strategy=init_to_value(values=start), max_tree_depth=depth, full_mass=WARMUP_PER_WEIGHT * self.num_weights <= warmup)
            mcmc = MCMC(kernel, num_draws, warmup, disable_progbar=not progress)
            # Validation per step would cost more than the step; the rows are checked.
            with pyro.validation_enabled(False):
                mcmc.run(**rows)
            chains.append(mcmc.get_samples())
            found = mcmc.diagnostics().get("divergences", {}).get("chain 0", [])
            diverging[c, [i for i in found if i < num_draws]] = True
        return {name: torch.stack([chain[name] for chain in chains]) for name in self.sizes}, diverging

    def _svi(self, rows: dict[str, Tensor | None], method: str, count: int, steps: int, lr: float, rank: int, begin: str,
             progress: bool) -> tuple[dict[str, Tensor], list[float]]:
        now = self.family().tensors
        values = {name: now[name].detach().flatten()[index] for name, index in self._free.items()}
        start = init_to_value(values={name: t if begin == "family" else torch.zeros_like(t) for name, t in values.items()})
        options: dict[str, Any] = {"rank": min(rank, self.num_weights)} if method == "low-rank" else {}
        options |= {} if method == "laplace" else {"init_scale": 0.05}
        guide = GUIDES[method](self.model, init_loc_fn=start, **options)
        svi = SVI(self.model, guide, ClippedAdam({"lr": lr, "lrd": 0.1 ** (1 / steps)}), Trace_ELBO())
        losses = []
        for _ in tqdm(range(steps), disable=not progress, desc=method):
            loss = svi.step(**rows)
            require(math.isfinite(loss), "variational inference diverged: its loss is not finite; use a smaller lr", lr)
            losses.append(float(loss))
        if method == "laplace":
            guide = guide.laplace_approximation(**rows)
        with torch.no_grad():
            found = [guide(**rows) for _ in range(count)]
        return {name: torch.stack([draw[name] for draw in found]) for name in self.sizes}, losses

    def log_evidence(self, x: Array, visible: Array | None = None, **options: Any) -> Evidence:
        r"""Log p(rows) with the weights integrated out, by annealing, with its error.

        Args:
            x: `(N, *event)`.
            visible: What of each row was seen; None: NaN hides a cell.
            options: Of `annealed_log_evidence`: `num_particles`, `num_runs`, `method`, `seed`, ...

        Raises:
            IntractableError: More than `MAX_EVIDENCE_WEIGHTS` weights: the evidence is not to be had.
            ValueError: As in `fit`.
        """
        if self.num_weights > MAX_EVIDENCE_WEIGHTS:
            raise IntractableError(
                f"the evidence of {self.num_weights} weights is not to be had: annealing from their prior to their posterior is reliable up to about "
                f"{MAX_EVIDENCE_WEIGHTS}. What works: PSIS-LOO of posterior draws, or held-out scores (par.compare)")
        rows = self._rows(*read_rows(x, visible))
        names, sizes = list(self.sizes), list(self.sizes.values())

        def log_likelihood(theta: Tensor) -> Tensor:
            joint = self.bind(dict(zip(names, theta.split(sizes, -1), strict=True)))
            value, seen, counts = rows["x"], rows["visible"], rows["counts"]
            value = torch.as_tensor(value).unsqueeze(1)
            log_p = joint.log_prob(value) if seen is None else joint.marginal(seen.unsqueeze(1)).log_prob(value)
            return log_p.sum(0) if counts is None else counts @ log_p

        return annealed_log_evidence(log_likelihood, _Flat([self.prior[name].expand([size]).to_event(1) for name, size in self.sizes.items()], sizes),
                                     **options)


def _settling(losses: list[float]) -> tuple[float | None, float | None]:
    """The mean ELBO of the last tenth of steps, and its relative change since the tenth before."""
    if not losses:
        return None, None
    tenth = max(1, len(losses) // 10)
    last, before = losses[-tenth:], losses[-2 * tenth:-tenth]
    now = -sum(last) / len(last)
    then = -sum(before) / len(before) if before else math.nan
    return now, (now - then) / max(abs(now), 1e-9)


class _Flat:
    """The priors of all weights, over one vector."""

    def __init__(self, parts: list[Any], sizes: list[int]) -> None:
        self.parts, self.sizes = parts, sizes

    def sample(self, shape: Size) -> Tensor:
        return torch.cat([p.sample(shape) for p in self.parts], -1)

    def log_prob(self, theta: Tensor) -> Tensor:
        return torch.stack([p.log_prob(t) for p, t in zip(self.parts, theta.split(self.sizes, -1), strict=True)]).sum(0)


def _free_entries(template: Joint, count: int) -> dict[str, Tensor]:
    """Positions in each flattened weight that some conditional depends on; all of them where that does not give `count`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = template.sample(Size([256]))
        weights = {name: torch.randn_like(t).requires_grad_() for name, t in template.tensors.items()}
        score = template.with_tensors(weights).conditional_log_prob(x)
        gradients = torch.autograd.grad((score * torch.rand_like(score)).sum(), list(weights.values()), allow_unused=True)
    used = {name: torch.zeros(0, dtype=torch.long) if g is None else g.flatten().nonzero().squeeze(-1)
            for name, g in zip(weights, gradients, strict=True)}
    if sum(len(index) for index in used.values()) != count:
        return {name: torch.arange(t.numel(), device=t.device) for name, t in template.tensors.items()}
    return used
