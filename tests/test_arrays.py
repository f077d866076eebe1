"""Arrays and data frames wherever rows and patterns go in, as the tensors of the same numbers would."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_ar as par

from pyro_ar.arrays import as_tensor
from pyro_ar.visible import read_rows, training_rows

NAN = math.nan


@pytest.mark.parametrize(("x", "values", "dtype"), [
    (np.array([[1.5, 2.0]], dtype=np.float32), [[1.5, 2.0]], torch.float32),
    (np.array([[1.5, NAN]]), [[1.5, NAN]], torch.float64),
    (np.array([[1.5]], dtype=np.float16), [[1.5]], torch.float64),
    (np.array([[1.5, 2.0]], dtype=">f8"), [[1.5, 2.0]], torch.float64),
    (np.array([[1.5, 2.0]], dtype=">f4"), [[1.5, 2.0]], torch.float32),
    (np.array([[1, 2]], dtype=np.uint8), [[1, 2]], torch.int64),
    (np.array([[True, False]]), [[True, False]], torch.bool),
    (np.arange(6.0).reshape(2, 3)[:, ::-1], [[2.0, 1.0, 0.0], [5.0, 4.0, 3.0]], torch.float64),
    (np.array([[1, None]], dtype=object), [[1.0, NAN]], torch.float64),
    (pd.DataFrame({"a": [1, 2], "b": [0, 3]}), [[1, 0], [2, 3]], torch.int64),
    (pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": pd.array([0.5, None], dtype="Float64")}), [[1.0, 0.5], [NAN, NAN]], torch.float64),
    (pd.DataFrame({"a": pd.array([True, pd.NA], dtype="boolean"), "b": [1.5, 2.5]}), [[1.0, 1.5], [NAN, 2.5]], torch.float64),
    (pd.DataFrame({"a": pd.array([True, False], dtype="boolean")}), [[True], [False]], torch.bool),
    (pd.DataFrame({"a": [None, 3], "b": [pd.NA, 1.0]}, dtype=object), [[NAN, NAN], [3.0, 1.0]], torch.float64),
    (np.array([[pd.NaT, 3]], dtype=object), [[NAN, 3.0]], torch.float64),
    (np.array([], dtype=object), [], torch.float64),  # nothing says that these were bools
    (np.array(2.5), 2.5, torch.float64),
    (pd.Series([1.0, 2.0]), [1.0, 2.0], torch.float64),
], ids=lambda v: getattr(v, "__class__", type(v)).__name__)
def test_arrays_and_frames_become_tensors_of_the_same_numbers(x, values, dtype):
    found = as_tensor(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.tensor(values, dtype=dtype), equal_nan=True, rtol=0, atol=0)


def test_tensors_pass_as_they_are_and_arrays_are_copied():
    x = torch.zeros(2, requires_grad=True)
    assert as_tensor(x) is x
    array = np.zeros(2)
    found = as_tensor(array)
    array[:] = 1
    assert found.tolist() == [0, 0]
    assert as_tensor([[0, 1]]) == [[0, 1]]  # for the caller to refuse
    assert as_tensor(None) is None


def test_a_new_tensor_lies_on_the_device_that_was_asked_for():
    assert as_tensor(np.zeros(2), torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize(("x", "match"), [
    (np.array([["a", "b"]]), "must be numbers"),
    (np.array([1 + 1j]), "must be numbers"),
    (pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), r"'x', at index \(0, 1\)|'x', 'at index \(0, 1\)'"),
    (np.array([2**63], dtype=np.uint64), "2\\^63"),
    (pd.DataFrame({"a": pd.to_datetime(["2020-01-01"])}), "must be numbers"),
])
def test_what_holds_no_numbers_is_refused(x, match):
    with pytest.raises(ValueError, match=match):
        as_tensor(x)


def test_nan_hides_only_where_no_pattern_is_given():
    x = np.array([[1.0, NAN], [2.0, 3.0]])
    assert read_rows(x)[1].tolist() == [[True, False], [True, True]]
    assert read_rows(x[1:])[1] is None
    assert read_rows(np.ones((2, 2), int))[1] is None
    assert read_rows(x, np.ones(2, bool))[1].tolist() == [True, True]


def test_rows_of_weight_zero_are_no_rows():
    x, weights = np.array([[NAN, 7.0], [1.0, 2.0], [3.0, 4.0]]), np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    rows, seen, left = training_rows(x, None, weights)
    assert rows.tolist() == [[1, 2], [3, 4]]
    assert seen is None  # the row with the hidden cell is gone
    assert left.tolist() == [[1, 0], [0, 2]]
    seen = training_rows(x, None, weights + 1)[1]
    assert seen.tolist() == [[False, True], [True, True], [True, True]]


STATES = np.random.default_rng(0).integers(0, 2, (40, 4))
TABLES = [par.FullTable, par.FullyIndependent, par.MarkovChain, par.ChowLiuTree]
REAL = {
    "gaussian": (par.Gaussian, {}), "student": (par.StudentT, {"df": 5.0}), "student, EM": (par.StudentT, {"em_steps": 3}),
    "low rank": (par.LowRankGaussian, {"rank": 1}), "low-rank student": (par.LowRankStudentT, {"rank": 1}),
}


def same(a, b):
    assert {k: t.tolist() for k, t in a.tensors.items()} == {k: t.tolist() for k, t in b.tensors.items()}


@pytest.mark.parametrize("table", TABLES)
def test_tables_read_arrays_frames_and_nan(table):
    tensor, frame = torch.tensor(STATES), pd.DataFrame(STATES)
    same(table.from_data(STATES), table.from_data(tensor))
    same(table.from_data(frame), table.from_data(tensor))
    hidden = np.random.default_rng(1).random(STATES.shape) < 0.2
    torn = np.where(hidden, NAN, STATES)
    wanted = table.from_data(tensor.double(), visible=torch.tensor(~hidden))
    same(table.from_data(torn), wanted)
    same(table.from_data(pd.DataFrame(torn).astype("Int64")), wanted)
    same(table.from_data(STATES.astype(float), visible=~hidden), wanted)
    joint = table.from_data(STATES)
    np.testing.assert_array_equal(joint.log_prob(frame), joint.log_prob(tensor))
    np.testing.assert_array_equal(joint.conditional_log_prob(STATES), joint.conditional_log_prob(tensor))
    np.testing.assert_array_equal(joint.marginal(~hidden).log_prob(torn), joint.marginal(torch.tensor(~hidden)).log_prob(tensor))
    np.testing.assert_array_equal(joint.given(torn, pd.DataFrame(~hidden)).mode, joint.given(tensor, torch.tensor(~hidden)).mode)
    completion = joint.given(torn, ~hidden)
    np.testing.assert_array_equal(completion.log_prob(STATES), completion.log_prob(tensor))
    options = {"equivalent_sample_size": 1.0}
    assert table.log_evidence(frame, **options) == table.log_evidence(tensor, **options)
    same(table.posterior(STATES, **options).predictive(), table.posterior(tensor, **options).predictive())
    for ask in (table.log_evidence, table.posterior):
        with pytest.raises(ValueError, match="complete rows"):
            ask(torn, **options)


@pytest.mark.parametrize("kind", REAL)
def test_real_joints_read_arrays_frames_and_nan(kind):
    joint, options = REAL[kind]
    x = np.random.default_rng(0).normal(size=(30, 3))
    hidden = np.random.default_rng(1).random(x.shape) < 0.2
    torn = np.where(hidden, NAN, x)
    same(joint.from_data(pd.DataFrame(x), **options), joint.from_data(torch.tensor(x), **options))
    wanted = joint.from_data(torch.tensor(x), visible=torch.tensor(~hidden), **options)
    same(joint.from_data(torn, **options), wanted)
    same(joint.from_data(pd.DataFrame(torn).astype("Float64"), **options), wanted)
    fitted = joint.from_data(x, **options)
    np.testing.assert_array_equal(fitted.log_prob(x), fitted.log_prob(torch.tensor(x)))
    np.testing.assert_array_equal(fitted.marginal(~hidden).log_prob(torn), fitted.marginal(torch.tensor(~hidden)).log_prob(torch.tensor(torn)))
    with pytest.raises(ValueError, match=r"NaN|finite"):
        fitted.log_prob(torn)  # the density of whole rows
    with pytest.raises(ValueError, match=r"NaN|finite"):
        joint.from_data(torn, visible=np.ones(3, bool), **options)


@pytest.mark.parametrize("kind", [*REAL, *TABLES])
def test_integer_weights_are_repeated_rows_and_zero_is_removal(kind):
    random = np.random.default_rng(2)
    weights = random.integers(0, 4, 40).astype(float)
    weights[:3] = 0
    joint, options = REAL.get(kind, (kind, {}))
    x = random.normal(size=(40, 3)) if kind in REAL else STATES.astype(float)
    x[0] = 9  # of weight zero: neither a state nor an outlier
    for torn in (x, np.where(random.random(x.shape) < 0.2, NAN, x)):
        once = joint.from_data(torn, weights=weights, **options)
        twice = joint.from_data(torn.repeat(weights.astype(int), 0), **options)
        for name, t in twice.tensors.items():
            torch.testing.assert_close(once.tensors[name], t, rtol=1e-6, atol=1e-7)


def test_a_repeated_row_does_not_make_a_likelihood_bounded():
    x = np.random.default_rng(0).normal(size=(3, 4))
    x[0, 0] = NAN
    for rows, weights in ((x, np.full(3, 2.0)), (x.repeat(2, 0), None)):
        with pytest.raises(ValueError, match=r"need shrinkage"):
            par.Gaussian.from_data(rows, weights=weights)
        with pytest.raises(ValueError, match=r"need shrinkage"):
            par.LowRankGaussian.from_data(rows, weights=weights, rank=2)


def test_mixtures_nets_and_estimates_read_arrays():
    x, tensor = STATES.astype(float), torch.tensor(STATES).float()
    visible = np.random.default_rng(3).random(x.shape) < 0.5
    mixture = par.Mixture(torch.zeros(2), [par.FullyIndependent.from_data(x[:20]), par.FullyIndependent.from_data(x[20:])])
    np.testing.assert_array_equal(mixture.component_log_joint(x, visible), mixture.component_log_joint(torch.tensor(x), torch.tensor(visible)))
    np.testing.assert_array_equal(mixture.component_posterior(STATES).probs, mixture.component_posterior(torch.tensor(STATES)).probs)
    chain = par.FVSBN(4)()
    np.testing.assert_allclose(chain.log_prob(STATES).detach(), chain.log_prob(tensor).detach())
    torch.manual_seed(0)
    found = par.estimate_log_marginal(chain, x, visible, num_particles=10)
    torch.manual_seed(0)
    np.testing.assert_allclose(found.estimate, par.estimate_log_marginal(chain, tensor, torch.tensor(visible), num_particles=10).estimate, rtol=1e-6)


def test_held_out_scores_and_comparisons_read_arrays_and_nan():
    hidden = np.random.default_rng(1).random(STATES.shape) < 0.2
    torn = np.where(hidden, NAN, STATES)
    models = {"chain": par.MarkovChain.from_data(STATES), "tree": par.ChowLiuTree.from_data(STATES)}
    by_nan = par.compare(models, pd.DataFrame(torn))
    told = par.compare(models, torch.tensor(STATES), torch.tensor(~hidden))
    assert [row.score for row in by_nan.rows] == [row.score for row in told.rows]
    assert torch.equal(par.comparison.held_out_score(models["tree"], torn), par.comparison.held_out_score(models["tree"], STATES, ~hidden))
    recipes = {"chain": par.comparison.TableModel(par.MarkovChain), "tree": par.ChowLiuTree.from_data}
    found = par.compare(recipes, pd.DataFrame(STATES))
    assert [row.score for row in found.rows] == [row.score for row in par.compare(recipes, torch.tensor(STATES)).rows]
    for recipe in recipes.values():
        with pytest.raises(ValueError, match=r"whole rows|complete rows"):
            par.compare({"a": recipe}, torn)
    posterior = par.comparison.structure_posterior(pd.DataFrame(STATES))
    posterior.predictive(STATES)


def test_training_reads_arrays_and_nan():
    x = STATES.astype(float)
    hidden = np.random.default_rng(1).random(x.shape) < 0.2

    def trained(*data):
        torch.manual_seed(0)
        family = par.OrderlessNADE(4, hidden=3)
        par.fit(family, *data, epochs=2, progress=False)
        return [w.tolist() for w in family.parameters()]

    by_tensor = trained(torch.tensor(x), None, torch.tensor(~hidden))
    assert trained(np.where(hidden, NAN, x)) == by_tensor
    assert trained(pd.DataFrame(x), None, ~hidden) == by_tensor
    assert trained(x) == trained(torch.tensor(x)) != by_tensor
    with pytest.raises(par.IntractableError):  # of one order, and so many hidden cells before the last seen, there is no training
        par.fit(par.FVSBN(40), np.where(np.arange(40) < 39, NAN, np.ones((4, 40))), epochs=1, progress=False)


def test_draws_of_weights_read_arrays_and_nan():
    x = STATES[:10].astype(float)
    torn = np.where(np.arange(4) == 3, NAN, x)
    model = par.Bayesian(par.FVSBN(4))
    a = model.fit(torn, method="mean-field", steps=5, num_draws=2, num_chains=1)
    b = model.fit(torch.tensor(x), torch.tensor([True, True, True, False]), method="mean-field", steps=5, num_draws=2, num_chains=1)
    assert all(torch.equal(a.draws[k], b.draws[k]) for k in a.draws)


def test_rank_normal_reads_arrays_and_nan():
    x = np.random.default_rng(0).normal(size=(20, 2))
    x[0, 0] = NAN
    a, b = par.RankNormal.from_data(pd.DataFrame(x)), par.RankNormal.from_data(torch.tensor(x), visible=torch.tensor(~np.isnan(x)))
    assert torch.equal(a.scores, b.scores)
    assert torch.equal(a.values, b.values)


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3), (5, 1, 3)])
def test_patterns_are_one_or_one_for_each_row(shape):
    with pytest.raises(ValueError, match="one pattern, or one for each of the 5 rows"):
        training_rows(torch.zeros(5, 3), torch.zeros(shape, dtype=torch.bool), None)
