"""What a unit holds: patterns and draws by the seed alone, errors of estimates, the order of a table, and what a picture shows as seen."""

import pytest
import torch

from pyro_ar import data
from pyro_ar.experiments.complete import lineup, report
from pyro_ar.experiments.complete.answers import Answer
from pyro_ar.experiments.complete.pictures import picture, what_is_seen
from pyro_ar.experiments.complete.run import Plan, _score, one_unit
from pyro_ar.tables import ChowLiuTree


def plan(tasks, **options):
    return Plan(data.digits().head(80), tasks, ("independent",), rows=3, draws=4, **options)


def test_patterns_follow_the_seed():
    seen = [plan(("restoration",), seed=seed).asked("restoration")[2] for seed in (0, 0, 1)]
    assert seen[0].equal(seen[1])
    assert not seen[0].equal(seen[2])


def test_a_task_draws_the_same_with_others_and_alone():
    key = {"space": "pixels", "model": "independent"}
    both = one_unit(plan(("inpainting", "restoration")), key)["cells"]
    assert both["restoration"] == one_unit(plan(("restoration",)), key)["cells"]["restoration"]


def test_errors_of_estimates_are_per_hidden_cell():
    visible = torch.tensor([[True, False, False], [False, False, True]])
    found = _score(Answer(torch.tensor([-2.0, -6.0]), "estimate", "m", torch.tensor([0.6, 0.8]), torch.tensor([True, False]), torch.zeros(1, 2, 3)), visible)
    assert found["log_p"] == pytest.approx(-2.0)
    assert found["estimate_error"] == pytest.approx(((0.3**2 + 0.4**2) / 2) ** 0.5)
    assert found["error"] == pytest.approx(1.0)
    assert (found["trusted"], found["hidden"], found["rows"]) == (0.5, 2.0, 2)


def test_pseudocounts_are_chosen_by_held_out_rows():
    space = plan(("inpainting",)).space("pixels")
    train, held = lineup._inner(space)
    scores = {p: ChowLiuTree.from_data(train, pseudocount=p, num_states=17).log_prob(held).mean().item() for p in lineup.PSEUDOCOUNTS}
    assert len(set(scores.values())) == 3
    wanted = ChowLiuTree.from_data(space.train, pseudocount=max(scores, key=scores.__getitem__), num_states=17)
    found = lineup.MODELS["Chow-Liu tree"].fit(space, 0, 1.0).joint
    assert found.log_prob(space.test).equal(wanted.log_prob(space.test))


def test_the_best_come_first():
    exact = {"kind": "exact", "rmse": 1.0}
    cells = {"a": {**exact, "log_p": -2.0}, "none": {"reason": "why"}, "b": {**exact, "log_p": -1.0}, "far": {"kind": "fill", "rmse": 3.0},
             "never": {**exact, "log_p": None}, "near": {"kind": "fill", "rmse": 2.0}}
    units = [{"space": "pixels", "model": name, "cells": {"inpainting": cell}} for name, cell in cells.items()]
    assert list(report.cells_of(units, "inpainting")) == ["b", "a", "never", "near", "far", "none"]


def test_what_a_picture_shows_as_seen():
    pixels = plan(("inpainting",))
    space, x, visible = pixels.asked("inpainting")
    seen = what_is_seen(space, x, visible)
    assert seen.isnan().sum((1, 2)).tolist() == [16] * 3
    assert seen[~seen.isnan()].equal(x[visible].double())
    coarse = plan(("super-resolution",))
    space, x, visible = coarse.asked("super-resolution")
    seen = what_is_seen(space, x, visible)
    assert seen.shape == (3, 8, 8)
    assert seen[:, ::2, ::2].equal(x[:, :16].reshape(3, 4, 4).double())
    assert seen[:, 1::2, ::2].equal(seen[:, ::2, ::2])
    assert seen[:, ::2, 1::2].equal(seen[:, ::2, ::2])


def test_a_picture_needs_a_model_that_draws():
    assert picture(plan(("inpainting",)), "inpainting", {"median": {"kind": "fill", "rmse": 1.0, "mae": 1.0}}) is None
