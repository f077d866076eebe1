"""`JointImputer`: means and draws against the algebra of the fitted joint, frames of all kinds, what a choice may see, and refusals."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyro_ar import FullyIndependent, Gaussian
from pyro_ar.imputation import Column, JointImputer, pool
from pyro_ar.imputation.columns import decoded
from pyro_ar.imputation.recipes import RECIPES, choose


@parametrize_with_checks([JointImputer("gaussian")])
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def holed(X, share=0.3, seed=0):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(X.shape) < share, np.nan, X)


@pytest.fixture
def iris():
    return load_iris().data


def test_means_and_draws_are_those_of_the_conditional_normal(iris):
    """By numpy from the fitted mean and covariance; of 400 draws, means within 5 standard errors (false alarms 6e-7 each, 50 cells: 3e-5)."""
    Z = holed(iris)
    imputer = JointImputer("gaussian").fit(Z)
    filled = imputer.transform(Z)
    loc, cov = imputer.joint_.loc.numpy(), imputer.joint_.covariance_matrix.numpy()
    center, scale = (np.array([getattr(c, name) for c in imputer.columns_]) for name in ("center", "scale"))
    np.testing.assert_allclose(center, np.nanmean(Z, 0))
    np.testing.assert_allclose(scale, np.nanstd(Z, 0))
    tables = np.stack(imputer.sample(Z[:40], 400))
    for r, row in enumerate(Z):
        v, h = ~np.isnan(row), np.isnan(row)
        gain = cov[np.ix_(h, v)] @ np.linalg.inv(cov[np.ix_(v, v)])
        mean = (loc[h] + gain @ (((row - center) / scale)[v] - loc[v])) * scale[h] + center[h]
        spread = np.sqrt(np.diag(cov[np.ix_(h, h)] - gain @ cov[np.ix_(v, h)])) * scale[h]
        np.testing.assert_allclose(filled[r, h], mean, atol=1e-8)
        np.testing.assert_array_equal(filled[r, v], row[v])
        if r < 40:
            drawn = tables[:, r]
            assert (drawn[:, v] == row[v]).all()
            assert (np.abs(drawn[:, h].mean(0) - mean) < 5 * spread / math.sqrt(400)).all()
            np.testing.assert_allclose(drawn[:, h].std(0), spread, rtol=5 / math.sqrt(800))


def frame(rows=120, seed=0):
    """Colour and flag follow a hidden group, the numbers too; the index and the column order are odd on purpose."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, rows)
    table = pd.DataFrame({
        "weight": 60 + 20 * group + rng.normal(0, 3, rows), "colour": np.where(group, "red", rng.choice(["blue", "green"], rows)),
        "pieces": rng.poisson(3 + 30 * group), "flag": np.where(group, "yes", "no"), "unit": "kg",
        "grade": pd.Categorical(np.where(group, "b", "a"), categories=["a", "b", "c"]),
    }, index=np.arange(rows) * 10 + 5)
    return table, group


def test_frames_of_all_kinds():
    table, group = frame()
    rng = np.random.default_rng(1)
    holes = rng.random(table.shape) < 0.25
    holes[:, 4] &= rng.random(len(table)) < 0.5
    broken = table.mask(holes)
    imputer = JointImputer("mixture of 4").fit(broken)
    assert [c.kind for c in imputer.columns_] == ["real", "categorical", "count", "binary", "constant", "binary"]
    assert imputer.get_feature_names_out().tolist() == table.columns.tolist()
    filled = imputer.transform(broken)
    assert filled.columns.equals(table.columns)
    assert filled.index.equals(table.index)
    assert not filled.isna().any().any()
    assert filled.where(~holes).equals(broken.where(~holes))
    assert filled["grade"].dtype == table["grade"].dtype
    assert (filled["unit"] == "kg").all()
    telling = (~holes).sum(1) >= 3
    for name, right in (("flag", "yes"), ("grade", "b")):
        hidden = holes[:, table.columns.get_loc(name)] & telling
        assert ((filled[name] == right).to_numpy() == group.astype(bool))[hidden].mean() > 0.95
    hidden = holes[:, 0] & telling
    assert np.abs(filled["weight"] - table["weight"])[hidden].mean() < 5
    drawn = imputer.sample(broken, 3)
    assert len(drawn) == 3
    for one in drawn:
        assert one.where(~holes).equals(broken.where(~holes))
        assert set(one["colour"]) <= {"red", "blue", "green"}
        assert (one["pieces"] % 1 == 0).all()
        assert (one["pieces"] >= 0).all()
    assert not drawn[0].equals(drawn[1])


def test_the_most_probable_state_is_filled():
    """Three of four rows with b = 0 have a = 'x': by counting."""
    rows = [["x", "0"]] * 30 + [["y", "0"]] * 10 + [["y", "1"]] * 40
    table = pd.DataFrame([*rows, [None, "0"], [None, "1"]], columns=["a", "b"])
    filled = JointImputer("mixture of 4").fit_transform(table)
    assert filled["a"].tolist()[-2:] == ["x", "y"]


def test_rank_normal_means_are_means_of_draws(iris):
    """A skewed column: the mean of many tables, within 5 standard errors of 200 draws."""
    X = np.exp(0.4 * iris[:, :3])
    Z = holed(X[:60], 0.2)
    imputer = JointImputer("rank-normal gaussian").fit(Z)
    filled, tables = imputer.transform(Z), np.stack(imputer.sample(Z, 200, random_state=3))
    hidden = np.isnan(Z)
    spread = tables.std(0)[hidden]
    assert (np.abs(filled[hidden] - tables.mean(0)[hidden]) < 5 * spread * math.sqrt(1 / 200 + 1 / 200)).all()


def test_the_choice_sees_no_row_that_it_scores():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fits, scores = [], []

    class Recording(Gaussian):
        def given(self, x, visible, **options):
            scores.append((x, visible))
            return super().given(x, visible, **options)

    def recipe(rows, columns, generator):
        fits.append(rows)
        return Recording(torch.zeros(3).double(), torch.eye(3).double())

    columns = [Column(str(i), "real") for i in range(3)]
    found = choose(x, columns, {"a": recipe}, 3, torch.Generator().manual_seed(1))
    assert len(fits) == 3
    numbers = [{tuple(row) for row in rows.tolist()} for rows in fits]
    asked = [{tuple(row) for row in rows.tolist()} for rows, _ in scores]
    assert all(0.5 < visible.double().mean() < 0.9 for _, visible in scores)  # three tenths are hidden
    for rows, visible in scores:  # each row is asked four times, with other cells hidden
        copies = visible.reshape(4, 20, 3)
        assert torch.equal(rows.reshape(4, 20, 3), rows[:20].expand(4, 20, 3))
        assert len({tuple(copy.flatten().tolist()) for copy in copies}) == 4
    assert all(len(rows) == 40 for rows in fits)
    for fitted, one in zip(numbers, asked, strict=True):
        assert not fitted & one
        assert len(fitted | one) == 60
    assert set().union(*asked) == {tuple(row) for row in x.tolist()}
    # a standard normal forecast of standard normal cells: minus its CRPS, 1 / sqrt(pi), with some 50 cells
    assert found["a"] == pytest.approx(-1 / math.sqrt(math.pi), abs=5 * 0.45 / math.sqrt(50))


def test_scores_of_states_are_those_of_brier():
    """A fair coin said of a coin that always shows 1: half of (1/2)^2 + (1/2)^2."""
    x = torch.ones(90, 2, dtype=torch.float64)
    columns = [Column("a", "binary", (0, 1)), Column("b", "binary", (0, 1))]
    found = choose(x, columns, {"coin": lambda rows, columns, generator: FullyIndependent(torch.zeros(2, 2).double()), "broken": lambda *a: 1 / 0}, 3,
                   torch.Generator().manual_seed(1))
    assert found["coin"] == pytest.approx(-0.25, abs=5 * 0.5 / math.sqrt(90 * 0.6 * 60))
    assert found["broken"] == -math.inf


def test_the_choice_takes_the_best():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, 1)) + 0.3 * rng.normal(size=(300, 3))
    assert JointImputer().fit(holed(np.exp(2 * z))).chosen_.startswith("rank-normal")
    centres = rng.choice([-4.0, 4.0], size=(300, 1)) * np.array([1, -1, 1])
    assert "normal" not in JointImputer().fit(holed(centres + rng.normal(size=(300, 3)))).chosen_
    imputer = JointImputer().fit(holed(z))
    assert set(imputer.scores_) == set(RECIPES)
    assert imputer.chosen_ == max(imputer.scores_, key=imputer.scores_.get)


def test_equal_tables_are_filled_equally_and_seeds_count(iris):
    Z = holed(iris[::3])
    torch.manual_seed(1)
    first = JointImputer("rank-normal student-t").fit(Z)
    one, drawn = first.transform(Z), first.sample(Z, 2)
    torch.manual_seed(2)
    again = clone(first).fit(Z)
    np.testing.assert_array_equal(one, again.transform(Z))
    np.testing.assert_array_equal(drawn, again.sample(Z, 2))
    assert not np.array_equal(drawn[0], first.sample(Z, 1, random_state=7)[0])
    assert not np.array_equal(first.sample(Z, 1, random_state=8)[0], first.sample(Z, 1, random_state=7)[0])
    state = torch.get_rng_state()
    first.sample(Z, 1)
    assert torch.equal(state, torch.get_rng_state())


def test_rows_without_a_visible_cell_and_complete_tables(iris):
    Z = holed(iris)
    Z[3] = np.nan
    imputer = JointImputer("gaussian").fit(Z)
    filled = imputer.transform(Z)
    np.testing.assert_allclose(filled[3], imputer.joint_.loc.numpy() * [c.scale for c in imputer.columns_] + [c.center for c in imputer.columns_])
    np.testing.assert_array_equal(imputer.transform(iris), iris)
    np.testing.assert_array_equal(imputer.sample(iris, 1)[0], iris)
    np.testing.assert_allclose(imputer.transform(Z[3:4])[0], filled[3])  # a row alone is the row in a batch


def test_in_a_pipeline(iris):
    Z, y = holed(iris), load_iris().target
    pipeline = make_pipeline(JointImputer("gaussian"), LogisticRegression(max_iter=1000))
    assert cross_val_score(pipeline, Z, y, cv=3).mean() > 0.8


def test_a_joint_of_ones_own(iris):
    seen = {}

    def recipe(rows, columns, generator):
        seen["columns"] = columns
        return Gaussian.from_data(rows, visible=~rows.isnan(), shrinkage=0.5)

    imputer = JointImputer(recipe).fit(holed(iris))
    assert imputer.chosen_ is None
    assert [c.name for c in seen["columns"]] == ["0", "1", "2", "3"]


GOOD = np.array([[1.0, 2.0], [2.0, np.nan], [3.5, 1.0], [0.5, 3.0]])


@pytest.mark.parametrize(("X", "options", "message"), [
    (np.array([[1.0, np.nan], [2.0, np.nan]]), {}, "column 1 is all missing"),
    (pd.DataFrame({"a": [1, "x", 2.0]}), {}, "column a must hold numbers or words, not both"),
    (np.array([[1.0, np.inf], [2.0, 3.5], [3.0, 4.0]]), {"joint": "gaussian"}, "must hold finite numbers"),
    (GOOD, {"joint": "magic"}, "joint must be one of"),
    (GOOD, {"joint": 3}, "joint must be None, a name or a function"),
    (GOOD, {"kinds": {"z": "real"}}, "kinds must be of columns there are"),
    (GOOD, {"kinds": {"0": "date"}}, "the kind of a column must be one of"),
    (GOOD, {"kinds": {"0": "count"}}, "cannot be counts"),
    (GOOD, {"kinds": {"0": "binary"}}, "cannot be binary"),
    (pd.DataFrame({"a": ["x", "y", "z"]}), {"kinds": {"a": "real"}}, "cannot be real"),
    (GOOD, {"folds": 1}, "folds must be 2 or more"),
    (GOOD[:2], {"folds": 3}, "wants 3 rows or more"),
    (GOOD, {"joint": lambda rows, columns, generator: Gaussian(torch.zeros(3), torch.eye(3))}, "over 2 columns"),
    (GOOD[0], {}, "Expected 2D array"),
])
def test_bad_input_is_refused(X, options, message):
    with pytest.raises(ValueError, match=message):
        JointImputer(**options).fit(X)


def test_other_tables_are_refused():
    table, _ = frame()
    imputer = JointImputer("mixture of 4").fit(table)
    with pytest.raises(ValueError, match="column colour holds what it never held in fit"):
        imputer.transform(table.assign(colour="mauve"))
    with pytest.raises(ValueError, match="column weight must hold numbers"):
        imputer.transform(table.assign(weight="heavy"))
    with pytest.raises(ValueError, match="feature names should match those that were passed during fit"):
        imputer.transform(table[table.columns[::-1]])
    with pytest.raises(ValueError, match="feature names should match"):
        imputer.transform(table.iloc[:, :3])
    with pytest.raises(ValueError, match="num_samples"):
        imputer.sample(table, 0)


def test_draws_for_arviz_are_the_hidden_cells_of_the_tables():
    table, _ = frame(40)
    holes = np.random.default_rng(1).random(table.shape) < 0.25
    holes[:, [2, 4]] = False
    broken = table.mask(holes)
    imputer = JointImputer("mixture of 4").fit(broken)
    data = imputer.draws(broken, 7, random_state=3)
    posterior, tables = data["posterior"], imputer.sample(broken, 7, random_state=3)
    assert set(posterior.data_vars) == {"weight", "colour", "flag", "grade"}
    assert "JointImputer" in posterior.attrs["drawn_by"]
    for name in posterior.data_vars:
        hidden = holes[:, table.columns.get_loc(name)]
        about = next(c for c in imputer.columns_ if c.name == name)
        cells = [one[name][hidden].tolist() for one in tables]
        wanted = cells if about.is_number else [[about.values.index(value) for value in row] for row in cells]
        assert posterior[name].shape == (1, 7, hidden.sum())
        np.testing.assert_allclose(np.asarray(posterior[name])[0], np.array(wanted, dtype=float))
    with pytest.raises(ValueError, match="want a table with holes"):
        imputer.draws(table, 3)


@pytest.mark.slow
def test_pooled_by_rubins_rules_a_slope_is_covered_as_often_as_it_says():
    """y on x1 (a third hidden, depending on x2): of 200 tables, 95 % intervals of the pooled slope hold the truth in 0.95 ± 5 * 0.0154."""
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x1 = rng.normal(size=200)
        x2 = x1 + rng.normal(size=200)
        y = 1.0 * x1 + rng.normal(size=200)
        table = np.stack([x1, x2, y], 1)
        table[rng.random(200) < 1 / (1 + np.exp(-(x2 - 0.7))), 0] = np.nan
        imputer = JointImputer(lambda rows, columns, generator: Gaussian.from_data(rows, visible=~rows.isnan()), random_state=seed).fit(table)
        slopes, variances = [], []
        for one in imputer.sample(table, 10):
            A = np.stack([np.ones(200), one[:, 0]], 1)
            beta, rest, *_ = np.linalg.lstsq(A, one[:, 2], rcond=None)
            slopes.append(beta[1])
            variances.append(rest[0] / 198 * np.linalg.inv(A.T @ A)[1, 1])
        low, high = pool(slopes, variances, complete_df=198).interval(0.95)
        inside += low < 1 < high
    assert abs(inside / 200 - 0.95) < 5 * 0.0154


def test_gaussian_joints_hold_columns_of_two_values():
    """Draws of such a column are its values, and follow the numbers beside it; categories of three leave Gaussian joints out."""
    rng = np.random.default_rng(0)
    size = rng.normal(size=150)
    table = pd.DataFrame({"size": size, "kind": np.where(size > 0, "big", "small"), "double": 2 * size + 0.1 * rng.normal(size=150)})
    holes = rng.random(table.shape) < 0.25
    broken = table.mask(holes)
    imputer = JointImputer("gaussian").fit(broken)
    hidden = holes[:, 1] & ~holes[:, 2]
    for one in imputer.sample(broken, 3):
        assert set(one["kind"]) == {"big", "small"}
        assert (one["kind"] == table["kind"])[hidden].mean() > 0.65
    assert (imputer.transform(broken)["kind"] == table["kind"])[hidden].mean() > 0.75
    with pytest.raises(ValueError, match="joint must be one of mixture of 4"):
        JointImputer("gaussian").fit(broken.assign(kind=rng.choice(["a", "b", "c"], 150)))


def test_draws_of_counts_are_whole_numbers_within_what_was_seen_and_none_is_minus_zero():
    about = Column("n", "count", center=1.0, scale=2.0, most=4.0)
    found = decoded(np.array([-0.7, -0.45, 0.3, 5.0]), about, draw=True)
    assert found.tolist() == [0, 0, 2, 4]
    assert not np.signbit(found).any()
