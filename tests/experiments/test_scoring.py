import json
import math

import numpy as np
import pytest

from pyro_ar.experiments.scoring import (
    BINS,
    METRICS,
    differences,
    expected_calibration_error,
    merge_reasons,
    reliability,
    scores,
    summarise,
)


def test_scores_by_hand():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [1.0, 1e-30]])
    found = scores(np.log(p), np.array([0, 1, 1, 1]))
    assert found["accuracy"] == 0.5
    assert found["log_score"] == pytest.approx(-(math.log(0.9) + math.log(0.4) + math.log(0.8) - 50) / 4)
    assert found["floored"] == 1
    # bins of 1/15: 0.9, 0.6, 0.8 and 1.0 lie in different ones
    assert found["calibration"] == pytest.approx((0.1 + 0.6 + 0.2 + 1.0) / 4)


def test_calibration_error_against_a_loop():
    generator = np.random.default_rng(0)
    confidence, right = generator.uniform(0.1, 1, 500), generator.uniform(size=500) < 0.6
    total = 0.0
    for k in range(15):
        inside = [i for i in range(500) if k / 15 < confidence[i] <= (k + 1) / 15]
        if inside:
            total += abs(sum(confidence[i] - right[i] for i in inside)) / 500
    assert expected_calibration_error(confidence, right) == pytest.approx(total)


def test_confidence_one_and_zero_have_a_bin():
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0


def some_answers(rows=500, classes=4, seed=0):
    """Log posteriors and true classes."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(rows, classes))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), generator.integers(classes, size=rows)


def test_bins_against_a_loop():
    log_p, y = some_answers()
    p = np.exp(log_p)
    bins = scores(log_p, y)["bins"]
    assert len(bins) == BINS
    for k, (count, right, confidence) in enumerate(bins):
        inside = [i for i in range(len(y)) if k / BINS < p[i].max() <= (k + 1) / BINS]
        assert (count, right) == (len(inside), sum(p[i].argmax() == y[i] for i in inside))
        assert confidence == pytest.approx(sum(p[i].max() for i in inside), abs=1e-4)


def unit(model, fold, cells, **more):
    return {"model": model, "seed": 1, "fold": fold, "cells": cells} | more


def cell(accuracy, log_score=1.0, calibration=0.1, floored=1):
    return {"accuracy": accuracy, "log_score": log_score, "calibration": calibration, "floored": floored}


def test_standard_error():
    units = [unit("m", k, {"left": cell(a)}) for k, a in enumerate((0.5, 0.7, 0.9))]
    found = summarise(units)["m"]["left"]
    assert found.mean["accuracy"] == pytest.approx(0.7)
    assert found.error["accuracy"] == pytest.approx(0.2 / math.sqrt(3))
    assert (found.splits, found.floored) == (3, 3)
    assert math.isnan(summarise(units[:1])["m"]["left"].error["accuracy"])


def test_paired_differences_by_hand():
    """The two vary together, so the error of their difference is far below that of either."""
    ours, theirs = (0.5, 0.7, 0.9), (0.48, 0.69, 0.87)
    units = [unit("b", k, {"left": cell(b, log_score=b)}) for k, b in enumerate(theirs)]
    units += [unit("a", k, {"left": cell(a, log_score=a)}) for k, a in reversed(list(enumerate(ours)))]  # units may come in any order
    found = differences(units, "b")
    assert list(found) == ["a"]
    by_hand = [0.02, 0.01, 0.03]
    for metric in ("accuracy", "log_score"):
        assert found["a"]["left"].mean[metric] == pytest.approx(np.mean(by_hand))
        assert found["a"]["left"].error[metric] == pytest.approx(np.std(by_hand, ddof=1) / math.sqrt(3))
    assert found["a"]["left"].error["accuracy"] < summarise(units)["a"]["left"].error["accuracy"] / 10
    assert differences(units, "nobody") == {}


def test_no_difference_where_one_has_no_answer():
    units = [unit("a", 0, {"left": cell(0.5), "top": cell(0.5)}), unit("b", 0, {"left": cell(0.4), "top": {"reason": "none"}}),
             unit("c", 0, {"left": {"reason": "none"}})]
    assert {model: list(cells) for model, cells in differences(units, "b").items()} == {"a": ["left"]}


def test_one_split_has_errors_over_its_rows():
    (first, y), (second, _) = some_answers(seed=0), some_answers(seed=1)
    units = [unit(name, 0, {"left": scores(log_p, y, rows=True)}) for name, log_p in (("a", first), ("b", second))]
    right = [log_p.argmax(1) == y for log_p in (first, second)]
    found = summarise(units)["a"]["left"]
    assert found.error["accuracy"] == pytest.approx(right[0].std() / math.sqrt(500))  # binomial
    assert found.error["log_score"] == pytest.approx(first[np.arange(500), y].std(ddof=1) / math.sqrt(500))
    assert math.isnan(found.error["calibration"])
    paired = differences(units, "b")["a"]["left"]
    by_hand = [int(a) - int(b) for a, b in zip(*right, strict=True)]
    assert paired.mean["accuracy"] == pytest.approx(np.mean(by_hand))
    assert paired.error["accuracy"] == pytest.approx(np.std(by_hand, ddof=1) / math.sqrt(500))
    nats = [[min(-float(row[k]), 50) for row, k in zip(log_p, y, strict=True)] for log_p in (first, second)]
    assert paired.mean["log_score"] == pytest.approx(np.mean(nats[0]) - np.mean(nats[1]))
    assert paired.error["log_score"] == pytest.approx(np.std(np.subtract(*nats), ddof=1) / math.sqrt(500), rel=1e-3)  # kept to three digits
    assert math.isnan(differences([u | {"cells": {"left": {k: v for k, v in u["cells"]["left"].items() if k != "nats"}}} for u in units], "b")
                      ["a"]["left"].error["log_score"])  # results of an earlier version
    json.dumps(units, allow_nan=False)


def test_reliability_adds_the_splits():
    units = [unit("a", k, {"left": scores(*some_answers(seed=k)), "top": {"reason": "none"}}) for k in range(3)]
    total = reliability(units, "a", "left")
    assert total[:, 0].sum() == 1500
    assert total[:, 1].sum() / 1500 == pytest.approx(summarise(units)["a"]["left"].mean["accuracy"])
    assert reliability(units, "a", "top").tolist() == np.zeros((BINS, 3)).tolist()


def test_the_metrics_are_in_every_cell():
    assert set(METRICS) <= set(scores(*some_answers()))


def test_reasons_that_differ_in_numbers_are_one():
    same = ["32 hidden, 17^32 states, at most 4096", "5 hidden, 17^5 states, at most 4096", "7 to 40 hidden, 17^7 to 17^40 states, at most 4096"]
    assert merge_reasons([same[0], "no net", *same[1:], "no net"]) == ["5 to 40 hidden, 17^5 to 17^40 states, at most 4096", "no net"]
    assert merge_reasons(same[:1]) == same[:1]
