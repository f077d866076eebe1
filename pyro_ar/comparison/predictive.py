r"""PSIS-LOO from posterior draws: the bridge to ArviZ, of either generation, and exact refits where it is not to be trusted."""

import math

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from pyro import poutine
from pyro.infer import MCMC
from torch import Size, Tensor

from pyro_ar.arrays import Array, as_tensor
from pyro_ar.budget import CACHE, at_once
from pyro_ar.checks import counted, one_line, require
from pyro_ar.comparison.pointwise import cells, check_finite, model_log_likelihood, pointwise_log_likelihood
from pyro_ar.inference.arviz_bridge import compare_table, drawn_by, group_of, psis_loo, to_arviz
from pyro_ar.inference.bayesian import Posterior
from pyro_ar.joint import Joint
from pyro_ar.tables import ChowLiuTree, TablePosterior
from pyro_ar.tables.counts import check_data, table_counts

__all__ = ["Loo", "arviz_comparison", "guide_draws", "loo", "refit_bad", "to_inference_data"]

APPROXIMATE = "approximate"  # said of draws of a guide
PICKED = "exact posterior of the tree that these rows pick"


def to_inference_data(posterior: Any, x: Array, visible: Array | None = None, *, likelihood: Callable[..., Joint] | None = None,
                      model: Callable[..., Any] | None = None, model_args: tuple[Any, ...] | None = None, plate: str = "rows",
                      num_draws: int = 1000, how: str | None = None) -> Any:
    r"""ArviZ data (`InferenceData` of 0.23, `DataTree` of 1.x) with one log-likelihood per draw and row.

    ==================================  =====================================================================
    `posterior`                         what gives the rows their log-likelihood
    ==================================  =====================================================================
    `TablePosterior`, `Posterior`       itself
    a `Joint` of batch `(chains,        itself: its batch dimensions are draws, components of a `Mixture` are
    draws)` or `(draws,)`               summed out, and so are hidden cells
    `MCMC` after its run, a guide, or   `likelihood`, from a dict of draws `(D, ...)` to a joint of batch `(D,)`;
    a dict of `(chains, draws, ...)`    or a Pyro `model`, whose enumerable latents are summed out in each row
    ==================================  =====================================================================

    How the draws were made stands in the attribute `drawn_by` of the posterior group, and in the tables of `compare`.

    Args:
        posterior: Where the draws come from.
        x: The rows, `(N, *event)`: those that the posterior was conditioned on. A `Posterior` and a `TablePosterior` are checked
            against them; draws of `MCMC`, guides, dicts and joints do not say what they were conditioned on, so it is up to you.
        visible: What of each row the posterior was conditioned on, bool: only of that do draws give leave-one-out scores. A `Posterior`
            knows its own, a `TablePosterior` is of whole rows, and a Pyro `model` sees to it by itself.
        likelihood: See above.
        model: See above.
        model_args: Of the model and the guide; `(x,)` by default.
        plate: The model's plate over the rows.
        num_draws: From tables and guides.
        how: The draws were made, where `posterior` does not say it (dicts and joints).

    Raises:
        ValueError: Fewer than 2 draws or draws that are all equal, no rows, rows or cells that the posterior was not conditioned on, or a
            log-likelihood that is not finite.

    Example:
        >>> from pyro_ar.tables import MarkovChain
        >>> x = torch.randint(0, 2, (50, 4))
        >>> data = to_inference_data(MarkovChain.posterior(x, equivalent_sample_size=1.0), x, num_draws=200)
        >>> loo(data).pointwise.shape
        torch.Size([50])
    """
    x, visible = as_tensor(x), as_tensor(visible)
    require(isinstance(x, Tensor) and x.ndim >= 1 and len(x) > 0, "x must be one or more rows", x)
    require(isinstance(num_draws, int) and num_draws >= 2, "num_draws must be 2 or more: one draw is no posterior", num_draws)
    stats: dict[str, np.ndarray] = {}
    draws: dict[str, Tensor] = {}
    if isinstance(posterior, Posterior):
        _same_rows(posterior.x, x)
        visible = _own_cells(posterior.visible, visible, x)
        log_p, draws = pointwise_log_likelihood(posterior.joint, x, visible), posterior.draws
        stats = {"diverging": posterior.diverging.cpu().numpy()}
    elif isinstance(posterior, TablePosterior):
        visible = _own_cells(None, visible, x)
        _check_counts(posterior, x)
        log_p = _of_tables(posterior, x, visible, num_draws)[None]
    elif isinstance(posterior, Joint):
        require(len(posterior.batch_shape) in (1, 2), "a joint of draws must have batch shape (draws,) or (chains, draws); a fitted joint is a "
                "point estimate, which held-out scores compare (par.compare)", tuple(posterior.batch_shape))
        log_p = pointwise_log_likelihood(posterior, x, visible)
        log_p = log_p if log_p.ndim == 3 else log_p[None]
        left = log_p.shape[:2]
        draws = {k: t.reshape(*left, *t.shape[len(posterior.batch_shape):]) for k, t in posterior.tensors.items()
                 if t.shape[: len(posterior.batch_shape)] == posterior.batch_shape}
    else:
        args = (x,) if model_args is None else model_args
        draws, stats = _collect(posterior, args, num_draws)
        log_p = _of_draws(draws, x, visible, likelihood, model, args, plate)
    _check_draws(log_p)
    return _groups(log_p, draws, stats, x, visible, _source(posterior, x) if how is None else how)


def _source(posterior: Any, x: Tensor) -> str | None:
    """How draws were made, in words; None where nobody says."""
    if isinstance(posterior, Posterior):
        names = {"nuts": "NUTS", "laplace": f"Laplace, {APPROXIMATE}"}
        return names.get(posterior.method, f"{posterior.method}, {APPROXIMATE}")
    if isinstance(posterior, TablePosterior):
        return PICKED if _is_picked(posterior, x) else "exact posterior"
    if isinstance(posterior, MCMC):
        return type(posterior.kernel).__name__
    if isinstance(posterior, Joint | Mapping):
        return None
    guide = "guide" if hasattr(posterior, "__name__") else type(posterior).__name__  # a function, or a module such as AutoNormal
    return f"{guide}, {APPROXIMATE}"


def _is_picked(posterior: TablePosterior, x: Tensor) -> bool:
    """Whether it is of the one tree that these very rows pick."""
    if posterior.joint is not ChowLiuTree:
        return False
    tree = ChowLiuTree.from_data(x, num_states=posterior.num_states)
    return [tuple(p) for p in tree.structure["parents"]] == [tuple(p) for p in posterior.structure["parents"]]


def _own_cells(own: Tensor | None, asked: Tensor | None, x: Tensor) -> Tensor | None:
    """The cells that the posterior was conditioned on; those asked for must be the same.

    Importance weights take out of a draw what a row put in, so a score of other cells would be no leave-one-out.
    """
    if asked is None:
        return own
    asked = cells(asked, x)
    fitted = torch.ones(x.shape, dtype=torch.bool, device=asked.device) if own is None else own.expand(x.shape).to(asked.device)
    other = int((asked != fitted).sum())
    require(other == 0, "the posterior must be scored on the cells it was conditioned on: leave visible out, or fit again with it (it differs in "
            f"{other} of {x.numel()} cells)")
    return own


def _groups(log_p: Tensor, draws: Mapping[str, Tensor], stats: dict[str, np.ndarray], x: Tensor, visible: Tensor | None, how: str | None) -> Any:
    kept = {name: t.detach().cpu().numpy() for name, t in draws.items() if t.numel() <= CACHE}
    # ArviZ wants a posterior group; of tables too big to keep, the draws' own log-likelihoods tell how they mix.
    kept = kept or {"log_likelihood_of_all_rows": log_p.sum(-1).cpu().numpy()}
    shown = x if visible is None else torch.where(visible, x.to(log_p.dtype), math.nan)
    groups = {"posterior": kept, "log_likelihood": {"x": log_p.cpu().numpy()}, "observed_data": {"x": shown.cpu().numpy()}}
    return to_arviz(groups | ({"sample_stats": stats} if stats else {}), how)


def _check_draws(log_p: Tensor) -> None:
    flat = log_p.reshape(-1, log_p.shape[-1])
    require(len(flat) >= 2, "a posterior wants 2 draws or more", len(flat))
    require(bool((flat != flat[0]).any()), "all draws are equal: this is a point estimate, which held-out scores and cross-validation compare, "
            "never LOO")


def _same_rows(own: Tensor, x: Tensor) -> None:
    same = own.shape == x.shape and bool(((own == x) | (own.isnan() & x.isnan())).all())
    require(same, "the posterior must be scored on the rows it was conditioned on", own, x)


def _check_counts(posterior: TablePosterior, x: Tensor) -> None:
    """The concentrations less the counts of the rows must be a symmetric prior; with NaN in the rows this cannot be told."""
    sizes = posterior.num_states
    if tuple(x.shape[1:]) != (len(sizes),) or bool(x.isnan().any()):
        return
    states, _ = check_data(x, sizes)
    for blocks, found in zip(posterior.joint.sharing(sizes, **posterior.structure), posterior.dirichlets, strict=True):
        prior = found.concentration.double() - table_counts(blocks, states, sizes).flatten(-len(blocks[0].children)).to(found.concentration.device)
        # Other rows differ by whole counts, rounding by far less.
        same = bool(prior.min() > -0.25) and bool(prior.max() - prior.min() < 0.5)
        require(same, f"the table posterior must be scored on the rows it was conditioned on: less the counts of these {len(x)} rows its "
                "concentrations leave no symmetric prior", round(prior.min().item(), 3), round(prior.max().item(), 3))


def _of_tables(posterior: TablePosterior, x: Tensor, visible: Tensor | None, num_draws: int) -> Tensor:
    """`(draws, N)`; a few draws at a time, since a full table is large."""
    cells = sum(d.concentration.numel() for d in posterior.dirichlets)
    step = at_once(cells)
    parts = []
    for start in range(0, num_draws, step):
        joint = posterior.sample((min(step, num_draws - start),))
        parts.append(pointwise_log_likelihood(joint, x, visible, what="the table"))
    return torch.cat(parts)


def _collect(posterior: Any, args: tuple[Any, ...], num_draws: int) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """Draws by site, `(chains, draws, *shape)`."""
    if isinstance(posterior, MCMC):
        draws = posterior.get_samples(group_by_chain=True)
        chains, count = next(iter(draws.values())).shape[:2]
        require(count >= 4, "an MCMC must have 4 or more draws of each chain, so that its diagnostics can be computed", count)
        diverging = np.zeros((chains, count), dtype=bool)
        for c, found in enumerate(posterior.diagnostics().get("divergences", {}).values()):
            diverging[c, [i for i in found if i < count]] = True
        return draws, {"diverging": diverging}
    if isinstance(posterior, Mapping):
        require(len(posterior) > 0 and all(isinstance(t, Tensor) and t.ndim >= 2 for t in posterior.values()),
                "draws must be tensors (chains, draws, ...) by name", {k: getattr(t, "shape", t) for k, t in posterior.items()})
        shapes = {t.shape[:2] for t in posterior.values()}
        require(len(shapes) == 1, "all draws must have the same chains and draws", sorted(map(tuple, shapes)))
        return dict(posterior), {}
    require(callable(posterior), "posterior must be a TablePosterior, a Posterior, a joint of draws, an MCMC, a guide, or a dict of draws", posterior)
    return {name: t[None] for name, t in guide_draws(posterior, *args, num_draws=num_draws).items()}, {}


def guide_draws(guide: Callable[..., Any], *args: Any, num_draws: int = 1000) -> dict[str, Tensor]:
    """Draws of a guide's latents, `(num_draws, *shape of the site)`: one trace each, so no plate adds dimensions of its own."""
    found: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for _ in range(num_draws):
            nodes: dict[str, Any] = poutine.trace(guide).get_trace(*args).nodes
            found.append({name: site["value"] for name, site in nodes.items() if site["type"] == "sample" and not site["is_observed"]
                          and not site["infer"].get("is_auxiliary") and type(site["fn"]).__name__ != "_Subsample"})
    return {name: torch.stack([draw[name] for draw in found]) for name in found[0]}


def _of_draws(draws: Mapping[str, Tensor], x: Tensor, visible: Tensor | None, likelihood: Callable[..., Joint] | None,
              model: Callable[..., Any] | None, args: tuple[Any, ...], plate: str) -> Tensor:
    require((likelihood is None) != (model is None), "draws by name need either likelihood (from draws to a joint) or model (a Pyro model)")
    left = next(iter(draws.values())).shape[:2]
    flat = {name: t.flatten(0, 1) for name, t in draws.items()}
    count = left[0] * left[1]
    if likelihood is None:
        require(visible is None, "a Pyro model sees to its hidden cells itself: observe joint.marginal(visible) in it")
        log_p = model_log_likelihood(model, flat, *args, plate=plate)  # type: ignore[arg-type]
        require(log_p.shape[-1] == len(x), f"the plate {plate!r} must hold the {len(x)} rows", log_p.shape[-1])
        return log_p.unflatten(0, left)
    with torch.no_grad():
        joint = likelihood(flat)
    require(isinstance(joint, Joint) and joint.batch_shape == Size([count]), f"likelihood must return a joint of batch shape ({count},)",
            getattr(joint, "batch_shape", joint))
    return pointwise_log_likelihood(joint, x, visible).unflatten(0, left)


class Loo(NamedTuple):
    r"""Leave-one-out log scores.

    Attributes:
        pointwise: Estimates of log p(x_i | the other rows), `(N,)`, in nats.
        pareto_k: Shape of the tail of the importance weights of each row, `(N,)`; NaN where the score is exact.
        good_k: Scores with larger shapes are not to be trusted.
        p: The effective number of parameters.
        method: 'PSIS-LOO', with how the draws were made, and the number of refits, if any.
    """

    pointwise: Tensor
    pareto_k: Tensor
    good_k: float
    p: float
    method: str = "PSIS-LOO"

    def __repr__(self) -> str:
        return one_line("Loo", self.method, counted(len(self.pointwise), "row"), f"{self.pointwise.mean():.4f} nats per row", f"{len(self.bad)} bad Pareto k")

    @property
    def elpd(self) -> float:
        """The sum over the rows."""
        return self.pointwise.sum().item()

    @property
    def bad(self) -> Tensor:
        """Numbers of the rows that are not to be trusted, worst first."""
        order = self.pareto_k.nan_to_num(-math.inf).argsort(descending=True)
        return order[self.pareto_k[order] > self.good_k]


def loo(data: Any) -> Loo:
    """PSIS-LOO by ArviZ, of the log-likelihood of `to_inference_data`.

    Of draws of an approximate guide it is not the leave-one-out of the posterior: the weights undo what a row did to the posterior, not
    the guide's own error, which Pareto k does not show. `method` says which it is.

    Raises:
        ValueError: No log-likelihood (or several), one draw, equal draws, or values that are not finite.

    Source:
        Vehtari, Simpson, Gelman, Yao, Gabry (2024), *Pareto smoothed importance sampling*.
    """
    found = group_of(data, "log_likelihood")
    require(len(found) == 1, "loo wants one log_likelihood variable, of dimensions (chain, draw, row)", sorted(found))
    log_p = torch.as_tensor(np.asarray(next(iter(found.values()))))
    require(log_p.ndim == 3, "the log-likelihood must be one value per row, (chain, draw, row)", log_p)
    _check_draws(check_finite(log_p, "loo"))
    answer, how = psis_loo(data), drawn_by(data)
    return Loo(torch.as_tensor(answer.pointwise).double(), torch.as_tensor(answer.pareto_k).double(), answer.good_k, answer.p,
               f"PSIS-LOO ({how or 'draws as given'})")


def refit_bad(found: Loo, x: Array, refit: Callable[[Tensor], Any], *, limit: int = 20) -> Loo:
    r"""Replace the scores that are not to be trusted, worst first, by exact ones: fit without the row, score it.

    Args:
        found: Of `loo`.
        x: The rows it was of.
        refit: From the other rows to a joint, or to a `Posterior`, whose predictive is taken.
        limit: At most so many fits; equal rows share one.

    Raises:
        ValueError: Other rows than `found` is of, or a `refit` that makes no single joint.
    """
    x = as_tensor(x)
    require(len(x) == len(found.pointwise), f"refits want the {len(found.pointwise)} rows of the scores", len(x))
    require(limit >= 0, "limit must be 0 or more", limit)
    require(callable(refit), "refit must be a function from the other rows to a joint or a Posterior", refit)
    pointwise, k = found.pointwise.clone(), found.pareto_k.clone()
    done = 0
    for i in found.bad.tolist():
        if done == limit:
            break
        if math.isnan(k[i]):
            continue  # equal to a row that was done
        rest = torch.arange(len(x)) != i
        made = refit(x[rest])
        joint = made.predictive() if hasattr(made, "predictive") else made
        require(isinstance(joint, Joint) and joint.batch_shape == (), "refit must return one joint without batch, or a Posterior",
                getattr(joint, "batch_shape", joint))
        same = (x == x[i]).flatten(1).all(-1)
        pointwise[same] = pointwise_log_likelihood(joint, x[i:i + 1], what="the refit").double()
        k[same] = math.nan
        done += 1
    return found._replace(pointwise=pointwise, pareto_k=k, method=f"{found.method}, {done} refits" if done else found.method)


def arviz_comparison(data: Mapping[str, Any]) -> Any:
    """ArviZ's own table of several `to_inference_data`, a pandas `DataFrame`: PSIS-LOO, differences, stacking weights."""
    require(len(data) >= 2, "ArviZ compares 2 models or more", len(data))
    return compare_table(data)
