import json
import math

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from matplotlib.text import Text
from rich.console import Console

from pyro_ar import data
from pyro_ar.experiments.occlusion import pictures as occlusion_pictures
from pyro_ar.experiments.occlusion import report
from pyro_ar.experiments.occlusion import tables as occlusion_tables
from pyro_ar.experiments.occlusion.lineup import MODELS, fitting
from pyro_ar.experiments.occlusion.plan import Plan
from pyro_ar.experiments.occlusion.run import run
from pyro_ar.experiments.occlusion.scoring import differences, overall, resampled_error, scores, summarise
from pyro_ar.experiments.occlusion.shown import completed, examples
from pyro_ar.experiments.occlusion.tables import costs, used
from pyro_ar.experiments.store import Results
from pyro_ar.plots.style import Series

SMALL = {"seeds": (1,), "folds": 2, "models": ("independent", "Gaussian", "kernel density"), "occlusions": ("random-0", "random-50", "left")}


@pytest.fixture(scope="module")
def few():
    return data.digits().head(200)


@pytest.fixture(scope="module")
def done(few, tmp_path_factory):
    plan = Plan(few, **SMALL)
    return plan, list(run(plan, Results.open(tmp_path_factory.mktemp("run") / "results.json", plan.settings())))


def as_text(renderable, width=100):
    console = Console(width=width)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def made_up(plan, reason="", size=40):
    """A unit per model and split, of random answers."""
    generator = np.random.default_rng(0)

    def answer():
        log_p = generator.normal(size=(size, 10))
        return scores(log_p - np.log(np.exp(log_p).sum(1, keepdims=True)), generator.integers(10, size=size), rows=plan.folds == 1)

    return [{"model": model, "seed": seed, "fold": fold, "rows": 40, "training_rows": 160, "parameters": 1234, "fit_seconds": 1.0, "answer_seconds": 2.0,
             "cells": {name: {"reason": reason} if reason and model == "FVSBN" else answer() for name in plan.occlusions}}
            for seed, fold, model in plan.units]


# Tables.


def test_tables_show_the_numbers(done):
    plan, units = done
    text = as_text(report.tables(plan, units, reference="Gaussian"))
    summary, compared = summarise(units), differences(units, "Gaussian")
    for name in ("random-50", "left"):
        cell, difference = summary["Gaussian"][name], compared["independent"][name]
        assert f"{100 * cell.mean['accuracy']:.1f}±" in text
        assert f"{cell.mean['log_score']:.2f}±" in text
        assert f"{100 * difference.mean['accuracy']:+.1f}±" in text
    assert f"{compared['independent']['random-50'].mean['log_score']:+.2f}±" in text
    assert "Accuracy minus that of Gaussian, points" in text
    assert "over 2 splits" in text
    assert "bandwidth" in text
    assert max(map(len, text.splitlines())) <= 100


def test_no_differences_without_the_reference(done):
    plan, units = done
    assert "minus" not in as_text(report.tables(plan, units))


def test_the_default_tables_fit_into_80_columns():
    plan = Plan(data.digits())
    text = as_text(report.tables(plan, made_up(plan, size=200)), width=80)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if line.startswith("logistic (mean)")]
    # Six tables, differences, costs: none is broken over two lines but that of the calibration under shapes, whose made-up errors have four digits.
    assert [line.count("±") + line.count("(") - 1 for line in rows[:9]] == [5, 7, 5, 7, 5, 5, 7, 5, 0]
    assert all(line.count("±") == 0 for line in rows if line.count("(") > 1)
    assert "corrected for the rows that they share (Nadeau and Bengio 2003)" in " ".join(text.split())
    assert "over all rows, each answered once, mean of the shuffles" in " ".join(text.split())


def test_one_split_says_what_its_errors_are(few):
    plan = Plan(few, seeds=(1,), folds=1, test_rows=40, models=("independent", "Gaussian"), occlusions=("random-0", "random-50"))
    units = made_up(plan)
    text = " ".join(as_text(report.tables(plan, units, reference="Gaussian")).split())
    assert "± is the standard error over the 40 test rows (binomial for the accuracy); it leaves out other training rows" in text
    p = summarise(units)["Gaussian"]["random-0"].mean["accuracy"]
    assert f"{100 * p:.1f}±{100 * math.sqrt(p * (1 - p) / 40):.1f}" in text


def test_footnotes_merge_what_differs_in_numbers(few):
    plan = Plan(few, models=("Gaussian", "FVSBN", "NADE"), occlusions=("random-50", "left"))
    units = made_up(plan, "no exact answer: 32 hidden")
    for unit in units:
        if unit["model"] == "NADE":
            unit["cells"]["left"] = {"reason": "no exact answer: 5 hidden"}
    text = " ".join(as_text(report.tables(plan, units)).split())
    assert text.count("none (1): no exact answer: 5 to 32 hidden") == 1
    assert "(2)" not in text
    assert "FVSBN, NADE: only where there is an answer." in occlusion_pictures._missing(summarise(units))


def test_costs(done):
    _, units = done
    mine = [unit for unit in units if unit["model"] == "kernel density"]
    cost = costs(units, "kernel density")
    one = 100 * 64 + 10 + 64  # the reference rows, the shares of the classes, the scales of the columns
    assert [unit["parameters"] for unit in mine] == [one * len({*zip(*unit["chosen"].values(), strict=True)}) for unit in mine]  # of all that answer
    assert cost.parameters == np.mean([unit["parameters"] for unit in mine])
    assert cost.ms_per_row == pytest.approx(1000 * sum(unit["answer_seconds"] for unit in mine) / (200 * 3))
    assert len(cost.chosen["bandwidth"]) == len(cost.chosen["scale"]) == 2 * 5  # one per split and share
    assert cost.chosen["bandwidth"][5:] == mine[1]["chosen"]["bandwidth"]


def test_what_was_chosen_is_told_in_numbers_and_words():
    units = [{"model": "a", "rows": 9, "parameters": 1, "fit_seconds": 1.0, "answer_seconds": 0.0, "cells": {}, "chosen": chosen}
             for chosen in ({"C": [1.0, 10.0], "scale": ["common", "columns"], "T": 2.0}, {"C": [0.1, 1.0], "scale": ["common", "common"], "T": 2.0})]
    cost = costs(units, "a")
    assert cost.chosen == {"C": [1.0, 10.0, 0.1, 1.0], "T": [2.0, 2.0], "scale": ["common", "columns", "common", "common"]}
    assert [occlusion_tables._range(values) for values in cost.chosen.values()] == ["0.1 to 10", "2", "columns or common"]


def test_costs_of_a_model_that_was_never_fitted():
    units = [{"model": "a", "rows": 9, "parameters": None, "fit_seconds": 1.0, "answer_seconds": 0.0, "cells": {"left": {"reason": "no"}}}]
    cost = costs(units, "a")
    assert cost.parameters is None
    assert math.isnan(cost.ms_per_row)


# The last screen.


def lines_of(plan, units, width):
    return as_text(report.screen(plan, units, [Path("out") / name for name in ("report.txt", "results.json", "levels.png")], width=width), width).splitlines()


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_last_screen_is_one_screen(width):
    """All models there are, under all occlusions; up to 40 lines, the plan's lines before it included."""
    plan = Plan(data.digits(), models=fitting(data.digits()))
    lines = lines_of(plan, made_up(plan), width)
    assert len(lines) <= 35
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if line.startswith("logistic (zero)")]
    assert len(rows) == 1
    assert len(rows[0].split()) == 2 + (12 if width >= 100 else 5)
    assert any("the shapes are in report.txt" in line for line in lines) == (width < 100)
    assert "out/: report.txt, results.json, levels.png" in " ".join(lines)


def test_what_won_and_by_how_much(done):
    """By hand: accuracies over all occlusions, split by split, and the corrected error of their differences."""
    plan, units = done
    accuracy = {model: np.array([np.mean([cell["accuracy"] for cell in unit["cells"].values()]) for unit in units if unit["model"] == model])
                for model in plan.models}
    first, *others = sorted(accuracy, key=lambda model: -accuracy[model].mean())
    said = " ".join(lines_of(plan, units, 100))
    assert f"Most accurate: {first}, {100 * accuracy[first].mean():.1f} % right, mean over 3 occlusions." in said
    for other in others:
        gap = accuracy[first] - accuracy[other]
        error = gap.std(ddof=1) * math.sqrt(1 / 2 + 1)  # two folds of one size
        assert f"{other} {100 * gap.mean():.1f}±{100 * error:.1f}" in said
        assert overall(units)[other].behind(overall(units)[first], "accuracy") == pytest.approx((gap.mean(), error))
        apart = said.split("Behind it:")[1] if "Behind it:" in said else ""
        assert (other in apart.split("Best prob")[0]) == (gap.mean() > 2 * error)
    nats = {model: np.mean([cell["log_score"] for unit in units if unit["model"] == model for cell in unit["cells"].values()]) for model in plan.models}
    best = sorted(nats, key=nats.get)
    assert f"Best probabilities (log score): {best[0]}, {nats[best[0]]:.3f} nats; next {best[1]}, {nats[best[1]] - nats[best[0]]:.3f}±" in said


def test_the_lead_in_each_column(done):
    plan, units = done
    lines = lines_of(plan, units, 100)
    leads, errors = (next(line for line in lines if line.startswith(head)).split()[3:] for head in ("best minus next", "± of that"))
    for lead, error, name in zip(leads, errors, plan.occlusions, strict=True):
        by_split = {model: np.array([unit["cells"][name]["accuracy"] for unit in units if unit["model"] == model]) for model in plan.models}
        first, second = sorted(by_split.values(), key=lambda values: -values.mean())[:2]
        assert float(lead) == pytest.approx(100 * (first - second).mean(), abs=0.051)
        assert float(error) == pytest.approx(100 * resampled_error(first - second, 1.0), abs=0.051)


def test_over_one_split_the_rows_are_what_varies(few):
    plan = Plan(few, seeds=(1,), folds=1, test_rows=40, models=("independent", "Gaussian"), occlusions=("random-0", "random-50"))
    generator, answers = np.random.default_rng(1), {}
    y = generator.integers(10, size=40)
    for model in plan.models:
        for name in plan.occlusions:
            logits = generator.normal(size=(40, 10))
            answers[model, name] = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    units = [{"model": model, "seed": 1, "fold": 0, "rows": 40, "training_rows": 160,
              "cells": {name: scores(answers[model, name], y, rows=True) for name in plan.occlusions}} for model in plan.models]
    right = {model: np.mean([answers[model, name].argmax(1) == y for name in plan.occlusions], 0) for model in plan.models}
    gap = right["independent"] - right["Gaussian"]
    found = overall(units)
    assert found["Gaussian"].behind(found["independent"], "accuracy") == pytest.approx((gap.mean(), gap.std(ddof=1) / math.sqrt(40)))


def test_models_without_all_answers_are_not_ranked(few):
    plan = Plan(few, models=("Gaussian", "FVSBN", "MDA"), occlusions=("random-50", "left"))
    said = " ".join(lines_of(plan, made_up(plan, "no"), 100))
    assert "Not ranked, without an answer under some occlusions: FVSBN." in said
    assert "none" in said
    alone = Plan(few, models=("Gaussian",), occlusions=("left",))
    assert "Nothing to compare" in " ".join(lines_of(alone, made_up(alone), 100))


# Files.


def test_files_are_written(done, tmp_path):
    plan, units = done
    written = report.write(plan, units, tmp_path, reference="Gaussian")
    assert sorted(path.name for path in written) == ["differences.png", "examples.png", "levels.png", "reliability.png", "report.txt", "results.csv",
                                                     "shapes.png", "summary.json"]
    assert all(path.stat().st_size > 200 for path in written)
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[0].startswith("model,occlusion,hidden,splits,accuracy,accuracy_se,log_score")
    assert len(lines) == 1 + 3 * 3
    said = (tmp_path / "report.txt").read_text()
    assert said.split() == as_text(report.tables(plan, units, reference="Gaussian")).split()
    assert max(map(len, said.splitlines())) <= 120


def test_csv_and_json_hold_the_paired_differences(done):
    _, units = done
    expected = differences(units, "Gaussian")["independent"]["left"]
    row = next(row for row in report.csv_rows(units, "Gaussian") if (row["model"], row["occlusion"]) == ("independent", "left"))
    entry = report.summary_json(units, "Gaussian")["models"]["independent"]["occlusions"]["left"]["difference"]
    for metric in ("accuracy", "log_score"):
        assert row[f"difference_{metric}"] == entry[metric] == pytest.approx(expected.mean[metric], abs=1e-6)
        assert row[f"difference_{metric}_se"] == entry[f"{metric}_se"] == pytest.approx(expected.error[metric], abs=1e-6)
    assert row["difference_calibration"] == entry["calibration"] == pytest.approx(expected.mean["calibration"], abs=1e-6)
    cell = summarise(units)["independent"]["left"]
    own = report.summary_json(units)["models"]["independent"]["occlusions"]["left"]
    for found in (row, own):
        assert found["calibration"] == pytest.approx(cell.mean["calibration"], abs=1e-6)
        assert found["calibration_floor"] == pytest.approx(cell.floor, abs=1e-6)
        assert "calibration_se" not in found
    assert row["reference"] == "Gaussian"
    json.dumps(report.summary_json(units), allow_nan=False)


# Pictures.


def test_panel_shows_the_stored_posteriors(few, done):
    plan, units = done
    tile = occlusion_pictures._tiles(plan, units)[0]
    example = examples(plan)[0]
    train, _ = plan.split(1, 0)
    x, y = few.x.double(), few.y
    model = MODELS["Gaussian"].make(few).fit(x[train], y[train])
    expected = model.predict_proba(x[example.row][None], example.visible[None])[0]
    assert tile.posteriors["Gaussian"] == pytest.approx(expected, abs=1e-4)
    assert tile.title == "50 %"


def test_the_reliability_diagram_is_of_the_hardest_levels(few):
    plan = Plan(few, models=("Gaussian", "FVSBN"))
    units = made_up(plan, "no")
    figure = occlusion_pictures.draw(plan, units)["reliability.png"]
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == ["Gaussian"]  # the other has no answers
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["50 % at random", "75 % at random", "90 % at random"]
    assert used(summarise(units)) == list(plan.occlusions)


def test_the_picture_of_differences(done):
    plan, units = done
    figure = occlusion_pictures.draw(plan, units, reference="Gaussian")["differences.png"]
    accuracy, log_score = figure.axes
    assert accuracy.get_title().startswith("Accuracy minus that of Gaussian (points)")
    assert accuracy.get_ylim()[0] == -12  # far worse is left out, better never
    assert log_score.get_ylim()[1] == 0.5
    assert occlusion_pictures._near({"a": Series([-30.0, 10.0], [1.0, 0.0]), "b": Series([math.nan], [math.nan])}, -12.0, 3.0) == (-12, pytest.approx(11))
    assert occlusion_pictures._near({"a": Series([-2.0, 10.0], [0.3, 0.0])}, 0.5, -0.15) == (pytest.approx(-2.53), 0.5)
    expected = differences(units, "Gaussian")["kernel density"]["random-50"].mean
    (found,) = [line for line in accuracy.get_lines() if line.get_marker() == "^"]  # the third series
    assert found.get_ydata()[1] == pytest.approx(100 * expected["accuracy"])
    assert "differences.png" not in occlusion_pictures.draw(plan, units, reference="nobody")


def test_no_completions_without_a_hidden_lower_half(few):
    assert completed(Plan(few, **SMALL)) == []


def test_no_pictures_of_rows_that_are_no_images(few):
    plan = Plan(replace(few, image_shape=None), **SMALL | {"occlusions": ("random-0", "random-50")})
    figures = report.draw(plan, made_up(plan), reference="Gaussian")
    assert set(figures) == {"levels.png", "differences.png", "reliability.png"}
    words = {name: " ".join(text.get_text() for text in figure.findobj(Text)).lower() for name, figure in figures.items()}
    assert "classifying rows with hidden cells" in words["levels.png"]
    assert "cells hidden at random (%)" in words["differences.png"]
    assert not [name for name, said in words.items() if "image" in said or "pixel" in said]
    assert not {"image", "pixel"} & set(as_text(report.tables(plan, made_up(plan))).lower().replace("s", "").split())


def test_the_floor_of_the_calibration_error_is_drawn(done):
    plan, units = done
    summary, figures = summarise(units), occlusion_pictures.draw(plan, units, reference="Gaussian")
    floors = [[100 * cells[name].floor for cells in summary.values()] for name in ("random-0", "random-50")]
    (band,) = figures["levels.png"].axes[2].collections[-1:]
    low, high = band.get_datalim(figures["levels.png"].axes[2].transData).intervaly
    assert (low, high) == (pytest.approx(min(map(min, floors))), pytest.approx(max(map(max, floors))))
    bars = figures["shapes.png"].axes[2].patches
    left = [100 * cells["left"].floor for cells in summary.values()]
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars] == [(pytest.approx(min(left)), pytest.approx(max(left)))]
