r"""Scores of answers, their summary over splits, and paired differences from one model.

============  =====================================================================================
accuracy      share of rows whose most probable class is the true one
log_score     mean of -log p(true class | x_visible) in nats; a row counts for at most `FLOOR` nats
calibration   expected calibration error: mean gap between the confidence in the predicted class and its
              accuracy, over `BINS` equal bins of confidence, weighted by rows
============  =====================================================================================

Accuracy and log score are means over splits. The splits share rows, so that their spread alone makes the error of the mean too small; it
is the corrected one of `resampled_error`, which covers other training and test rows of the same source. Over one split (an official test part) the
standard error is that of its rows: binomial for the accuracy, and for a difference that of the rows' own differences; it leaves out what another training
part would change.

The calibration error is a mean of absolute values, and so above zero by chance, the more so the fewer the rows. It is taken over all folds
of a shuffle together, which answer every row once, and averaged over the shuffles; beside it stands its floor: what answers would show that
are right exactly as often as they say, with the same confidences.
"""

import base64
import functools
import math
import re

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["BINS", "FLOOR", "METRICS", "Cell", "Overall", "calibration_floor", "differences", "expected_calibration_error", "merge_reasons", "overall",
           "reliability", "resampled_error", "scores", "summarise"]

METRICS = ("accuracy", "log_score", "calibration")
AVERAGED = METRICS[:2]  # over the splits; the calibration error is taken over their rows together
FLOOR = 50.0  # nats; a single row with p = 1e-40 would otherwise outweigh a thousand others
BINS = 15
DRAWS = 200  # of right and wrong answers, for the floor of the calibration error

Units = Sequence[Mapping[str, Any]]


# Scores of one cell: one model on one split under one occlusion.


def scores(log_p: np.ndarray, y: np.ndarray, *, rows: bool = False) -> dict[str, Any]:
    """The three scores of one split, how many rows hit the floor of the log score, and what summaries want: bins of confidence, each row's doubt.

    Args:
        log_p: log p(class | x_visible), `(N, C)`.
        y: Positions of the true classes, `(N,)`.
        rows: Keep also what standard errors over rows want.
    """
    right = log_p.argmax(-1) == y
    loss = -log_p[np.arange(len(y)), y]
    confidence = np.exp(log_p.max(-1))
    floored = np.minimum(loss, FLOOR)
    cell: dict[str, Any] = {
        "accuracy": float(right.mean()),
        "log_score": float(floored.mean()),
        "calibration": expected_calibration_error(confidence, right),
        "calibration_floor": calibration_floor(confidence),
        "floored": int((loss > FLOOR).sum()),
        "bins": _bins(confidence, right),
        "doubt": _packed(np.clip(-np.expm1(log_p.max(-1)), 0, 1).astype("<f2")),  # small next to 0, where half precision is fine
    }
    if rows:
        cell |= {"rows": len(y), "right": _packed(np.packbits(right)), "nats": _packed(floored.astype("<f2")),
                 "log_score_se": float(floored.std(ddof=1) / math.sqrt(len(y)))}
    return cell


def _which_bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are (a, b]


def _bins(confidence: np.ndarray, right: np.ndarray) -> list[list[float]]:
    """Of each bin: rows, right ones, sum of confidence."""
    which = _which_bin(confidence, BINS)
    sums = np.bincount(which, confidence, BINS)
    counts, rights = (np.bincount(which, v, BINS).astype(int) for v in (np.ones(len(right)), right))
    return [[int(n), int(r), round(float(c), 4)] for n, r, c in zip(counts, rights, sums, strict=True)]


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence, weighted by rows.

    Source:
        Guo, Pleiss, Sun, Weinberger (2017), *On calibration of modern neural networks*, eq. 3.

    Example:
        >>> expected_calibration_error(np.array([0.9, 0.9]), np.array([True, False]))
        0.4
    """
    gap = np.bincount(_which_bin(confidence, bins), confidence - right, bins)
    return float(round(np.abs(gap).sum() / len(right), 12))


def calibration_floor(confidence: np.ndarray, bins: int = BINS, draws: int = DRAWS) -> float:
    """What `expected_calibration_error` is on average where every answer is right with the probability that it states.

    Args:
        confidence: Of each row, `(N,)`.
        bins: As there.
        draws: Of right and wrong answers, from a seed of their own.

    Example:
        >>> round(calibration_floor(np.full(100, 0.8)), 2)  # sqrt(2 / pi) times sqrt(.8 * .2 / 100)
        0.03
    """
    generator, which, gap = np.random.default_rng(0), _which_bin(confidence, bins), np.zeros(draws)
    for some in (confidence[which == k] for k in np.unique(which)):
        gap += np.abs((generator.random((draws, len(some))) < some).sum(1) - some.sum())
    return float(gap.mean() / len(confidence))


def reliability(units: Units, model: str, occlusion: str) -> np.ndarray:
    """Rows, right ones and sums of confidence by bin, `(BINS, 3)`, over all splits; zeros where there is no answer."""
    cells = [unit["cells"].get(occlusion, {}) for unit in units if unit["model"] == model]
    return np.sum([cell["bins"] for cell in cells if "bins" in cell], axis=0) if any("bins" in c for c in cells) else np.zeros((BINS, 3))


# Over the splits.


def resampled_error(values: np.ndarray, test_share: float) -> np.ndarray:
    r"""Standard error of the mean over J random splits or folds of the same rows, which share training rows, and test rows too.

    .. math:: \sqrt{\left(\frac{1}{J} + \frac{n_{test}}{n_{train}}\right) S^2}

    with S the standard deviation over the splits. The usual :math:`S / \sqrt{J}` takes the splits for independent: over two
    shuffles of five folds it is too small by 1.87, and goes to zero with the number of shuffles.

    Args:
        values: One score (or difference of two) per split, `(J, ...)`.
        test_share: n_test / n_train of a split.

    Returns:
        `(...)`; NaN for a single split.

    Source:
        Nadeau, Bengio (2003), *Inference for the generalization error*, Machine Learning 52, eq. 9 (the corrected resampled t-test); for
        repeated folds Bouckaert, Frank (2004), *Evaluating the replicability of significance tests for comparing learning algorithms*.

    Example:
        >>> folds = np.array([0.8, 0.9, 0.7, 0.8, 0.8])
        >>> float((resampled_error(folds, test_share=1 / 4) / (folds.std(ddof=1) / 5**0.5)).round(2))
        1.5
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return np.full(values.shape[1:], math.nan)
    return values.std(0, ddof=1) * math.sqrt(1 / len(values) + test_share)


class Cell(NamedTuple):
    """One model under one occlusion, over the splits.

    Attributes:
        mean: Of each metric; empty where there is no answer.
        error: Standard error of accuracy and log score; NaN where it is not known.
        splits: How many.
        floored: Rows at the floor of the log score.
        reason: Why there is no answer.
        floor: Of the calibration error, what calibrated answers would show.
        estimate_error: Where answers are estimates, the mean standard error of the probability of the true class; NaN where they are exact.
    """

    mean: dict[str, float]
    error: dict[str, float]
    splits: int
    floored: int = 0
    reason: str = ""
    floor: float = math.nan
    estimate_error: float = math.nan


Summary = Mapping[str, Mapping[str, Cell]]
Column = Sequence[Mapping[str, Any]]  # one model under one occlusion: its cells, with what is known of their splits


def summarise(units: Units) -> dict[str, dict[str, Cell]]:
    """Cells by model and occlusion."""
    return {model: {name: _summary(column) for name, column in row.items()} for model, row in _by_model(units).items()}


def differences(units: Units, reference: str) -> dict[str, dict[str, Cell]]:
    """Each model minus the reference, split by split on the same hidden cells: mean and standard error of the differences.

    Only models and occlusions that both have answered in every split; empty if the reference is not among the models.
    """
    cells = _by_model(units)
    base = cells.pop(reference, {})
    found: dict[str, dict[str, Cell]] = {}
    for model, row in cells.items():
        both = {name: (column, base[name]) for name, column in row.items() if name in base}
        known = {name: pair for name, pair in both.items() if not any("reason" in cell for column in pair for cell in column)}
        if known:
            found[model] = {name: _paired(*pair) for name, pair in known.items()}
    return found


def _by_model(units: Units) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    cells: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for unit in sorted(units, key=lambda unit: (unit["seed"], unit["fold"])):
        for occlusion, cell in unit["cells"].items():
            cells.setdefault(unit["model"], {}).setdefault(occlusion, []).append(
                {"seed": unit["seed"], "test_share": unit["rows"] / unit["training_rows"]} | cell)
    order = list(dict.fromkeys(unit["model"] for unit in units))
    return {model: cells[model] for model in order if model in cells}


def _summary(column: Column) -> Cell:
    reasons = [cell["reason"] for cell in column if "reason" in cell]
    if reasons:
        return Cell({}, {}, len(column), reason=merge_reasons(reasons)[0])
    error = {metric: _error(column, [cell[metric] for cell in column]) for metric in AVERAGED}
    if len(column) == 1 and "rows" in column[0]:
        p, n = column[0]["accuracy"], column[0]["rows"]
        error |= {"accuracy": math.sqrt(p * (1 - p) / n), "log_score": column[0]["log_score_se"]}
    return Cell(_means(column), error, len(column), sum(cell["floored"] for cell in column), floor=_floor(column),
                estimate_error=_estimate_error(column))


def _paired(column: Column, base: Column) -> Cell:
    mean, other = _means(column), _means(base)
    gaps = {metric: [cell[metric] - before[metric] for cell, before in zip(column, base, strict=True)] for metric in AVERAGED}
    error = {metric: _error(column, gap) for metric, gap in gaps.items()}
    if len(column) == 1 and all("nats" in cell for cell in (column[0], base[0])):
        for metric, unpacked in (("accuracy", _rights), ("log_score", _nats)):
            gap = unpacked(column[0]) - unpacked(base[0])
            error[metric] = float(gap.std(ddof=1) / math.sqrt(len(gap)))
    return Cell({metric: mean[metric] - other[metric] for metric in METRICS}, error, len(column))


def _means(column: Column) -> dict[str, float]:
    mean = {metric: float(np.mean([cell[metric] for cell in column])) for metric in AVERAGED}
    totals = [np.sum([cell["bins"] for cell in folds], axis=0) for folds in _shuffles(column)]
    return mean | {"calibration": float(np.mean([np.abs(bins[:, 2] - bins[:, 1]).sum() / bins[:, 0].sum() for bins in totals]))}


def _estimate_error(column: Column) -> float:
    found = [cell["estimate_error"] for cell in column if "estimate_error" in cell]
    return float(np.mean(found)) if found else math.nan


def _floor(column: Column) -> float:
    return float(np.mean([_floor_of(tuple(cell["doubt"] for cell in folds)) for folds in _shuffles(column)]))


@functools.lru_cache(maxsize=4096)
def _floor_of(doubts: tuple[str, ...]) -> float:
    """Tables, files and pictures ask for the same ones."""
    return calibration_floor(1 - np.concatenate([_halves(doubt) for doubt in doubts]))


def _shuffles(column: Column) -> list[Column]:
    """The folds of each shuffle."""
    return [[cell for cell in column if cell["seed"] == seed] for seed in dict.fromkeys(cell["seed"] for cell in column)]


def _error(column: Column, values: Sequence[float]) -> float:
    return float(resampled_error(np.array(values), float(np.mean([cell["test_share"] for cell in column]))))


# Over all occlusions.


class Overall(NamedTuple):
    """A model's accuracy and log score over all occlusions together.

    Attributes:
        values: Of each metric, the mean over the occlusions: of each split, or of each row where there is one split.
        test_share: Test rows over training rows of a split; None where the values are those of rows.
    """

    values: dict[str, np.ndarray]
    test_share: float | None

    def mean(self, metric: str) -> float:
        """Over splits or rows."""
        return float(self.values[metric].mean())

    def behind(self, other: "Overall", metric: str) -> tuple[float, float]:
        """How much worse than another on the same rows and hidden cells, and the standard error of that."""
        gap = self.values[metric] - other.values[metric]
        error = gap.std(ddof=1) / math.sqrt(len(gap)) if self.test_share is None else resampled_error(gap, self.test_share)
        return (-1 if metric == "accuracy" else 1) * float(gap.mean()), float(error)


def overall(units: Units) -> dict[str, Overall]:
    """By model; without those that lack an answer."""
    found = {}
    for model, row in _by_model(units).items():
        columns = list(row.values())
        if any("reason" in cell for column in columns for cell in column):
            continue
        if len(columns[0]) == 1 and "nats" in columns[0][0]:
            values = {"accuracy": [_rights(column[0]) for column in columns], "log_score": [_nats(column[0]) for column in columns]}
            found[model] = Overall({metric: np.mean(rows, axis=0) for metric, rows in values.items()}, None)
        else:
            means = {metric: np.mean([[cell[metric] for cell in column] for column in columns], axis=0) for metric in AVERAGED}
            found[model] = Overall(means, columns[0][0]["test_share"])
    return found


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _rights(cell: Mapping[str, Any]) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b64decode(cell["right"]), np.uint8), count=cell["rows"]).astype(float)


def _nats(cell: Mapping[str, Any]) -> np.ndarray:
    """Of each row, to three digits: enough for a standard error."""
    return _halves(cell["nats"])


def _halves(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f2").astype(float)


# Reasons.

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
