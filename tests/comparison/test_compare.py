"""One table: who is scored how, paired errors, the story, and what is refused."""

import math

import pytest
import torch

from pyro_ar.comparison import (
    TableModel,
    average,
    compare,
    cross_validate,
    held_out_score,
    paired_difference,
    stacking_weights,
    table_models,
    to_inference_data,
)
from pyro_ar.comparison.held_out import folds_of
from pyro_ar.experiments.distances import NewtonModel
from pyro_ar.inference.bayesian import Bayesian
from pyro_ar.mixture import Mixture
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.tables import ChowLiuTree, FullTable, FullyIndependent, MarkovChain

N = 5


def truth(name):
    torch.manual_seed(7)
    flip = torch.tensor([[1.2, -1.2], [-1.2, 1.2]])
    if name == "FVSBN":
        joint = FVSBN(N)()
        return joint.with_tensors({k: 2.0 * torch.randn_like(t) for k, t in joint.tensors.items()})
    return {
        "independent": FullyIndependent(torch.tensor([[0.0, 0.4]] * N)),
        "Markov chain 1": MarkovChain(torch.zeros(2), flip.expand(N - 1, 2, 2)),
        "Chow-Liu tree": ChowLiuTree([(), (0,), (0,), (0,), (0,)], [torch.zeros(2), *[flip] * (N - 1)]),
    }[name]


def line_up():
    models = table_models([2] * N, (0.5, 2.0, 8.0, 32.0), orders=(1, 2))
    return {**models, "FVSBN": NewtonModel(lambda: FVSBN(N))}


@pytest.mark.parametrize("name", [
    pytest.param("independent", marks=pytest.mark.slow), pytest.param("Markov chain 1", marks=pytest.mark.slow), "Chow-Liu tree", "FVSBN"])
def test_the_truth_wins_as_rows_grow(name):
    """The truth is the best, or within two paired standard errors of a model that contains it; and it has the fewest parameters of those."""
    x = truth(name).sample((1500,)).detach()
    found = compare(line_up(), x, folds=3)
    near = [row for row in found.rows if row.difference >= -2 * row.difference_error]
    assert name in [row.name for row in near]
    # A tree has as many parameters as the chain that it may be.
    assert min(near, key=lambda row: (row.parameters, row.name != name)).name == name
    assert found["independent"].difference < -10 * found["independent"].difference_error or name == "independent"


def test_simpler_models_win_when_rows_are_few():
    """On 12 rows of an FVSBN some table of few parameters beats it, in most of eight draws; on 1500 none does."""
    x = truth("FVSBN").sample((8, 1500)).detach()
    few = [compare(line_up(), some[:12], folds=4) for some in x]
    assert sum(f.best != "FVSBN" for f in few) >= 5
    assert compare(line_up(), x[0], folds=3).best == "FVSBN"


def test_every_number_comes_from_a_public_function():
    torch.manual_seed(0)
    x = truth("Markov chain 1").sample((60,))
    data = to_inference_data(MarkovChain.posterior(x, equivalent_sample_size=1.0), x)
    models = {"exact": TableModel(MarkovChain), "draws": data, "plug-in": lambda x: FullyIndependent.from_data(x, num_states=2)}
    found = compare(models, x, folds=4, seed=3)
    assert found["exact"].log_evidence == pytest.approx(TableModel(MarkovChain, num_states=2).log_evidence(x).item())
    assert found["exact"].evidence_error == 0
    assert found["draws"].log_evidence is None
    torch.testing.assert_close(found.pointwise["exact"], TableModel(MarkovChain, num_states=2).leave_one_out(x))
    torch.testing.assert_close(found.pointwise["plug-in"], cross_validate({"p": models["plug-in"]}, x, folds=4, seed=3)["p"])
    best = found.pointwise[found.best]
    for row in found.rows:
        assert row.score == pytest.approx(found.pointwise[row.name].mean().item())
        gap = paired_difference(found.pointwise[row.name], best)
        assert (row.difference, row.difference_error) == (pytest.approx(gap.mean), pytest.approx(gap.error))
    assert found.weights == pytest.approx(stacking_weights(found.pointwise))
    assert [row.method for row in sorted(found.rows, key=lambda r: r.name)] == ["PSIS-LOO (exact posterior)", "LOO, exact", "cross-validation, 4 folds"]
    text = str(found)
    assert "PSIS-LOO" in text
    assert "approximate" not in text
    assert "Point estimates have none" in text
    assert len(found.figure().axes) == 1


def test_fitted_joints_are_held_out():
    x = truth("Markov chain 1").sample((200,))
    joints = {"chain": MarkovChain.from_data(x[:100]), "full": FullTable.from_data(x[:100])}
    found = compare(joints, x[100:])
    torch.testing.assert_close(found.pointwise["chain"], joints["chain"].log_prob(x[100:]).double())
    assert {row.method for row in found.rows} == {"held out"}
    visible = torch.rand(100, N) < 0.5
    hidden = compare(joints, x[100:].masked_fill(~visible, math.nan), visible)
    torch.testing.assert_close(hidden.pointwise["full"], joints["full"].marginal(visible).log_prob(x[100:]).double())


def test_averages_are_joints():
    x = truth("Chow-Liu tree").sample((150,))
    joints = {"chain": MarkovChain.from_data(x[:70]), "tree": ChowLiuTree.from_data(x[:70]), "coins": FullyIndependent.from_data(x[:70])}
    found = compare(joints, x[70:])
    joint = average(joints, found.weights)
    assert isinstance(joint, Mixture)
    # Never worse than the best one on the rows that chose the weights.
    assert held_out_score(joint, x[70:]).mean().item() >= found.rows[0].score - 1e-6
    seen = torch.tensor([True] * 3 + [False] * 2)
    assert joint.marginal(seen).log_prob(x).shape == (150,)
    with pytest.raises(ValueError, match="same names"):
        average(joints, {"chain": 1.0})
    with pytest.raises(ValueError, match="not all 0"):
        average(joints, dict.fromkeys(joints, 0.0))


def test_stacking_weights_beat_a_grid():
    scores = {"a": -torch.rand(40).double() * 800 - 800, "b": -torch.rand(40).double() * 800 - 800}  # where exp would underflow
    w = stacking_weights(scores)
    def mean(a):
        return torch.logaddexp(scores["a"] + math.log(a), scores["b"] + math.log(1 - a)).mean().item()
    assert mean(w["a"]) >= max(mean((i + 0.5) / 200) for i in range(200)) - 1e-6


def test_folds_and_pairs():
    fold = folds_of(23, 5, seed=1)
    assert sorted(torch.bincount(fold).tolist()) == [4, 4, 5, 5, 5]
    assert torch.equal(fold, folds_of(23, 5, seed=1))
    a, b = torch.randn(50), torch.randn(50)
    gap = paired_difference(a, b)
    assert gap.error == pytest.approx(((a - b).double().std() / math.sqrt(50)).item())


def test_posteriors_of_weights():
    x = truth("FVSBN").sample((40,)).detach()
    model = Bayesian(FVSBN(N), 1.5)
    posterior = model.fit(x, method="laplace", num_draws=100, num_chains=2, steps=300, progress=False)
    posterior.evidence = model.log_evidence(x, num_particles=16, num_runs=2)
    found = compare({"FVSBN": posterior, "coins": TableModel(FullyIndependent)}, x)
    assert found["FVSBN"].parameters == 15
    assert (found["FVSBN"].log_evidence, found["FVSBN"].evidence_error) == (posterior.evidence.value, posterior.evidence.error)
    assert f"{posterior.evidence.value:.2f} ±{posterior.evidence.error:.2f}" in str(found)
    assert "FVSBN: log density of the mode" in str(found)
    bad = found["FVSBN"].bad_k
    again = compare({"FVSBN": posterior}, x, refits=1)
    assert bad == 0 or again["FVSBN"].bad_k < bad
    nuts = Bayesian(FVSBN(2)).fit(x[:, :2], method="nuts", num_draws=20, num_chains=2, warmup=8, progress=False)
    said = str(compare({"small": nuts}, x[:, :2]))
    d = nuts.diagnostics()
    assert f"small: 40 draws of NUTS, largest R-hat {d.r_hat:.3f}, smallest effective sample {d.ess_bulk:.0f} (bulk)" in said
    assert f"{d.divergences} divergences" in said
    with pytest.raises(ValueError, match="FVSBN: the posterior must be scored on the rows it was conditioned on"):
        compare({"FVSBN": posterior}, x[:-1])


def test_bad_input_is_named():
    x = torch.randint(0, 2, (20, N)).float()
    joint, recipe = FullTable.from_data(x), TableModel(FullTable)
    with pytest.raises(ValueError, match="at least one model"):
        compare({}, x)
    with pytest.raises(ValueError, match="2 rows or more"):
        compare({"a": recipe}, x[:0])
    with pytest.raises(ValueError, match="held out of their fit"):
        compare({"a": joint, "b": recipe}, x)
    with pytest.raises(ValueError, match=r"wide scores one or more rows of its event shape \(7,\)"):
        compare({"a": joint, "wide": FullyIndependent(torch.zeros(7, 2))}, x)
    with pytest.raises(ValueError, match="draws must be one joint"):
        compare({"draws": FullyIndependent(torch.zeros(9, N, 2))}, x)
    with pytest.raises(ValueError, match=r"a: .*states 0 to 1"):
        compare({"a": joint}, x + 1)
    with pytest.raises(ValueError, match="a: column 0 must hold the states 0 to 1"):
        compare({"a": TableModel(FullTable, num_states=2)}, torch.full((9, N), 2.0))
    with pytest.raises(ValueError, match="certain must give every row a finite"):
        compare({"certain": FullTable.from_data(torch.zeros(3, N), pseudocount=0.0, num_states=2)}, torch.ones(5, N))
    with pytest.raises(ValueError, match="does not keep its rows"):
        compare({"a": FullTable.posterior(x, equivalent_sample_size=1.0)}, x)
    with pytest.raises(ValueError, match="draws must be of the posterior given the rows"):
        compare({"a": to_inference_data(FullTable.posterior(x, equivalent_sample_size=1.0), x)}, 1 - x)
    with pytest.raises(ValueError, match="serves fitted joints"):
        compare({"a": recipe}, x, torch.ones_like(x).bool())
    with pytest.raises(ValueError, match="folds must be 2"):
        compare({"a": lambda x: joint}, x, folds=1)
    with pytest.raises(ValueError, match="at least 30 rows"):
        compare({"a": lambda x: joint}, x, folds=30)
    with pytest.raises(ValueError, match="of the same rows"):
        paired_difference(torch.zeros(4), torch.zeros(5))


def test_models_scored_on_different_cells_are_refused():
    x = truth("Markov chain 1").sample((30,))
    visible = torch.ones_like(x).bool()
    visible[3, 2] = visible[7, 1] = False
    tables = MarkovChain.posterior(x, equivalent_sample_size=1.0)
    # A joint does not say what its draws were conditioned on, so these pass for draws given the visible cells.
    hidden, whole = to_inference_data(tables.sample((200,)), x, visible, how="by hand"), to_inference_data(tables, x)
    with pytest.raises(ValueError, match=r"hid and mc differ in 2 cells, the first in row 3, position \(2,\), which only mc counts"):
        compare({"mc": TableModel(MarkovChain), "hid": hidden}, x)
    with pytest.raises(ValueError, match="whole and visible= differ in 2 cells"):
        compare({"whole": whole}, x, visible)
    with pytest.raises(ValueError, match="same cells: b and a differ"):
        compare({"a": whole, "b": hidden}, x)
    assert compare({"hid": hidden}, x, visible).best == "hid"
    posterior = Bayesian(FVSBN(N)).fit(x, visible, method="mean-field", num_draws=20, num_chains=1, steps=20, progress=False)
    with pytest.raises(ValueError, match="draws and mc differ in 2 cells"):
        compare({"mc": TableModel(MarkovChain), "draws": posterior}, x)
    with pytest.raises(ValueError, match="draws and visible= differ"):
        compare({"draws": posterior}, x, torch.ones_like(visible))
    found = compare({"draws": posterior, "hid": hidden}, x, visible, refits=1)  # neither can be fitted again: no failure
    assert found["draws"].method == "PSIS-LOO (mean-field, approximate)"
    assert found["hid"].method == "PSIS-LOO (by hand)"
    assert "draws: ELBO" in str(found)
    assert "Draws of draws are those of an approximate guide" in str(found)


def test_notes_say_which_models_can_be_fitted_again():
    x = truth("FVSBN").sample((12,)).detach()
    draws = FullyIndependent(4.0 * torch.randn(40, N, 2))  # far too wide: bad k
    posterior = Bayesian(FVSBN(N), 5.0).fit(x, method="mean-field", num_draws=20, num_chains=1, steps=2, progress=False)
    found = compare({"wild": to_inference_data(draws, x), "weights": posterior}, x)
    assert found["wild"].bad_k > 0
    assert "bad in wild, which compare cannot fit again" in str(found)
    posterior.elbo_change = 0.5
    assert "weights: ELBO" in str(compare({"weights": posterior}, x))
    assert "not settled, fit with more steps" in str(compare({"weights": posterior}, x))
    assert compare({"wild": to_inference_data(draws, x)}, x, refits=2)["wild"].bad_k > 0
    with pytest.raises(ValueError, match="refits must be 0 or more"):
        compare({"weights": posterior}, x, refits=-1)


def test_scores_that_are_none_are_refused():
    ok = torch.zeros(4)
    for bad, match in ((torch.tensor([0.0, math.nan, 0.0, 0.0]), "finite"), (torch.zeros(0), "N 1 or more"), (torch.zeros(4, 1), "one score per row")):
        with pytest.raises(ValueError, match=match):
            stacking_weights({"a": ok, "b": bad})
    with pytest.raises(ValueError, match="paired scores must be finite"):
        paired_difference(ok, torch.tensor([0.0, -math.inf, 0.0, 0.0]))
    with pytest.raises(ValueError, match="models by name"):
        compare([TableModel(FullTable)], torch.zeros(5, N))
    with pytest.raises(ValueError, match="must be a number, or several"):
        TableModel(FullTable, "1")
    found = compare({"a": TableModel(FullyIndependent)}, torch.randint(0, 2, (9, N)))
    with pytest.raises(KeyError, match="there are a"):
        found["zz"]
