r"""`compare`: models of any kind scored on the same rows, each as honestly as its kind allows."""

import math

from collections.abc import Mapping
from typing import Any

import torch

from torch import Tensor

from pyro_ar.arrays import Array, as_tensor
from pyro_ar.checks import IntractableError, require
from pyro_ar.comparison.held_out import (
    cross_validate,
    held_out_score,
    paired_difference,
    share_states,
    stacking_weights,
)
from pyro_ar.comparison.pointwise import cells
from pyro_ar.comparison.predictive import APPROXIMATE, PICKED, Loo, loo, refit_bad, to_inference_data
from pyro_ar.comparison.recipes import TableModel
from pyro_ar.comparison.table import METHODS, Comparison, Row
from pyro_ar.inference.arviz_bridge import group_of
from pyro_ar.inference.bayesian import Posterior
from pyro_ar.joint import Joint
from pyro_ar.tables import ChowLiuTree, TablePosterior
from pyro_ar.tables.counts import check_data
from pyro_ar.visible import read_rows

__all__ = ["compare"]

MAX_CHANGE = 0.01  # of the ELBO over the last tenth of steps, before a fit counts as not settled


def compare(models: Mapping[str, Any], x: Array, visible: Array | None = None, *, folds: int = 5, refits: int = 0, seed: int = 0,
            progress: bool = False) -> Comparison:
    r"""Score models on the same rows, and say how each score came about.

    ==============================================  ============================================================
    a model                                         its score
    ==============================================  ============================================================
    `TableModel` (exact posterior)                  leave-one-out in closed form, and its evidence
    `Posterior`, or data of `to_inference_data`     PSIS-LOO, with Pareto k; evidence if `Posterior.evidence` is set
    `NeuralModel`, a function from rows to a joint  cross-validation: a point estimate has no LOO
    a fitted `Joint`                                held out: `x` must be rows that it was not fitted to
    ==============================================  ============================================================

    The first three answer one question, "how well is a row predicted from the others", and may stand in one table. Fitted
    joints answer another one, so they do not mix with the rest.

    Args:
        models: By name.
        x: `(N, *event)`, the rows that all are scored on.
        visible: What counts of each row; for fitted joints and posterior draws only. Draws must have been made with the same.
            None: NaN in `x` hides a cell.
        folds: Of the cross-validation.
        refits: For each `Posterior` of whole rows, fit again without up to so many of the rows whose Pareto k is bad; `refit_bad`
            serves the others.
        seed: Of the folds.
        progress: Show a bar.

    Raises:
        ValueError: No models, rows that a model cannot score or was not conditioned on, models scored on different cells, fitted
            joints mixed with others, or draws that are a point estimate.

    Example:
        >>> from pyro_ar.tables import FullyIndependent, MarkovChain
        >>> x = MarkovChain(torch.zeros(2), torch.eye(2).expand(5, 2, 2) * 3).sample((200,))
        >>> found = compare({"independent": TableModel(FullyIndependent), "chain": TableModel(MarkovChain)}, x)
        >>> found.best
        'chain'
    """
    require(isinstance(models, Mapping), "compare wants models by name, {name: model}", models)
    require(len(models) >= 1, "compare wants at least one model")
    x, visible = as_tensor(x), as_tensor(visible)
    require(isinstance(x, Tensor) and x.ndim >= 2 and len(x) >= 2, "compare wants 2 rows or more, (N, *event)", x)
    kinds = {name: _kind(name, model) for name, model in models.items()}
    fitted = [name for name, kind in kinds.items() if kind == "held out"]
    require(len(fitted) in (0, len(models)), "fitted joints are scored on rows held out of their fit, the others on the rows they learn from: give "
            "recipes (TableModel, NeuralModel, a function from rows to a joint) in place of fitted joints, or compare them apart", fitted)
    if visible is not None:
        blind = [name for name, kind in kinds.items() if kind in ("LOO, exact", "cross-validation")]
        require(not blind, "visible (or NaN) serves fitted joints and posterior draws; recipes are fitted to whole rows", blind)
    require(isinstance(refits, int) and refits >= 0, "refits must be 0 or more", refits)
    _check_cells(models, kinds, x, visible)
    models = share_states(models, x)
    pointwise, loos, evidence = _score(models, kinds, x, visible, folds=folds, refits=refits, seed=seed, progress=progress)
    return _table(models, kinds, pointwise, loos, evidence, x, folds)


def _check_cells(models: Mapping[str, Any], kinds: Mapping[str, str], x: Tensor, visible: Tensor | None) -> None:
    """Refuse models whose scores are of different cells of the rows."""
    first, wanted = "visible=", None if visible is None else cells(visible, x)
    everything = cells(torch.ones((), dtype=torch.bool) if (shown := read_rows(x)[1]) is None else shown, x)
    for name, model in models.items():
        seen = _cells_of(model, x) if kinds[name] == "PSIS-LOO" else everything if wanted is None else wanted
        if seen is None:
            continue
        if wanted is None:
            first, wanted = name, seen
        other = (seen != wanted.to(seen.device)).nonzero()
        if len(other):
            at = tuple(other[0].tolist())
            raise ValueError(f"all models must be scored on the same cells: {name} and {first} differ in {len(other)} cells, the first in row {at[0]}, "
                             f"position {at[1:]}, which only {name if bool(seen[at]) else first} counts; fit all to one `visible`, and give it to compare")


def _cells_of(model: Any, x: Tensor) -> Tensor | None:
    """The cells that draws are scored on; None where they do not say, or are of other rows, which is refused later."""
    if isinstance(model, Posterior):
        if model.x.shape != x.shape:
            return None
        return torch.ones(x.shape, dtype=torch.bool) if model.visible is None else model.visible.expand(x.shape)
    own = next(iter(group_of(model, "observed_data").values()), None)
    return None if own is None or tuple(own.shape) != tuple(x.shape) else ~torch.as_tensor(own).isnan()


def _refits(model: Any) -> bool:
    """Whether `compare` can fit the model again without a row."""
    return isinstance(model, Posterior) and model.visible is None


def _kind(name: str, model: Any) -> str:
    if isinstance(model, TableModel):
        return "LOO, exact"
    require(not isinstance(model, TablePosterior), f"{name}: a TablePosterior does not keep its rows: give to_inference_data(posterior, x), or "
            "the TableModel itself")
    if isinstance(model, Joint):
        return "held out"
    if isinstance(model, Posterior) or (hasattr(model, "to_netcdf") and not callable(model)):
        return "PSIS-LOO"
    return "cross-validation"


def _score(models: Mapping[str, Any], kinds: Mapping[str, str], x: Tensor, visible: Tensor | None, *, folds: int, refits: int, seed: int,
           progress: bool) -> tuple[dict[str, Tensor], dict[str, Loo], dict[str, tuple[float, float]]]:
    pointwise: dict[str, Tensor] = {}
    loos: dict[str, Loo] = {}
    evidence: dict[str, tuple[float, float]] = {}
    for name, model in models.items():
        if kinds[name] == "held out":
            pointwise[name] = held_out_score(model, x, visible, what=name)
        elif kinds[name] == "LOO, exact":
            try:
                pointwise[name] = model.leave_one_out(x)
                evidence[name] = (model.log_evidence(x).item(), 0.0)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        elif kinds[name] == "PSIS-LOO":
            loos[name] = _psis(name, model, x, visible, refits if _refits(model) else 0)
            pointwise[name] = loos[name].pointwise
            if isinstance(model, Posterior) and model.evidence is not None:
                evidence[name] = (model.evidence.value, model.evidence.error)
    again = {name: model for name, model in models.items() if kinds[name] == "cross-validation"}
    if again:
        pointwise |= cross_validate(again, x, folds=folds, seed=seed, progress=progress)
    return {name: pointwise[name] for name in models}, loos, evidence


def _psis(name: str, model: Any, x: Tensor, visible: Tensor | None, refits: int) -> Loo:
    try:
        data = to_inference_data(model, x, visible) if isinstance(model, Posterior) else model
        own = next(iter(group_of(data, "observed_data").values()), None)
        if own is not None and not isinstance(model, Posterior):
            shown = torch.as_tensor(own)
            same = shown.shape == x.shape and bool(((shown == x) | shown.isnan()).all())
            require(same, "the draws must be of the posterior given the rows x", shown, x)
        found = loo(data)
        require(len(found.pointwise) == len(x), f"the draws must score the {len(x)} rows of x", len(found.pointwise))
        if refits and len(found.bad):
            found = refit_bad(found, x, model.refit, limit=refits)
    except (ValueError, IntractableError) as error:
        raise type(error)(f"{name}: {error}") from None
    return found


def _table(models: Mapping[str, Any], kinds: Mapping[str, str], pointwise: Mapping[str, Tensor], loos: Mapping[str, Loo],
           evidence: Mapping[str, tuple[float, float]], x: Tensor, folds: int) -> Comparison:
    order = sorted(pointwise, key=lambda name: -pointwise[name].mean().item())
    weights = stacking_weights(pointwise)
    rows = []
    for name in order:
        score, gap = pointwise[name], paired_difference(pointwise[name], pointwise[order[0]])
        found = loos.get(name)
        log_z, error = evidence.get(name, (None, 0.0))
        method = found.method if found else kinds[name] + _how(models[name], kinds[name], folds)
        rows.append(Row(
            name, method, score.mean().item(), score.std().item() / math.sqrt(len(score)), gap.mean, gap.error, weights[name],
            _parameters(models[name], x), None if found is None else len(found.bad),
            None if found is None else _largest(found.pareto_k), log_z, error))
    return Comparison(tuple(rows), {name: pointwise[name] for name in order}, dict(loos), _notes(rows, models, len(x)))


def _how(model: Any, kind: str, folds: int) -> str:
    if kind == "cross-validation":
        return f", {folds} folds"
    # A tree picked from the rows would have seen the row it is scored on.
    return ", over all trees" if isinstance(model, TableModel) and model.joint is ChowLiuTree and not model.structure else ""


def _largest(k: Tensor) -> float:
    known = k[~k.isnan()]
    return known.max().item() if len(known) else math.nan


def _parameters(model: Any, x: Tensor) -> int | None:
    if isinstance(model, TableModel):
        return model.parameters_of(x)
    count = getattr(model, "num_parameters", None)
    if not callable(count):
        return count
    discrete = not x.is_floating_point() or bool((x == x.round()).all())  # recipes of one's own may want the states
    return count(check_data(x, None)[1] if discrete and x.ndim == 2 else ())


def _notes(rows: list[Row], models: Mapping[str, Any], count: int) -> tuple[str, ...]:
    notes = [f"{count} rows, log scores in nats, larger is better; errors are standard errors over the rows, of differences between the same rows."]
    for method, meaning in METHODS.items():
        if any(row.method.startswith(method) for row in rows):
            notes.append(f"{method}: {meaning}.")
    if guides := [row.name for row in rows if APPROXIMATE in row.method]:
        notes.append(f"Draws of {', '.join(guides)} are those of an approximate guide: PSIS-LOO takes them for the posterior's, and neither its error nor "
                     "Pareto k shows what the guide gets wrong. Compare with NUTS where it can be run, or with held-out scores.")
    if trees := [row.name for row in rows if PICKED in row.method]:
        notes.append(f"Every row took part in picking the tree of {', '.join(trees)}, which flatters its score: TableModel(ChowLiuTree) is over all trees.")
    if any(row.log_evidence is not None for row in rows):
        notes.append("log evidence: of all rows together; Bayes factors are its differences. Point estimates have none; draws of weights show it if their "
                     "Posterior was given it (posterior.evidence = Bayesian.log_evidence(x)).")
    bad = [row.name for row in rows if row.bad_k]
    if again := [name for name in bad if _refits(models[name])]:
        notes.append(f"Pareto k is bad in {', '.join(again)}: compare(..., refits=20) fits again without such rows, worst first.")
    if rest := [name for name in bad if not _refits(models[name])]:
        notes.append(f"Pareto k is bad in {', '.join(rest)}, which compare cannot fit again (only a Posterior of whole rows knows how): "
                     "refit_bad(loo(data), x, refit) takes a function that does.")
    for row in rows:
        fit = models[row.name]
        if isinstance(fit, Posterior) and fit.method == "nuts":
            d = fit.diagnostics()
            mixing = "no R-hat of one chain" if math.isnan(d.r_hat) else f"largest R-hat {d.r_hat:.3f}"
            notes.append(f"{row.name}: {d.draws} draws of NUTS, {mixing}, smallest effective sample {d.ess_bulk:.0f} (bulk) and {d.ess_tail:.0f} (tail), "
                         f"{d.divergences} divergences.")
        if isinstance(fit, Posterior) and fit.elbo is not None and fit.elbo_change is not None:
            settled = abs(fit.elbo_change) <= MAX_CHANGE
            what = "log density of the mode" if fit.method == "laplace" else "ELBO"
            notes.append(f"{row.name}: {what} {fit.elbo:.2f}, changed by {fit.elbo_change:.2%} over the last tenth of the steps"
                         + ("." if settled else ": not settled, fit with more steps."))
    return tuple(notes)
