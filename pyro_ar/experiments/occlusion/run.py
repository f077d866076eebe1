r"""The main job: train classifiers on whole images, hide pixels, and see how p(y | x_visible) holds up.

For every split of the rows (stratified folds of several shuffles, or an official test part) and every model: fit on the training part,
then answer its test rows under every occlusion. All models see the same cells of the same rows. Hidden cells are
integrated out exactly by the generative models; where there is no answer the cell keeps the reason. With `Plan.holes` training rows hide as many
cells, and each occlusion has a fit of its own. What is scored, and
how scores are compared, is in `scoring`; the models are in `lineup`, the occlusions in `occlusions`, and splits in `plan`.
"""

import contextlib
import time

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from torch import Tensor, nn

from pyro_ar.checks import IntractableError, require
from pyro_ar.experiments.occlusion.lineup import is_large
from pyro_ar.experiments.occlusion.plan import Plan
from pyro_ar.experiments.occlusion.scoring import scores
from pyro_ar.experiments.occlusion.shown import completed, examples
from pyro_ar.experiments.store import Results
from pyro_ar.experiments.workers import in_workers

__all__ = ["run"]

NET_ROWS = 64  # answered at once: twice as fast as all together
FAILURES = (ValueError, ArithmeticError, RuntimeError)  # of data that a classifier cannot use: singular, constant, impossible

Key = tuple[int, int, str]


def run(plan: Plan, results: Results, *, workers: int = 1, threads: int = 1) -> Iterator[dict[str, Any]]:
    """Do the units that are still to do, keep each on disk, and yield it; done ones are yielded as they are.

    Units come in the order of the plan, and are the same with any number of workers. A classifier that cannot be fitted does
    not end the run: its cells say why.

    Args:
        plan: What to do.
        results: Where units are kept.
        workers: Processes that work at the same time; with 1 this one does the work.
        threads: Of the computation in each of several workers.

    Raises:
        ChildProcessError: A worker was killed, by the system for lack of memory perhaps.
    """
    todo = [key for key in plan.units if _find(results, *key) is None]
    many = min(workers, len(todo)) > 1
    fresh = in_workers(one_unit, plan, todo, min(workers, len(todo)), threads) if many else _here(plan, todo)
    with contextlib.closing(fresh):
        for key in plan.units:
            unit = _find(results, *key)
            if unit is None:
                unit = next(fresh)
                results.add(unit)
            yield unit


def _find(results: Results, seed: int, fold: int, model: str) -> dict[str, Any] | None:
    return results.find(model=model, seed=seed, fold=fold)


def _here(plan: Plan, todo: Sequence[Key]) -> Generator[dict[str, Any], None, None]:
    for key in todo:
        yield one_unit(plan, key)


def one_unit(plan: Plan, key: Key) -> dict[str, Any]:
    """One model on one split."""
    seed, fold, model = key
    with torch.random.fork_rng(devices=[]):  # what a model draws depends on the unit alone, not on the units before it
        torch.manual_seed(1000 * seed + fold)
        return _fit_and_answer(plan, seed, fold, model)


def _fit_and_answer(plan: Plan, seed: int, fold: int, model: str) -> dict[str, Any]:
    """One fit for all occlusions; where training rows have holes as the test rows have, one for each."""
    train, test = plan.split(seed, fold)
    names = plan.occlusions or ()
    parts = [_part(plan, seed, fold, model, some) for some in ([(name,) for name in names] if plan.holes else [names])]
    known = [part["parameters"] for part in parts if part["parameters"] is not None]
    unit: dict[str, Any] = {"model": model, "seed": seed, "fold": fold, "rows": len(test), "training_rows": len(train)}
    unit |= {"parameters": round(sum(known) / len(known)) if known else None, "fit_seconds": round(sum(part["fit"] for part in parts) / len(parts), 3),
             "answer_seconds": round(sum(part["answer"] for part in parts), 3), "cells": {k: v for part in parts for k, v in part["cells"].items()}}
    if chosen := _merged([part["chosen"] for part in parts]):
        unit["chosen"] = chosen
    for name in ("completions", "examples"):
        if found := [part[name] for part in parts if part.get(name)]:
            unit[name] = found[0] if name == "completions" else {k: v for one in found for k, v in one.items()}
    return unit


def _merged(chosen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one fit its settings, of several all of each."""
    if len(chosen) == 1:
        return chosen[0]
    found: dict[str, list[Any]] = {}
    for name, value in (item for one in chosen for item in one.items()):
        found.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    return found


def _part(plan: Plan, seed: int, fold: int, model: str, names: tuple[str, ...]) -> dict[str, Any]:
    """A fit, and its answers under some occlusions."""
    train, test = plan.split(seed, fold)
    x, y = plan.data.x if is_large(plan.data) else plan.data.x.double(), plan.labels
    start = time.process_time()
    try:
        seen = plan.training_pattern(names[0], seed, train)
        classifier = plan.fresh(model).fit(x[train], y[train], *(() if seen is None else (seen,)))
    except (IntractableError, *FAILURES) as error:
        reason = {"reason": f"it could not be fitted: {error}"}
        return {"parameters": None, "fit": time.process_time() - start, "answer": 0.0, "cells": dict.fromkeys(names, reason), "chosen": {}}
    fitted = time.process_time()
    cells, posteriors = _answers(plan, seed, fold, classifier, x[test], test, names)
    part = {"parameters": classifier.num_parameters, "fit": fitted - start, "answer": time.process_time() - fitted, "cells": cells,
            "chosen": dict(getattr(classifier, "chosen_", {}))}
    if (seed, fold) == (plan.seeds[0], 0):
        part |= {"examples": posteriors} | ({} if plan.holes else {"completions": _draw_completions(plan, classifier)})
    return part


def _answers(plan: Plan, seed: int, fold: int, classifier: Any, x: Tensor, test: np.ndarray, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cells by occlusion, and the posteriors of the rows that are shown."""
    first = (seed, fold) == (plan.seeds[0], 0)
    shown = {example.occlusion: example for example in examples(plan)} if first else {}
    true = np.searchsorted(classifier.classes_, plan.labels[test])
    cells: dict[str, Any] = {}
    posteriors = {}
    for name in names:
        seen = plan.pattern(name, seed, fold, len(test))
        seen = seen if plan.data.visible is None else seen & plan.data.visible[test]
        try:
            log_p = _answer(classifier, x, seen)
        except IntractableError as error:
            cells[name] = {"reason": f"no exact answer: {error}"}
            continue
        except FAILURES as error:
            cells[name] = {"reason": f"it could not answer: {error}"}
            continue
        cells[name] = scores(log_p, true, rows=plan.folds == 1) | _estimated(classifier, true)
        if name in shown:
            row = int(np.flatnonzero(test == shown[name].row)[0])
            posteriors[name] = [round(float(p), 4) for p in np.exp(log_p[row])]
    return cells, posteriors


def _estimated(classifier: Any, true: np.ndarray) -> dict[str, Any]:
    """Of answers that are estimates: the mean standard error of the probability of the true class, and the share of rows to be trusted."""
    found = getattr(classifier, "last_", None)
    if found is None or not found.method.startswith("estimate"):
        return {}
    error = found.standard_error.numpy()[np.arange(len(true)), true]
    return {"estimate_error": round(float(error.mean()), 6), "estimate_trusted": round(float(found.trusted.double().mean()), 6)}


def _draw_completions(plan: Plan, classifier: Any) -> list[list[float]]:
    """One draw of the hidden half for each row of `completed`; empty for classifiers that are no joint of the cells."""
    rows = completed(plan)
    joint = getattr(classifier, "joint_", None)
    if joint is None or not rows:
        return []
    x = plan.data.x[[example.row for example in rows]].to(joint.dtype)
    torch.manual_seed(plan.seeds[0])  # the same, whatever was drawn before
    try:
        drawn = joint.given(x, torch.stack([example.visible for example in rows])).sample()
    except (IntractableError, *FAILURES):
        return []
    return [[round(v, 3) for v in row] for row in drawn.tolist()]


def _answer(classifier: Any, x: Tensor, seen: Tensor) -> np.ndarray:
    """Log p(class | x_visible); of nets for few rows at a time, whose hidden layers then stay in the cache."""
    step = NET_ROWS if isinstance(getattr(classifier, "likelihood", None), nn.Module) else len(x)
    pieces = [(x[i:i + step], seen if len(seen) == 1 else seen[i:i + step]) for i in range(0, len(x), step)]
    log_p = np.concatenate([classifier.predict_log_proba(*piece) for piece in pieces])
    require(not np.isnan(log_p).any(), "some of its probabilities are no numbers")
    return log_p
