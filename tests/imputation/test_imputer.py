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
from pyro_ar.imputation.recipes import RECIPES, Pool, _best_shares, _distances, _ranks, apportioned, choose, fitting


@parametrize_with_checks([JointImputer("gaussian", fits=2)])
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
    imputer = JointImputer("gaussian", fits=1).fit(Z)
    filled = imputer.transform(Z)
    loc, cov = imputer.joints_[0].loc.numpy(), imputer.joints_[0].covariance_matrix.numpy()
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
    imputer = JointImputer("mixture of 4", fits=2).fit(broken)
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

    def recipe(rows, columns, weights, generator):
        fits.append(rows)
        assert torch.equal(weights, torch.ones(40, dtype=torch.float64))
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
    assert found.scores["a"] == pytest.approx(-1 / math.sqrt(math.pi), abs=5 * 0.45 / math.sqrt(50))


def test_cells_that_are_missing_are_not_scored():
    """A third is missing of 90 standard normal rows, of which a standard normal is said: minus its CRPS, 1 / sqrt(pi), with some 50 cells."""
    x = torch.randn(90, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[::3, 1], x[1::3] = math.nan, torch.where(torch.arange(3) == 0, math.nan, x[1::3])
    columns = [Column(str(i), "real") for i in range(3)]
    found = choose(x, columns, {"a": lambda *a: Gaussian(torch.zeros(3).double(), torch.eye(3).double())}, 3, torch.Generator().manual_seed(1))
    assert found.scores["a"] == pytest.approx(-1 / math.sqrt(math.pi), abs=5 * 0.45 / math.sqrt(50))


def test_scores_of_states_are_those_of_brier():
    """A fair coin said of a coin that always shows 1: half of (1/2)^2 + (1/2)^2."""
    x = torch.ones(90, 2, dtype=torch.float64)
    columns = [Column("a", "binary", (0, 1)), Column("b", "binary", (0, 1))]
    found = choose(x, columns, {"coin": lambda *a: FullyIndependent(torch.zeros(2, 2).double()), "broken": lambda *a: 1 / 0}, 3,
                   torch.Generator().manual_seed(1))
    assert found.scores["coin"] == pytest.approx(-0.25, abs=5 * 0.5 / math.sqrt(90 * 0.6 * 60))
    assert found.scores["broken"] == -math.inf
    assert found.shares == {"coin": pytest.approx(1.0), "broken": 0.0}


def test_weights_are_those_of_the_bayesian_bootstrap():
    """400 fits to 60 rows: of a Dirichlet of ones the mean is 1/N and the variance (N - 1) / (N^2 (N + 1)); 24,000 numbers, within 5 standard errors (of the
    mean of an exponential's square, sqrt(20 / 24,000), which the constraint only lowers). Of one fit they are 1.
    """
    rows, weights = np.random.default_rng(0).normal(size=(60, 2)), []

    def recipe(rows, columns, w, generator):
        weights.append(w)
        return Gaussian(torch.zeros(2).double(), torch.eye(2).double())

    JointImputer(recipe, fits=400).fit(rows)
    shares = torch.stack(weights) / 60
    np.testing.assert_allclose(shares.sum(1), 1)
    assert float(((60 * shares) ** 2).mean()) == pytest.approx(2 * 60 / 61, abs=5 * math.sqrt(20 / 24_000))
    assert not torch.equal(weights[0], weights[1])
    weights.clear()
    JointImputer(recipe, fits=1).fit(rows)
    assert torch.equal(weights[0], torch.ones(60).double())


def test_completed_tables_come_from_one_joint_after_the_other_and_means_from_all():
    """Joint k is sure of the number k: tables 0, 1, 2, 0, 1, and the mean 1."""
    made = []

    def recipe(rows, columns, weights, generator):
        made.append(Gaussian(torch.full((2,), float(len(made))).double(), 1e-12 * torch.eye(2).double()))
        return made[-1]

    a = math.sqrt(1.5)
    Z = np.array([[-a, np.nan], [0.0, 0.0], [a, -a], [np.nan, a]])  # center 0, scale 1
    imputer = JointImputer(recipe, fits=3).fit(Z)
    assert [round(float(table[0, 1]), 3) for table in imputer.sample(Z, 5)] == [0, 1, 2, 0, 1]
    assert [round(float(table[3, 0]), 3) for table in imputer.sample(Z, 2)] == [0, 1]
    assert imputer.transform(Z)[0, 1] == pytest.approx(1)
    np.testing.assert_array_equal(np.stack(imputer.draws(Z, 4)["posterior"]["1"])[0].round(3)[:, 0], [0, 1, 2, 0])


def test_draws_know_that_the_joint_is_not_known():
    """A mean of 12 rows, hidden in a thirteenth: over tables the variance is that of the joints' means, of 1/12 times (N - 1) / (N + 1), beside that of
    the rows; of 300 joints, within 5 standard errors. One fit draws as if the mean were known.
    """
    def recipe(rows, columns, weights, generator):
        w = weights * ~rows[:, 0].isnan()
        return Gaussian(torch.stack([(w * rows[:, 0].nan_to_num()).sum() / w.sum(), torch.zeros(()).double()]), torch.eye(2).double())

    rng = np.random.default_rng(0)
    x = rng.normal(size=13)
    Z = np.stack([x, rng.normal(size=13)], 1)
    Z[12, 0] = np.nan
    several, one = (JointImputer(recipe, fits=fits).fit(Z) for fits in (300, 1))
    means = np.array([float(joint.loc[0]) for joint in several.joints_])
    assert means.var() == pytest.approx(1 / 13, rel=5 * math.sqrt(2 / 300))  # standardised: of 12 rows of variance 1, 1 / (12 + 1)
    spread = [np.var([t[12, 0] for t in imputer.sample(Z, 300)]) / x[:12].var() for imputer in (several, one)]
    assert spread[0] == pytest.approx(14 / 13, rel=5 * math.sqrt(2 / 300))
    assert spread[1] == pytest.approx(1, rel=5 * math.sqrt(2 / 300))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_reads_the_weights(name):
    """Of two clouds one has no weight: 200 draws of a row of which nothing is seen lie about the other, whose mean is -3 and whose spread 1/2."""
    generator = torch.Generator().manual_seed(0)
    x = torch.where(torch.arange(80)[:, None] < 40, -3.0, 3.0).double() + 0.5 * torch.randn(80, 2, generator=generator).double()
    x[::7, 0] = math.nan
    columns = [Column("a", "real"), Column("b", "real")]
    torch.manual_seed(0)
    joint = RECIPES[name](x, columns, (torch.arange(80) < 40).double(), generator)
    with torch.no_grad():
        drawn = joint.given(torch.full((1, 2), math.nan).double(), torch.zeros(1, 2, dtype=torch.bool)).sample((200,)).reshape(200, 2)
    assert ((drawn.median(0).values + 3).abs() < 1).all()


def test_ranks_are_those_of_the_weighted_rows():
    """Of two clouds one has no weight: the scores of the other are those of a normal, mean 0 and spread 1, where plain ranks put it below 0 as a whole."""
    x, made = torch.cat([torch.arange(40.0), 100 + torch.arange(40.0)]).double()[:, None], []

    def make(z):
        made.append(z[:40])
        return Gaussian(torch.zeros(1).double(), torch.eye(1).double())

    _ranks(x, (torch.arange(80) < 40).double(), make)
    assert abs(float(made[0].mean())) < 0.05
    assert float(made[0].std()) == pytest.approx(1, abs=0.15)


def test_states_that_differ_are_one_apart():
    columns, hide = [Column("a", "categorical", ("x", "y", "z"))], [torch.ones(4, 1, dtype=torch.bool)]
    drawn = [torch.zeros(10, 4).double(), torch.full((10, 4), 2.0).double()]
    from_truth, between = _distances(drawn, columns, [torch.tensor([[0.0], [0.0], [0.0], [2.0]]).double()], hide)
    np.testing.assert_allclose(from_truth, [0.25, 0.75])
    np.testing.assert_allclose(between, [[0, 1], [1, 0]])


def test_the_most_probable_state_is_that_over_all_joints():
    """Of three joints one is sure of the first value, and two of the second."""
    made = []

    def recipe(rows, columns, weights, generator):
        made.append(FullyIndependent(torch.tensor([0.0, -50.0 if not made else 50.0]).expand(2, 2).double()))
        return made[-1]

    Z = np.array([[0.0, np.nan], [1.0, 1.0], [0.0, 0.0], [np.nan, 1.0]])
    filled = JointImputer(recipe, fits=3).fit_transform(Z)
    assert filled[0, 1] == filled[3, 0] == 1


def test_as_many_joints_are_fitted_of_each_as_its_share_says(monkeypatch):
    shares = {"gaussian": 0.5, "rank-normal gaussian": 0.3, "latent tree": 0.0}
    monkeypatch.setattr("pyro_ar.imputation.imputer.choose", lambda *of: Pool(dict.fromkeys(shares, -1.0), shares))
    imputer = JointImputer(fits=3).fit(np.random.default_rng(0).normal(size=(20, 2)))
    assert imputer.chosen_ == {"gaussian": 2, "rank-normal gaussian": 1}
    assert [type(joint).__name__ for joint in imputer.joints_] == ["Gaussian", "Transformed", "Gaussian"]


def test_candidates_for_columns_of_two_values_are_all_and_for_more_discrete():
    two, three = Column("a", "binary", (0, 1)), Column("b", "categorical", ("x", "y", "z"))
    assert set(fitting([two, two])) == set(RECIPES)
    assert set(fitting([two, three])) == {"mixture of 4", "mixture of 16", "latent tree"}


def test_shares_are_those_of_the_best_pool():
    """Draws at 0 and at 2 of cells that are 0 and 2 in turn: half of each, by hand; and on a table of three joints no pool of a fine grid is better."""
    x = torch.tensor([[0.0], [2.0]]).double().repeat(100, 1)
    columns = [Column("a", "real")]
    hide = [torch.ones(200, 1, dtype=torch.bool)]
    at = [torch.full((10, 200), v).double() for v in (0.0, 2.0)]
    from_truth, between = _distances(at, columns, [x], hide)
    np.testing.assert_allclose(from_truth, [1, 1])
    np.testing.assert_allclose(between, [[0, 2], [2, 0]])
    np.testing.assert_allclose(_best_shares(from_truth, between), [0.5, 0.5])
    generator = torch.Generator().manual_seed(0)
    drawn = [at + scale * torch.randn(40, 200, generator=generator).double() for at, scale in ((0.0, 0.3), (2.0, 0.3), (1.0, 3.0))]
    x = torch.where(torch.rand(200, 1, generator=generator) < 0.7, 0.0, 2.0).double()
    from_truth, between = _distances(drawn, columns, [x], hide)

    def score(shares):
        return float(shares @ between @ shares / 2 - from_truth @ shares)

    found = _best_shares(from_truth, between)
    assert float(found.sum()) == pytest.approx(1)
    assert score(found) >= max(score(torch.tensor([i, j, 50 - i - j]).double() / 50) for i in range(51) for j in range(51 - i)) - 1e-9
    assert found[0] > found[1] > found[2]


def test_what_a_pool_draws_is_worth_what_is_said_of_it():
    """The score of draws of a pool, by the double sum over its draws, is that of its shares."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(50, 30, generator=generator).double() + k for k in range(2)]
    x, columns, hide = torch.randn(30, 1, generator=generator).double(), [Column("a", "real")], [torch.ones(30, 1, dtype=torch.bool)]
    from_truth, between = _distances(drawn, columns, [x], hide)
    pool = torch.cat(drawn)
    slow = np.mean([float((pool[:, c] - x[c]).abs().mean()) - float((pool[:, c, None] - pool[:, c]).abs().mean()) / 2 for c in range(30)])
    half = torch.tensor([0.5, 0.5]).double()
    assert float(from_truth @ half - half @ between @ half / 2) == pytest.approx(slow, abs=0.03)


def test_every_beginning_is_apportioned():
    names = apportioned({"a": 0.5, "b": 0.3, "c": 0.2, "d": 0.0}, 10)
    assert [names.count(name) for name in "abcd"] == [5, 3, 2, 0]
    assert names[0] == "a"
    assert set(names[:3]) == {"a", "b", "c"}
    assert apportioned({"a": 0.2, "b": 0.8}, 1) == ["b"]


def test_the_choice_takes_the_best():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(150, 1)) + 0.3 * rng.normal(size=(150, 3))
    skewed = JointImputer(fits=1).fit(holed(np.exp(2 * z)))
    assert skewed.scores_["rank-normal gaussian"] > skewed.scores_["gaussian"]
    assert "gaussian" not in skewed.chosen_
    centres = rng.choice([-4.0, 4.0], size=(150, 1)) * np.array([1, -1, 1])
    assert all("mixture" in name for name in JointImputer(fits=1).fit(holed(centres + rng.normal(size=(150, 3)))).chosen_)
    assert set(skewed.scores_) == set(RECIPES)
    assert len(skewed.joints_) == sum(skewed.chosen_.values()) == 1


def test_equal_tables_are_filled_equally_and_seeds_count(iris):
    Z = holed(iris[::3])
    torch.manual_seed(1)
    first = JointImputer("rank-normal student-t", fits=2).fit(Z)
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
    imputer = JointImputer("gaussian", fits=1).fit(Z)
    filled = imputer.transform(Z)
    np.testing.assert_allclose(filled[3], imputer.joints_[0].loc.numpy() * [c.scale for c in imputer.columns_] + [c.center for c in imputer.columns_])
    np.testing.assert_array_equal(imputer.transform(iris), iris)
    np.testing.assert_array_equal(imputer.sample(iris, 1)[0], iris)
    np.testing.assert_allclose(imputer.transform(Z[3:4])[0], filled[3])  # a row alone is the row in a batch


def test_in_a_pipeline(iris):
    Z, y = holed(iris), load_iris().target
    pipeline = make_pipeline(JointImputer("gaussian", fits=1), LogisticRegression(max_iter=1000))
    assert cross_val_score(pipeline, Z, y, cv=3).mean() > 0.8


def test_a_joint_of_ones_own(iris):
    seen = []

    def recipe(rows, columns, weights, generator):
        seen.append((rows, columns, weights))
        return Gaussian.from_data(rows, visible=~rows.isnan(), weights=weights, shrinkage=0.5)

    imputer = JointImputer(recipe, fits=3).fit(holed(iris))
    assert imputer.chosen_ == {}
    assert len(imputer.joints_) == len(seen) == 3
    assert [c.name for c in seen[0][1]] == ["0", "1", "2", "3"]
    assert all(torch.equal(seen[0][0].nan_to_num(), rows.nan_to_num()) for rows, _, _ in seen)


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
    (GOOD, {"joint": "gaussian", "fits": 0}, "fits must be 1 or more"),
    (GOOD, {"joint": "gaussian", "fits": 2.5}, "fits must be 1 or more"),
    (GOOD[:2], {"folds": 3}, "wants 3 rows or more"),
    (GOOD, {"joint": lambda *a: Gaussian(torch.zeros(3), torch.eye(3))}, "over 2 columns"),
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
    imputer = JointImputer("mixture of 4", fits=2).fit(broken)
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
        imputer = JointImputer(lambda rows, columns, weights, generator: Gaussian.from_data(rows, visible=~rows.isnan(), weights=weights),
                               random_state=seed).fit(table)
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
