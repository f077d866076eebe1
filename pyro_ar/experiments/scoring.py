r"""Scores of answers, their summary over splits, and paired differences from one model.

============  =====================================================================================
accuracy      share of rows whose most probable class is the true one
log_score     mean of -log p(true class | x_visible) in nats; a row counts for at most `FLOOR` nats
calibration   expected calibration error: mean gap between the confidence in the predicted class and its
              accuracy, over `BINS` equal bins of confidence, weighted by rows
============  =====================================================================================

Over several splits the standard error is that of their mean. Over one split (an official test part) it is that of its rows: binomial for
the accuracy, and for a difference that of the rows' own differences. Either leaves out what another
training part would change; folds of one shuffle also share training rows. So it is a guide to the noise and no confidence interval.
"""

import base64
import math
import re

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["BINS", "FLOOR", "METRICS", "Cell", "differences", "expected_calibration_error", "merge_reasons", "reliability", "scores",
           "summarise"]

METRICS = ("accuracy", "log_score", "calibration")
FLOOR = 50.0  # nats; a single row with p = 1e-40 would otherwise outweigh a thousand others
BINS = 15

Units = Sequence[Mapping[str, Any]]


# Scores of one cell: one model on one split under one occlusion.


def scores(log_p: np.ndarray, y: np.ndarray, *, rows: bool = False) -> dict[str, Any]:
    """The three scores, how many rows hit the floor of the log score, and the bins of confidence.

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
        "floored": int((loss > FLOOR).sum()),
        "bins": _bins(confidence, right),
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


def reliability(units: Units, model: str, occlusion: str) -> np.ndarray:
    """Rows, right ones and sums of confidence by bin, `(BINS, 3)`, over all splits; zeros where there is no answer."""
    cells = [unit["cells"].get(occlusion, {}) for unit in units if unit["model"] == model]
    return np.sum([cell["bins"] for cell in cells if "bins" in cell], axis=0) if any("bins" in c for c in cells) else np.zeros((BINS, 3))


# Over the splits.


class Cell(NamedTuple):
    """One model under one occlusion, over the splits.

    Attributes:
        mean: Of each metric; empty where there is no answer.
        error: Standard error of each mean; NaN where it is not known.
        splits: How many.
        floored: Rows at the floor of the log score.
        reason: Why there is no answer.
    """

    mean: dict[str, float]
    error: dict[str, float]
    splits: int
    floored: int = 0
    reason: str = ""


Summary = Mapping[str, Mapping[str, Cell]]


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
        both = {name: list(zip(column, base[name], strict=True)) for name, column in row.items() if name in base}
        known = {name: pairs for name, pairs in both.items() if not any("reason" in cell for pair in pairs for cell in pair)}
        if known:
            found[model] = {name: _paired(pairs) for name, pairs in known.items()}
    return found


def _by_model(units: Units) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    cells: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for unit in sorted(units, key=lambda unit: (unit["seed"], unit["fold"])):
        for occlusion, cell in unit["cells"].items():
            cells.setdefault(unit["model"], {}).setdefault(occlusion, []).append(cell)
    order = list(dict.fromkeys(unit["model"] for unit in units))
    return {model: cells[model] for model in order if model in cells}


def _summary(cells: Sequence[Mapping[str, Any]]) -> Cell:
    reasons = [cell["reason"] for cell in cells if "reason" in cell]
    if reasons:
        return Cell({}, {}, len(cells), reason=merge_reasons(reasons)[0])
    mean, error = _mean_and_error({metric: np.array([cell[metric] for cell in cells]) for metric in METRICS})
    if len(cells) == 1 and "rows" in cells[0]:
        p, n = cells[0]["accuracy"], cells[0]["rows"]
        error |= {"accuracy": math.sqrt(p * (1 - p) / n), "log_score": cells[0]["log_score_se"]}
    return Cell(mean, error, len(cells), sum(cell["floored"] for cell in cells))


def _paired(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Cell:
    mean, error = _mean_and_error({metric: np.array([cell[metric] - other[metric] for cell, other in pairs]) for metric in METRICS})
    if len(pairs) == 1 and all("nats" in cell for cell in pairs[0]):
        for metric, unpacked in (("accuracy", _rights), ("log_score", _nats)):
            gap = unpacked(pairs[0][0]) - unpacked(pairs[0][1])
            error[metric] = float(gap.std(ddof=1) / math.sqrt(len(gap)))
    return Cell(mean, error, len(pairs))


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _rights(cell: Mapping[str, Any]) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b64decode(cell["right"]), np.uint8), count=cell["rows"]).astype(float)


def _nats(cell: Mapping[str, Any]) -> np.ndarray:
    """Of each row, to three digits: enough for a standard error."""
    return np.frombuffer(base64.b64decode(cell["nats"]), "<f2").astype(float)


def _mean_and_error(values: Mapping[str, np.ndarray]) -> tuple[dict[str, float], dict[str, float]]:
    mean = {metric: float(v.mean()) for metric, v in values.items()}
    error = {metric: float(v.std(ddof=1) / math.sqrt(len(v))) if len(v) > 1 else math.nan for metric, v in values.items()}
    return mean, error


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
