r"""The main job: train classifiers on whole images, hide pixels, and see how p(y | x_visible) holds up.

For every split of the rows (stratified folds of several shuffles) and every model: fit on the
training part, then answer its test rows under every occlusion. All models see the same cells of the same rows. Hidden cells are
integrated out exactly by the generative models; where a joint has no exact answer the cell keeps
the reason. Three scores per cell:

============  =====================================================================================
accuracy      share of rows whose most probable class is the true one
log_score     mean of -log p(true class | x_visible) in nats; a row counts for at most `FLOOR` nats
calibration   expected calibration error: mean gap between the confidence in the predicted class and its
              accuracy, over `BINS` equal bins of confidence, weighted by rows
============  =====================================================================================

A model joins the line-up by one entry in `MODELS`, an occlusion by one in `OCCLUSIONS`.
"""

import contextlib
import hashlib
import math
import multiprocessing
import os
import re
import signal
import threading
import time

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Generator as Generating
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits
from torch import Generator, Tensor, nn

from pyro_ar import visible
from pyro_ar.checks import IntractableError, require
from pyro_ar.classify import DiscriminantAnalysis, GenerativeClassifier, LogisticRegression
from pyro_ar.data import Dataset
from pyro_ar.experiments.store import Results
from pyro_ar.families import FVSBN, NADE, OrderlessNADE, OverOrders
from pyro_ar.outputs import Bernoulli, DiscretisedLogisticMixture, Output
from pyro_ar.tables import ChowLiuTree, FullyIndependent, MarkovChain

__all__ = [
    "METRICS", "MODELS", "OCCLUSIONS", "Cell", "Example", "Model", "Occlusion", "Plan", "completed", "examples",
    "expected_calibration_error", "merge_reasons", "run", "scores", "summarise",
]

METRICS = ("accuracy", "log_score", "calibration")
FLOOR = 50.0  # nats; a single row with p = 1e-40 would otherwise outweigh a thousand others
BINS = 15
MAX_PAIRS = 2**28  # cells in all pair tables of a tree
MAX_STEPS = 2000  # of training of a net: what bounds the time on large data
NET_ROWS = 64  # answered at once: twice as fast as all together
COMPLETED = "bottom"  # the trailing half: every joint has an exact answer


# The line-up.


class Model(NamedTuple):
    """A classifier of the line-up.

    Attributes:
        make: A fresh classifier for this data; its arguments go into the settings of the results.
        unfit: Why it cannot be used on this data, empty if it can.
        note: What a reader must know about it.
    """

    make: Callable[[Dataset], Any]
    unfit: Callable[[Dataset], str] = lambda data: ""
    note: str = ""


def _table(joint: type) -> Callable[[Dataset], Any]:
    def make(data: Dataset) -> Any:
        # One pseudo-observation per row of a table: with 17 levels and 150 images per class, a whole one per cell
        # would flatten the chain and the tree.
        options = {"num_states": data.num_states, "pseudocount": 1 / (data.num_states or 1)}
        return GenerativeClassifier(joint, fit_options=options)

    return make


def _neural(make: Callable[[int, Output, int], nn.Module], *, epochs: int, batch_size: int, **options: Any) -> Callable[[Dataset], Any]:
    """A family with the class as context.

    Sizes and settings were chosen by log score and seconds on an inner split (1150 and 287 rows) of the training part of seed 1,
    split 1, of the digits, and nowhere else. Time was the main constraint: with several times the steps, and dropout, such nets gain a
    point or two. A categorical output in place of the mixture loses far more (FVSBN 81 %, NADE 86 % with nothing hidden).
    """

    def build(data: Dataset) -> Any:
        states = data.num_states or 2
        output = Bernoulli() if states == 2 else DiscretisedLogisticMixture(states, 5)
        family = make(data.x.shape[1], output, len(np.unique(_labels(data))))
        most = max(1, MAX_STEPS // math.ceil(0.9 * len(data.x) / batch_size))
        fit = {"epochs": min(epochs, most), "batch_size": batch_size, **options, "accelerator": "cpu", "progress": False}
        return GenerativeClassifier(family, fit_options=fit)

    return build


def _orderless(n: int, output: Output, classes: int) -> OrderlessNADE:
    return OrderlessNADE(n, 64, output, classes)


def _needs_states(data: Dataset) -> str:
    return "" if data.num_states else "it needs states, and the values are real numbers (binarise them)"


def _needs_pairs(data: Dataset) -> str:
    cells = (data.x.shape[1] * (data.num_states or 0)) ** 2
    return _needs_states(data) or (f"its pair tables have {cells:.1e} cells (binarise the values)" if cells > MAX_PAIRS else "")


MODELS: dict[str, Model] = {
    "independent": Model(_table(FullyIndependent), _needs_states),
    "Markov chain": Model(_table(MarkovChain), _needs_pairs),
    "Chow-Liu tree": Model(_table(ChowLiuTree), _needs_pairs),
    "Gaussian": Model(lambda data: DiscriminantAnalysis(shrinkage=0.1)),
    "FVSBN": Model(_neural(lambda n, output, C: FVSBN(n, output, C), epochs=40, batch_size=128, lr=3e-2), _needs_states),
    "NADE": Model(_neural(lambda n, output, C: NADE(n, 64, output, C), epochs=60, batch_size=256, lr=3e-2, weight_decay=0.3), _needs_states),
    "OrderlessNADE": Model(_neural(_orderless, epochs=40, batch_size=64, lr=2e-2), _needs_states),
    "OrderlessNADE (4 orders)": Model(
        _neural(lambda n, output, C: OverOrders(_orderless(n, output, C), 4), epochs=40, batch_size=64, lr=2e-2), _needs_states),
    "logistic (mean)": Model(lambda data: LogisticRegression(fill="mean"), note="hidden cells filled with their training mean"),
    "logistic (zero)": Model(lambda data: LogisticRegression(fill="zero"), note="hidden cells filled with zero"),
}


# The occlusions.


class Occlusion(NamedTuple):
    """A way to hide cells.

    Attributes:
        make: `(event_shape, rows, generator)` to a pattern `(rows or 1, *event_shape)`.
        level: Share of hidden cells where it is a random level.
        label: What is hidden, in words.
    """

    make: Callable[[tuple[int, ...], int, Generator], Tensor]
    label: str
    level: float | None = None


def _random(level: float) -> Occlusion:
    def make(event: tuple[int, ...], rows: int, generator: Generator) -> Tensor:
        return visible.random(event, level, rows, generator=generator)

    return Occlusion(make, f"{100 * level:.0f} % at random", level)


def _shape(make: Callable[[tuple[int, ...]], Tensor], label: str) -> Occlusion:
    return Occlusion(lambda event, rows, generator: make(event).unsqueeze(0), label)


OCCLUSIONS: dict[str, Occlusion] = {
    **{f"random-{100 * level:.0f}": _random(level) for level in (0, 0.25, 0.5, 0.75, 0.9)},
    "left": _shape(lambda event: visible.half(event, "left"), "left half"),
    "right": _shape(lambda event: visible.half(event, "right"), "right half"),
    "top": _shape(lambda event: visible.half(event, "top"), "top half"),
    "bottom": _shape(lambda event: visible.half(event, "bottom"), "bottom half"),
    "centre": _shape(visible.patch, "centre patch"),
    "border": _shape(lambda event: visible.border(event, max(1, min(event[-2:]) // 4)), "border"),
    "stripes": _shape(visible.stripes, "stripes"),
}


# The plan and its settings.


@dataclass(frozen=True)
class Plan:
    """What is to be done; checked when made.

    Args:
        data: With labels.
        seeds: One shuffle of the rows each.
        folds: Splits of each shuffle.
        models: Names from `MODELS`; None: all that fit the data.
        occlusions: Names from `OCCLUSIONS`; None: all that fit the data.

    Raises:
        ValueError: An unknown name, a model or occlusion that does not fit the data, no labels, one class only, or
            a class with fewer rows than folds.
    """

    data: Dataset
    seeds: tuple[int, ...] = (1, 2)
    folds: int = 5
    models: tuple[str, ...] | None = None
    occlusions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        data, seeds = self.data, self.seeds
        require(data.y is not None, f"{data.name} has no labels; say which column holds them with --label, or choose another set")
        counts = np.unique(self.labels, return_counts=True)[1]
        require(len(counts) >= 2, f"{data.name}: wanted rows of two classes or more", len(counts))
        require(self.folds >= 2, "folds must be 2 or more", self.folds)
        require(int(counts.min()) >= self.folds, f"{data.name}: every class needs as many rows as there are folds",
                f"{counts.min()} rows, {self.folds} folds")
        require(len(seeds) > 0 and len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds),
                "seeds must be different whole numbers from 0 to 2^32 - 1", seeds)
        object.__setattr__(self, "models", self._choose("model", self.models, self.unfit_models))
        shape = "" if data.image_shape and min(data.image_shape) >= 2 else "the rows are no images"
        unfit = {name: "" if o.level is not None else shape for name, o in OCCLUSIONS.items()}
        object.__setattr__(self, "occlusions", self._choose("occlusion", self.occlusions, unfit))

    def _choose(self, what: str, wanted: Sequence[str] | None, unfit: Mapping[str, str]) -> tuple[str, ...]:
        if wanted is None:
            return tuple(name for name, reason in unfit.items() if not reason)
        known = {name.lower(): name for name in unfit}
        for name in wanted:
            require(name.lower() in known, f"{what} must be one of {', '.join(unfit)}", name)
        wanted = [known[name.lower()] for name in wanted]
        require(len(set(wanted)) == len(wanted) > 0, f"{what}s must be different names, at least one", wanted)
        for name in wanted:
            require(not unfit[name], f"{what} {name!r} does not fit {self.data.name}: {unfit[name]}")
        return tuple(name for name in unfit if name in wanted)

    @property
    def unfit_models(self) -> dict[str, str]:
        """Why a model cannot be used on this data, by name; empty if it can."""
        return {name: model.unfit(self.data) for name, model in MODELS.items()}

    @property
    def labels(self) -> np.ndarray:
        return _labels(self.data)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.data.image_shape or (self.data.x.shape[1],)

    @property
    def units(self) -> list[tuple[int, int, str]]:
        """(seed, fold, model), model fastest: an interrupted run has whole splits."""
        return [(s, f, m) for s in self.seeds for f in range(self.folds) for m in self.models or ()]

    def settings(self) -> dict[str, Any]:
        """What must be the same for results to belong together."""
        with torch.random.fork_rng(devices=[]):  # the weights of fresh nets are drawn
            models = {name: _describe(MODELS[name].make(self.data)) for name in self.models or ()}
        digest = hashlib.sha256(self.data.x.float().numpy().tobytes() + self.labels.astype("<i8").tobytes())
        return {
            "experiment": "occlusion",
            "data": {"name": self.data.name, "rows": len(self.data.x), "num_states": self.data.num_states,
                     "sha256": digest.hexdigest()[:16]},
            "seeds": self.seeds,
            "folds": self.folds,
            "models": models,
            "occlusions": {name: OCCLUSIONS[name].label for name in self.occlusions or ()},
            "log score": f"at most {FLOOR:g} nats per row",
            "calibration": f"{BINS} equal bins",
        }

    def split(self, seed: int, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of the training and the test part."""
        folds = StratifiedKFold(self.folds, shuffle=True, random_state=seed)
        return list(folds.split(np.zeros(len(self.labels)), self.labels))[fold]

    def pattern(self, occlusion: str, seed: int, fold: int, rows: int) -> Tensor:
        """What is visible, `(rows or 1, n)`: the same for every model; a random level hides what the lower ones hide."""
        generator = Generator().manual_seed(1000 * seed + fold)
        return OCCLUSIONS[occlusion].make(self.event_shape, rows, generator).flatten(1)


def _labels(data: Dataset) -> np.ndarray:
    return data.y.numpy() if data.y is not None else np.empty(0)


def _describe(classifier: Any) -> str:
    """All its arguments, the defaults too: a results file must not survive a changed default."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in classifier.get_params(deep=False).items() if value is not None)
    return f"{type(classifier).__name__}({' '.join(arguments.split())})"


# The work.


def run(plan: Plan, results: Results, *, workers: int = 1, threads: int = 1) -> Iterator[dict[str, Any]]:
    """Do the units that are still to do, keep each on disk, and yield it; done ones are yielded as they are.

    Units come in the order of the plan, and are the same with any number of workers.

    Args:
        plan: What to do.
        results: Where units are kept.
        workers: Processes that work at the same time; with 1 this one does the work.
        threads: Of the computation in each of several workers.

    Raises:
        ValueError: A model cannot be fitted to the data.
        ChildProcessError: A worker was killed, by the system for lack of memory perhaps.
    """
    todo = [key for key in plan.units if _find(results, *key) is None]
    fresh = _in_workers(plan, todo, min(workers, len(todo)), threads) if min(workers, len(todo)) > 1 else _here(plan, todo)
    with contextlib.closing(fresh):
        for key in plan.units:
            unit = _find(results, *key)
            if unit is None:
                unit = next(fresh)
                results.add(unit)
            yield unit


def _find(results: Results, seed: int, fold: int, model: str) -> dict[str, Any] | None:
    return results.find(model=model, seed=seed, fold=fold)


def _here(plan: Plan, todo: Sequence[tuple[int, int, str]]) -> Generating[dict[str, Any], None, None]:
    for key in todo:
        yield _one_unit(plan, *key)


def _in_workers(plan: Plan, todo: Sequence[tuple[int, int, str]], workers: int, threads: int) -> Generating[dict[str, Any], None, None]:
    """The units by several processes, in their order; all processes are gone when this ends, however it ends."""
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (plan, threads))
    try:
        with _without_ctrl_c():  # of the terminal, which all its processes get: this one alone is to answer it
            units = pool.map(_unit_of_worker, todo)
        yield from units
    except BrokenProcessPool:
        raise ChildProcessError("a worker process was killed, for lack of memory perhaps; the same command goes on with what is to do, "
                                "and --workers 1 needs the least memory") from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()  # it may be minutes from the end of its unit
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started here ignore it for good."""
    if threading.current_thread() is not threading.main_thread():  # where Python does not let us choose
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_plan_of_worker: list[Plan] = []  # sent once: it holds the data


def _start_worker(plan: Plan, threads: int) -> None:
    _plan_of_worker[:] = [plan]
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed could not end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _unit_of_worker(key: tuple[int, int, str]) -> dict[str, Any]:
    return _one_unit(_plan_of_worker[0], *key)


def _one_unit(plan: Plan, seed: int, fold: int, model: str) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):  # what a model draws depends on the unit alone, not on the units before it
        torch.manual_seed(1000 * seed + fold)
        return _fit_and_answer(plan, seed, fold, model)


def _fit_and_answer(plan: Plan, seed: int, fold: int, model: str) -> dict[str, Any]:
    train, test = plan.split(seed, fold)
    x, y = plan.data.x.double(), plan.labels
    start = time.perf_counter()
    classifier = MODELS[model].make(plan.data).fit(x[train], y[train])
    fitted = time.perf_counter()
    first = (seed, fold) == (plan.seeds[0], 0)
    shown = {example.occlusion: example for example in examples(plan)} if first else {}
    cells: dict[str, dict[str, Any]] = {}
    posteriors = {}
    for name in plan.occlusions or ():
        seen = plan.pattern(name, seed, fold, len(test))
        try:
            log_p = _answer(classifier, x[test], seen)
        except IntractableError as error:
            cells[name] = {"reason": str(error)}
            continue
        cells[name] = scores(log_p, np.searchsorted(classifier.classes_, y[test]))
        if name in shown:
            row = int(np.flatnonzero(test == shown[name].row)[0])
            posteriors[name] = [round(float(p), 4) for p in np.exp(log_p[row])]
    unit: dict[str, Any] = {
        "model": model, "seed": seed, "fold": fold, "rows": len(test), "parameters": classifier.num_parameters,
        "fit_seconds": round(fitted - start, 3), "answer_seconds": round(time.perf_counter() - fitted, 3), "cells": cells}
    if first and (draws := _draw_completions(plan, classifier)):
        unit["completions"] = draws
    return unit | ({"examples": posteriors} if shown else {})


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
    except IntractableError:
        return []
    return [[round(v, 3) for v in row] for row in drawn.tolist()]


def _answer(classifier: Any, x: Tensor, seen: Tensor) -> np.ndarray:
    """Log p(class | x_visible); of nets for few rows at a time, whose hidden layers then stay in the cache."""
    step = NET_ROWS if isinstance(getattr(classifier, "likelihood", None), nn.Module) else len(x)
    pieces = [(x[i:i + step], seen if len(seen) == 1 else seen[i:i + step]) for i in range(0, len(x), step)]
    return np.concatenate([classifier.predict_log_proba(*piece) for piece in pieces])


def scores(log_p: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The three scores of one cell, and how many rows hit the floor of the log score.

    Args:
        log_p: log p(class | x_visible), `(N, C)`.
        y: Positions of the true classes, `(N,)`.
    """
    right = log_p.argmax(-1) == y
    loss = -log_p[np.arange(len(y)), y]
    return {
        "accuracy": float(right.mean()),
        "log_score": float(np.minimum(loss, FLOOR).mean()),
        "calibration": expected_calibration_error(np.exp(log_p.max(-1)), right),
        "floored": int((loss > FLOOR).sum()),
    }


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence, weighted by rows.

    Source:
        Guo, Pleiss, Sun, Weinberger (2017), *On calibration of modern neural networks*, eq. 3.

    Example:
        >>> expected_calibration_error(np.array([0.9, 0.9]), np.array([True, False]))
        0.4
    """
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are (a, b]
    gap = np.bincount(which, confidence - right, bins)
    return float(round(np.abs(gap).sum() / len(right), 12))


# What came out.


class Cell(NamedTuple):
    """One model under one occlusion, over the splits.

    Attributes:
        mean: Of each metric; empty where there is no exact answer.
        error: Standard error of each mean over the splits; NaN with one split.
        splits: How many.
        floored: Rows at the floor of the log score.
        reason: Why there is no exact answer.
    """

    mean: dict[str, float]
    error: dict[str, float]
    splits: int
    floored: int = 0
    reason: str = ""


def summarise(units: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Cell]]:
    """Cells by model and occlusion.

    The standard error takes the splits for independent draws. Folds of one shuffle share training rows, so
    it is a guide to the noise and no confidence interval.
    """
    cells: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for unit in units:
        for occlusion, cell in unit["cells"].items():
            cells.setdefault(unit["model"], {}).setdefault(occlusion, []).append(cell)
    return {model: {name: _summary(column) for name, column in row.items()} for model, row in cells.items()}


def _summary(cells: Sequence[Mapping[str, Any]]) -> Cell:
    reasons = [cell["reason"] for cell in cells if "reason" in cell]
    if reasons:
        return Cell({}, {}, len(cells), reason=merge_reasons(reasons)[0])
    values = {metric: np.array([cell[metric] for cell in cells]) for metric in METRICS}
    n = len(cells)
    error = {metric: float(v.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan for metric, v in values.items()}
    return Cell({metric: float(v.mean()) for metric, v in values.items()}, error, n, sum(cell["floored"] for cell in cells))


NUMBER = r"\d+(?:\^\d+)?"
RANGE = re.compile(rf"({NUMBER})(?: to ({NUMBER}))?")


def merge_reasons(reasons: Sequence[str]) -> list[str]:
    """Reasons that differ in their numbers alone become one, with the range of each number; the order stays.

    Example:
        >>> merge_reasons(["3 cells, 2^3 states", "no net", "11 cells, 2^11 states"])
        ['3 to 11 cells, 2^3 to 2^11 states', 'no net']
    """
    alike: dict[str, list[str]] = {}
    for reason in reasons:
        alike.setdefault(RANGE.sub("#", reason), []).append(reason)
    return [_with_ranges(some) for some in alike.values()]


def _with_ranges(reasons: Sequence[str]) -> str:
    """One reason of several that differ in their numbers alone."""
    found = [RANGE.findall(reason) for reason in reasons]
    ranges = []
    for column in zip(*found, strict=True):
        numbers = sorted((number for pair in column for number in pair if number), key=lambda text: [int(part) for part in text.split("^")])
        ranges.append(numbers[0] if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}")
    rest = iter(ranges)
    return RANGE.sub(lambda match: next(rest), reasons[0])


class Example(NamedTuple):
    """A test row that is shown in a picture: which one is a rule, not a choice."""

    occlusion: str
    row: int
    label: int
    visible: Tensor


def examples(plan: Plan) -> list[Example]:
    """For each occlusion but the two mildest the first test row of the next class, from the first split."""
    seed, fold = plan.seeds[0], 0
    test = plan.split(seed, fold)[1]
    classes = np.unique(plan.labels)
    names = [name for name in plan.occlusions or () if (OCCLUSIONS[name].level or 1) > 0.25]
    shown = []
    for i, name in enumerate(name for name in names if name != "random-0"):
        label = classes[i % len(classes)]
        at = int(np.flatnonzero(plan.labels[test] == label)[0])
        pattern = plan.pattern(name, seed, fold, len(test))
        shown.append(Example(name, int(test[at]), int(label), pattern[at if len(pattern) > 1 else 0]))
    return shown


def completed(plan: Plan) -> list[Example]:
    """The rows whose lower half is drawn: the first test row of each of the first ten classes, from the first split."""
    if COMPLETED not in (plan.occlusions or ()):
        return []
    seed, fold = plan.seeds[0], 0
    test = plan.split(seed, fold)[1]
    seen = plan.pattern(COMPLETED, seed, fold, len(test))[0]
    firsts = [(label, test[np.flatnonzero(plan.labels[test] == label)[0]]) for label in np.unique(plan.labels)[:10]]
    return [Example(COMPLETED, int(row), int(label), seen) for label, row in firsts]
