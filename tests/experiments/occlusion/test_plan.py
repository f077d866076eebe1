from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_ar import data
from pyro_ar.experiments.occlusion import occlusions
from pyro_ar.experiments.occlusion.bars import Binarised
from pyro_ar.experiments.occlusion.lineup import COMPLETE, ESTIMATED, MODELS, TORN, fitting
from pyro_ar.experiments.occlusion.occlusions import OCCLUSIONS
from pyro_ar.experiments.occlusion.plan import Plan, describe
from pyro_ar.experiments.occlusion.shown import examples


@pytest.fixture(scope="module")
def few():
    return data.digits().head(200)


def test_every_row_is_tested_once_per_seed():
    plan = Plan(data.digits(), seeds=(1, 2))
    for seed in (1, 2):
        tested = np.concatenate([plan.split(seed, fold)[1] for fold in range(5)])
        assert sorted(tested) == list(range(1797))
    train, test = plan.split(1, 0)
    assert not set(train) & set(test)
    counts = np.bincount(plan.labels[test])
    assert counts.min() >= 34
    assert counts.max() <= 38


@pytest.mark.parametrize("name", OCCLUSIONS)
def test_patterns_are_fixed_by_the_split(name):
    plan = Plan(data.digits())
    pattern = plan.pattern(name, 1, 0, 10)
    assert pattern.equal(plan.pattern(name, 1, 0, 10))
    assert pattern.shape[1] == 64
    level = OCCLUSIONS[name].level
    if level is not None:
        assert ((~pattern).sum(1) == round(64 * level)).all()
    if level not in (None, 0):
        assert not pattern.equal(plan.pattern(name, 1, 1, 10))
        assert not pattern.equal(plan.pattern(name, 2, 0, 10))


def test_what_the_shapes_hide():
    plan = Plan(data.digits())
    hidden = {name: int((~plan.pattern(name, 1, 0, 5)[0]).sum()) for name in OCCLUSIONS if OCCLUSIONS[name].level is None}
    assert hidden == {"left": 32, "right": 32, "top": 32, "bottom": 32, "centre": 16, "border": 48, "stripes": 32}


@pytest.mark.parametrize(("cells", "kept", "said"), [
    (4, ["random-0", "random-25", "random-50", "random-75"], {"random-90": "90 % at random hides all 4 cells"}),
    (2, ["random-0", "random-50"], {"random-25": "25 % at random hides 0 of 2 cells, as 0 % at random does",
                                    "random-75": "75 % at random hides all 2 cells", "random-90": "90 % at random hides all 2 cells"}),
    (13, ["random-0", "random-25", "random-50", "random-75", "random-90"], {}),
])
def test_shares_that_say_nothing_new_are_dropped(cells, kept, said):
    few = data.Dataset("few", torch.randn(40, cells, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2)
    plan = Plan(few)
    assert list(plan.occlusions) == kept
    assert plan.dropped == said
    assert list(plan.settings()["occlusions"]) == kept
    hidden = [int((~plan.pattern(name, 1, 0, 3)).sum(1).unique()) for name in kept]
    assert list(plan.hidden_counts) == hidden == sorted(set(hidden))
    assert max(hidden) < cells


def test_shapes_that_hide_all_or_the_same_are_dropped():
    tiny = data.Dataset("tiny", torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2, None, (2, 2))
    plan = Plan(tiny)
    assert plan.dropped["border"] == "border hides all 4 cells"
    patterns = [plan.pattern(name, 1, 0, 1) for name in plan.occlusions if OCCLUSIONS[name].level is None]
    assert len({tuple(p.flatten().tolist()) for p in patterns}) == len(patterns) >= 3
    with pytest.raises(ValueError, match="tiny: no occlusion is left; got 'border hides all 4 cells'"):
        Plan(tiny, occlusions=("border",))


def test_names_are_forgiving_about_case_and_order():
    plan = Plan(data.digits(), models=("gaussian", "INDEPENDENT"), occlusions=("left", "random-0"))
    assert plan.models == ("independent", "Gaussian")
    assert plan.occlusions == ("random-0", "left")


@pytest.mark.parametrize(("change", "match"), [
    ({"models": ("nope",)}, "model must be one of independent, .*; got 'nope'"),
    ({"models": ("Gaussian", "gaussian")}, "different names"),
    ({"models": ()}, "at least one"),
    ({"occlusions": ("nope",)}, "occlusion must be one of random-0, .*; got 'nope'"),
    ({"seeds": ()}, "seeds must be different whole numbers"),
    ({"seeds": (1, 1)}, "seeds must be different"),
    ({"folds": 1}, "folds must be 2 or more; got 1"),
    ({"folds": 500}, "500 folds want 500 rows or more of every class; got 174 of 8"),
])
def test_bad_plans(change, match):
    with pytest.raises(ValueError, match=match):
        Plan(data.digits(), **change)


def test_data_that_do_not_fit(few):
    with pytest.raises(ValueError, match="has no labels"):
        Plan(replace(few, y=None))
    with pytest.raises(ValueError, match="wanted rows of two classes or more; got 1"):
        Plan(replace(few, y=torch.zeros(200)))
    flat = replace(few, image_shape=None, num_states=None)
    plan = Plan(flat)
    assert plan.models == ("Gaussian", "MDA", "MDA (tempered)", "kernel density", "SVM (mean)", "logistic (mean)", "logistic (zero)")
    assert all(name.startswith("random") for name in plan.occlusions)
    with pytest.raises(ValueError, match="model 'Markov chain' does not fit digits: it needs states"):
        Plan(flat, models=("Markov chain",))
    with pytest.raises(ValueError, match="occlusion 'left' does not fit digits: the rows are no images"):
        Plan(flat, occlusions=("left",))


def test_large_grey_images_are_made_black_and_white_where_pairs_are_too_many():
    wide = data.Dataset("wide", torch.zeros(20, 784), torch.arange(20) % 2, 256, (28, 28))
    made = {name: MODELS[name].make(wide) for name in ("independent", "Markov chain", "Chow-Liu tree")}
    assert [isinstance(classifier, Binarised) for classifier in made.values()] == [False, True, True]
    assert "sees black and white, from level 128 on" in MODELS["Chow-Liu tree"].note(wide)
    assert MODELS["Chow-Liu tree"].note(data.digits()) == ""


def test_what_is_usual():
    small, large = data.digits(), data.Dataset("large", torch.zeros(6000, 784), torch.arange(6000) % 2, 256, (28, 28))
    assert [OCCLUSIONS[name].level for name in Plan(small).occlusions[:5]] == [0, 0.25, 0.5, 0.75, 0.9]
    assert [OCCLUSIONS[name].level for name in Plan(large).occlusions[:5]] == [0, 0.5, 0.8, 0.9, 0.95]
    assert len(Plan(small).occlusions) == len(Plan(large).occlusions) == 12
    for wide in (large, replace(large, x=large.x[:100], y=large.y[:100])):
        assert not {"FVSBN", "NADE", "OrderlessNADE"} & set(Plan(wide).models)
    assert {"MDA", "MDA + pattern net", "kernel density", "SVM (mean)", "pattern net"} <= set(Plan(large).models)
    assert not {"MDA + pattern net", "MDA chain", "pattern net"} & set(Plan(small).models)
    assert fitting(small) == tuple(name for name in MODELS if name not in (*TORN, *ESTIMATED))
    assert set(fitting(small, holes=True)) == set(MODELS) - set(COMPLETE)
    assert {"MDA", "MDA (tempered)", "Gaussian"} <= set(Plan(small).models) < set(fitting(small))
    assert occlusions.usual(None, 784) == ("random-0", "random-50", "random-80", "random-90", "random-95")


def test_networks_for_large_images_are_convolutional():
    large = data.Dataset("large", torch.zeros(6000, 784), torch.arange(6000) % 2, 256, (28, 28))
    made = {name: MODELS["pattern net"].make(of) for name, of in (("images", large), ("rows", replace(large, image_shape=None)), ("small", data.digits()))}
    assert {name: net.image_shape for name, net in made.items()} == {"images": (28, 28), "rows": None, "small": None}
    assert MODELS["pattern net"].note(large) == "a convolutional network trained on random pixels and boxes"
    both = MODELS["MDA + pattern net"].make(large)
    assert both.net.get_params() == made["images"].get_params()
    assert describe(both.classifier) == describe(MODELS["MDA"].make(large))
    assert both.image_shape == (28, 28)
    assert (both.folds, both.most) == (5, 12000)  # of MNIST all rows of one fold, so that two networks are trained
    assert MODELS["MDA + pattern net"].make(data.digits()).most == 5000


@pytest.mark.parametrize(("change", "reason"), [
    ({"num_states": 65}, "64 levels at most"), ({"num_states": None}, "64 levels at most"),
    ({"x": torch.zeros(20, 784), "y": torch.arange(20) % 2, "image_shape": (28, 28)}, "fewer cells"),
])
def test_chains_over_levels_are_for_few_levels_and_cells(change, reason):
    assert not MODELS["MDA chain"].unfit(data.digits())
    with pytest.raises(ValueError, match=reason):
        Plan(replace(data.digits(), **change), models=("MDA chain",))


def test_an_official_test_part(few):
    plan = Plan(few, seeds=(1,), folds=1, test_rows=50)
    train, test = plan.split(1, 0)
    assert (train.tolist(), test.tolist()) == (list(range(150)), list(range(150, 200)))
    assert len(plan.units) == len(plan.models)
    assert plan.settings()["data"]["test rows"] == 50
    assert {example.row for example in examples(plan)} <= set(test)
    for change in ({"folds": 2}, {"seeds": (1, 2)}):
        with pytest.raises(ValueError, match="an official test part makes one split"):
            Plan(few, **{"seeds": (1,), "folds": 1, "test_rows": 50} | change)
    strange = replace(few, y=torch.cat([few.y[:150], torch.full((50,), 11)]))
    with pytest.raises(ValueError, match=r"classes that the training part lacks; got \[11\]"):
        Plan(strange, seeds=(1,), folds=1, test_rows=50)


def test_settings_name_all_arguments_however_deep():
    said = describe(MODELS["MDA (tempered)"].make(data.digits()))
    assert said.startswith("Tempered(classifier=MixtureDiscriminantAnalysis(")
    assert "df=10.0" in said
    assert "most=1000" in said


def test_examples_are_test_rows_of_the_first_split(few):
    plan = Plan(few, seeds=(3,), folds=2)
    shown = examples(plan)
    assert [example.occlusion for example in shown] == [name for name in plan.occlusions if name not in ("random-0", "random-25")]
    assert [example.label for example in shown] == list(range(10))
    test = plan.split(3, 0)[1]
    for example in shown:
        assert example.row in test
        assert plan.labels[example.row] == example.label
        rows = plan.pattern(example.occlusion, 3, 0, len(test))
        assert example.visible.equal(rows[list(test).index(example.row)] if len(rows) > 1 else rows[0])
