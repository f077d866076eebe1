import json
import math

import numpy as np
import pytest

from pyro_ar.experiments.occlusion.scoring import (
    BINS,
    METRICS,
    calibration_floor,
    differences,
    expected_calibration_error,
    merge_reasons,
    reliability,
    resampled_error,
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
    assert summarise([unit("m", 0, {"left": found})])["m"]["left"].mean["calibration"] == pytest.approx((0.1 + 0.6 + 0.2 + 1.0) / 4)


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


def calibrated(rows, seed, sharpness=1.0):
    """Log posteriors, and true classes that are drawn from them."""
    generator = np.random.default_rng(seed)
    logits = 2 * sharpness * generator.normal(size=(rows, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = (generator.random((rows, 1)) > p.cumsum(1)).sum(1)
    return np.log(p), np.minimum(y, 3)


def test_bins_against_a_loop():
    log_p, y = some_answers()
    p = np.exp(log_p)
    bins = scores(log_p, y)["bins"]
    assert len(bins) == BINS
    for k, (count, right, confidence) in enumerate(bins):
        inside = [i for i in range(len(y)) if k / BINS < p[i].max() <= (k + 1) / BINS]
        assert (count, right) == (len(inside), sum(p[i].argmax() == y[i] for i in inside))
        assert confidence == pytest.approx(sum(p[i].max() for i in inside), abs=1e-4)


def unit(model, fold, cells, *, seed=1, rows=100, training_rows=400):
    return {"model": model, "seed": seed, "fold": fold, "rows": rows, "training_rows": training_rows, "cells": cells}


SOME = scores(np.log(np.array([[0.8, 0.2]] * 10)), np.zeros(10, int))


def cell(accuracy, log_score=1.0, floored=1):
    return SOME | {"accuracy": accuracy, "log_score": log_score, "floored": floored}


CORRECTED = math.sqrt(1 / 3 + 100 / 400)  # Nadeau and Bengio, for three splits of 400 and 100 rows


def test_standard_error():
    units = [unit("m", k, {"left": cell(a)}) for k, a in enumerate((0.5, 0.7, 0.9))]
    found = summarise(units)["m"]["left"]
    assert found.mean["accuracy"] == pytest.approx(0.7)
    assert found.error["accuracy"] == pytest.approx(0.2 * CORRECTED)
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
        assert found["a"]["left"].error[metric] == pytest.approx(np.std(by_hand, ddof=1) * CORRECTED)
    assert found["a"]["left"].error["accuracy"] < summarise(units)["a"]["left"].error["accuracy"] / 10
    assert differences(units, "nobody") == {}


# What the errors claim, against how far the figures scatter over repeats.


def test_two_shuffles_of_five_folds():
    values = np.random.default_rng(0).normal(size=(10, 3))
    plain = values.std(0, ddof=1) / math.sqrt(10)
    np.testing.assert_allclose(resampled_error(values, 1 / 4), 1.8708 * plain, rtol=1e-4)
    assert np.isnan(resampled_error(values[:1], 1 / 4)).tolist() == [True] * 3


@pytest.mark.parametrize(("splits", "share"), [(10, 1 / 4), (5, 1 / 4), (4, 1.0), (30, 1 / 9)])
def test_the_corrected_error_is_right_where_its_model_holds(splits, share):
    """Splits that are equally correlated, by n_test / (n_test + n_train): the spread of 4000 means against the mean claimed variance.

    The ratio of variances has a relative error of sqrt(2 / 4000) = 2.2 % from the means and at most sqrt(2 / (3 * 4000)) = 1.3 % from the
    claims: together 2.6 %, and 12 % are 4.6 of these: a false alarm in 4e-6 of runs, per case.
    """
    rho, generator = share / (1 + share), np.random.default_rng(1)
    values = math.sqrt(rho) * generator.normal(size=(1, 4000)) + math.sqrt(1 - rho) * generator.normal(size=(splits, 4000))
    claimed = np.square(resampled_error(values, share)).mean()
    assert values.mean(0).var() / claimed == pytest.approx(1, abs=0.12)


def nearest_means(x, y, train, test, cells):
    """Whether the nearer of two class means, of the first cells, is the right one."""
    means = np.stack([x[train][y[train] == c, :cells].mean(0) for c in (0, 1)])
    return np.square(x[test, None, :cells] - means).sum(-1).argmin(1) == y[test]


def test_the_error_of_a_whole_run_covers_new_rows():
    """300 tables of 100 rows, two classifiers, two shuffles of five folds: how far the means scatter over tables, against what one table claims.

    The spread of 300 has a relative error of 4 %. The corrected error is known to err on the large side where training rows matter little
    (1.3 times at most here, were test rows all that counts), so the ratio of the claim to the spread lies between 1 and 1.32 or so; the
    uncorrected one claims 1.87 times less, .55 to .7. Bounds four errors wide: a false alarm in less than 1e-4 of runs.
    """
    from sklearn.model_selection import StratifiedKFold

    generator, found = np.random.default_rng(2), []
    for _ in range(300):
        y = np.repeat([0, 1], 50)
        x = generator.normal(size=(100, 6)) + 0.5 * y[:, None]
        units = []
        for seed in (1, 2):
            folds = StratifiedKFold(5, shuffle=True, random_state=int(generator.integers(2**31)))
            for fold, (train, test) in enumerate(folds.split(x, y)):
                for model, cells in (("all", 6), ("half", 3)):
                    right = nearest_means(x, y, train, test, cells)
                    units.append(unit(model, fold, {"left": cell(right.mean())}, seed=seed, rows=len(test), training_rows=len(train)))
        alone, paired = summarise(units)["all"]["left"], differences(units, "half")["all"]["left"]
        found.append([(c.mean["accuracy"], c.error["accuracy"]) for c in (alone, paired)])
    means, claimed = np.moveaxis(np.array(found), 2, 0)
    ratio = np.sqrt(np.square(claimed).mean(0)) / means.std(0)
    print(ratio)
    assert (ratio > 0.85).all(), ratio
    assert (ratio < 1.55).all(), ratio


def test_the_errors_over_rows_cover_new_rows():
    """One split: 500 test parts of 80 rows, spread against claim. Each ratio has a relative error of 3.2 %; 16 % are five of them (1e-6)."""
    generator, found = np.random.default_rng(3), []
    for repeat in range(500):
        log_p, y = calibrated(80, [3, repeat], 0.5)
        units = []
        for name, given in (("a", log_p), ("b", log_p + 0.7 * generator.normal(size=(80, 4)))):
            units.append(unit(name, 0, {"left": scores(given - np.log(np.exp(given).sum(1, keepdims=True)), y, rows=True)}, rows=80))
        cells = (summarise(units)["a"]["left"], differences(units, "b")["a"]["left"])
        found.append([(c.mean[m], c.error[m]) for c in cells for m in ("accuracy", "log_score")])
    means, claimed = np.moveaxis(np.array(found), 2, 0)
    np.testing.assert_allclose(np.sqrt(np.square(claimed).mean(0)) / means.std(0), 1, atol=0.16)


# Calibration.


def test_calibration_is_pooled_over_the_folds_of_a_shuffle():
    """By a loop over rows: folds together, shuffles averaged."""
    parts = {(seed, fold): some_answers(50, seed=10 * seed + fold) for seed in (1, 2) for fold in range(3)}
    units = [unit("m", fold, {"left": scores(*part)}, seed=seed) for (seed, fold), part in parts.items()]
    by_hand = []
    for seed in (1, 2):
        gap = [0.0] * BINS
        for fold in range(3):
            log_p, y = parts[seed, fold]
            for row, label in zip(np.exp(log_p), y, strict=True):
                gap[math.ceil(row.max() * BINS) - 1] += row.max() - (row.argmax() == label)
        by_hand.append(sum(map(abs, gap)) / 150)
    found = summarise(units)["m"]["left"]
    assert found.mean["calibration"] == pytest.approx(sum(by_hand) / 2, abs=1e-5)
    assert "calibration" not in found.error


@pytest.mark.parametrize("rows", [60, 360])
def test_calibrated_answers_show_the_floor(rows):
    """Answers that are right as often as they say, in two shuffles of four folds: the pooled error is the floor on average.

    200 repeats; the error of a mean is the spread over sqrt(200), and 5 of them a false alarm in 6e-7 of runs. The floor
    is itself a mean of `DRAWS` draws in each repeat, which adds less than a tenth to the spread.
    """
    found = []
    for repeat in range(200):
        units = [unit("m", fold, {"left": scores(*calibrated(rows, [repeat, seed, fold]))}, seed=seed) for seed in (1, 2) for fold in range(4)]
        cell_ = summarise(units)["m"]["left"]
        found.append(cell_.mean["calibration"] - cell_.floor)
    floor = summarise(units)["m"]["left"].floor
    assert abs(np.mean(found)) < 5 * 1.1 * np.std(found) / math.sqrt(200)
    assert np.std(found) / math.sqrt(200) < 0.02 * floor  # so the bound is a tenth of the floor
    one_fold = summarise(units[:1])["m"]["left"].floor
    assert 1.6 < one_fold / floor < 2.4  # sqrt of the folds together: what averaging over folds would show by chance


def test_overconfident_answers_stand_above_the_floor():
    log_p, y = calibrated(2000, 0)
    twice = 2 * log_p - np.log(np.exp(2 * log_p).sum(1, keepdims=True))
    found = summarise([unit("m", 0, {"left": scores(twice, y)})])["m"]["left"]
    assert found.mean["calibration"] > 4 * found.floor


def test_the_floor_against_a_slow_loop():
    """2000 draws row by row; errors of either below 1 % of the floor, so that 5 % are five of them."""
    generator = np.random.default_rng(5)
    confidence = np.concatenate([generator.uniform(0.3, 1, 150), np.full(100, 0.9999)])
    drawn = [expected_calibration_error(confidence, generator.random(250) < confidence) for _ in range(2000)]
    assert calibration_floor(confidence, draws=4000) == pytest.approx(np.mean(drawn), rel=0.05)
    assert calibration_floor(np.ones(50)) == 0


def test_doubts_survive_being_packed():
    """A confidence of .99999 is none of 1: in half precision its doubt is kept, where itself would be rounded."""
    p = np.full(1000, 1 - 1e-5)
    found = summarise([unit("m", 0, {"left": scores(np.log(np.stack([p, 1 - p], 1)), np.zeros(1000, int))})])["m"]["left"]
    assert found.floor == pytest.approx(calibration_floor(p), rel=1e-2)
    assert found.floor > 0


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


def test_the_metrics_are_in_every_summary():
    units = [unit(name, 0, {"left": scores(*some_answers(seed=k))}) for k, name in enumerate("ab")]
    assert list(summarise(units)["a"]["left"].mean) == list(differences(units, "b")["a"]["left"].mean) == list(METRICS)


def test_reasons_that_differ_in_numbers_are_one():
    same = ["32 hidden, 17^32 states, at most 4096", "5 hidden, 17^5 states, at most 4096", "7 to 40 hidden, 17^7 to 17^40 states, at most 4096"]
    assert merge_reasons([same[0], "no net", *same[1:], "no net"]) == ["5 to 40 hidden, 17^5 to 17^40 states, at most 4096", "no net"]
    assert merge_reasons(same[:1]) == same[:1]
