"""Every standard error that is reported, against the spread over independent repeats of what it is the error of: too small or too large fails.

The ratio of the spread over R repeats to the root mean square of the claimed errors has a relative standard error of about 1 / sqrt(2 R) if
estimates are normal: .05 for 200 repeats, so that .8 and 1.25 are 4.5 of them away (1e-5 false alarms), and .07 for 100, so that .7 and 1.4
are 4.7 away (3e-6), and .09 for 60, .65 and 1.5; tails heavier than normal may make that 1e-3. Seeds are fixed. A lost 1 / sqrt(N), an error of the sum
for that of the
mean, half an error and a doubled one are far outside.
"""

import csv
import math

import numpy as np
import pytest
import torch

from recording import Ledger, RecordingFamily, RecordingJoint, joint_recipe, numbered
from torch.distributions import Independent, Normal

import pyro_ar as par

from pyro_ar.comparison import NeuralModel, TableModel, cross_validate, paired_difference, to_inference_data
from pyro_ar.elliptical import Gaussian
from pyro_ar.experiments import distances as of_distances
from pyro_ar.experiments.compare import report as comparison_report
from pyro_ar.experiments.compare import run as comparison
from pyro_ar.experiments.compare.run import Plan, run
from pyro_ar.experiments.distances import distances
from pyro_ar.experiments.store import Results
from pyro_ar.inference import estimate
from pyro_ar.inference.annealing import annealed_log_evidence
from pyro_ar.inference.arviz_bridge import psis_loo
from pyro_ar.inference.bayesian import Bayesian
from pyro_ar.inference.divergence import closest_table, estimate_kl, kl_divergence
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.tables import FullyIndependent, MarkovChain


def assert_honest(values, errors, low, high):
    """The spread of the values is what their errors say."""
    values, errors = torch.as_tensor(values, dtype=torch.float64), torch.as_tensor(errors, dtype=torch.float64)
    ratio = (values.std() / errors.square().mean().sqrt()).item()
    assert low < ratio < high, f"the spread is {ratio:.2f} times the claimed errors"


def bars(axis, along=1):
    """Half the length of each bar of a picture, across or upwards, in its order."""
    return [float(np.diff(segment[:, along])[0]) / 2 for container in axis.containers for segment in container[2][0].get_segments()]


@pytest.fixture
def truth():
    """Three binary variables, no two rows of them alike in probability."""
    first, steps = torch.tensor([0.6, 0.4]), torch.tensor([[[0.8, 0.2], [0.3, 0.7]], [[0.9, 0.1], [0.25, 0.75]]])
    return MarkovChain(first.double().log(), steps.double().log())


# Estimates by draws.


def test_estimate_kl():
    p, q = Gaussian(torch.zeros(2), torch.eye(2)), Gaussian(torch.ones(2), 2 * torch.eye(2))
    for chunk in (100, 99, 30):  # in one piece and in several
        found = estimate_kl(p.expand((200,)), q, 100, chunk=chunk)
        assert_honest(found.value, found.error, 0.8, 1.25)
        # 5 standard errors of the mean of all: 6e-7 false alarms
        assert abs(found.value.mean() - kl_divergence(p, q)) < 5 * found.value.std() / math.sqrt(200)


@pytest.mark.parametrize("at_once", [2**22, 200 * 6 * 25 // 2])
def test_estimate_log_marginal(at_once, monkeypatch):
    """Particles in one piece, and in three."""
    monkeypatch.setattr(estimate, "TURN", at_once)
    torch.manual_seed(1)
    joint = FVSBN(6)()
    joint = joint.with_tensors({name: 1.5 * torch.randn_like(t.detach()) for name, t in joint.tensors.items()})
    x, visible = torch.tensor([0.0, 1, 0, 1, 1, 0]), torch.tensor([False, True, False, True, False, True])
    found = par.estimate_log_marginal(joint, x.expand(200, 6), visible, num_particles=400)
    assert_honest(found.estimate, found.standard_error, 0.8, 1.25)


def annealed(seed, **options):
    """Log of the mean of exp(-(t - 1)^2 / (2 0.2^2)) under a standard normal."""
    prior = Independent(Normal(torch.zeros(1), 1.0), 1)
    return annealed_log_evidence(lambda t: -0.5 * ((t[:, 0] - 1) / 0.2) ** 2, prior, moves=1, seed=seed, **options)


EXACT = math.log(0.2) - 0.5 * math.log(1.04) - 0.5 / 1.04


def test_log_evidence():
    found = [annealed(seed, num_particles=24, num_runs=8, leapfrog=3, efficiency=0.5) for seed in range(100)]
    assert_honest([e.value for e in found], [e.error for e in found], 0.7, 1.4)
    z = torch.tensor([e.value - EXACT for e in found], dtype=torch.float64).exp()
    assert abs(z.mean() - 1) < 5 * z.std() / 10  # unbiased: 5 standard errors, 6e-7 false alarms


@pytest.mark.parametrize("method", ["smc", "ais"])
def test_log_evidence_is_the_log_of_the_mean(method):
    """Of the runs' estimates of Z, not the mean of their logs, which is too small; its error is that of the mean, by the delta method."""
    for seed in range(5):
        e = annealed(seed, num_particles=8, num_runs=5, leapfrog=2, efficiency=0.5, method=method)
        z = np.exp(np.array(e.runs) - EXACT)
        assert e.value - EXACT == pytest.approx(math.log(z.mean()), abs=1e-5)
        assert e.value > np.mean(e.runs) + 1e-3
        far = max(e.runs) - min(e.runs) > 10
        assert e.error == (math.inf if far else pytest.approx(z.std(ddof=1) / z.mean() / math.sqrt(5), rel=1e-4))


def test_log_evidence_of_a_family():
    """Against the sum over a fine grid of its one weight."""
    x = torch.tensor([[1.0]] * 9 + [[0.0]] * 3)
    model = Bayesian(FVSBN(1), prior=2.0)
    found = [model.log_evidence(x, num_particles=16, num_runs=6, moves=1, leapfrog=2, efficiency=0.5, seed=seed) for seed in range(60)]
    assert_honest([e.value for e in found], [e.error for e in found], 0.65, 1.5)
    grid = torch.linspace(-15, 15, 20001, dtype=torch.float64)
    log_p = Normal(0, 2.0).log_prob(grid) + 9 * torch.nn.functional.logsigmoid(grid) + 3 * torch.nn.functional.logsigmoid(-grid)
    exact = (log_p.logsumexp(0) + math.log(30 / 20000)).item()
    z = torch.tensor([e.value - exact for e in found], dtype=torch.float64).exp()
    assert abs(z.mean() - 1) < 5 * z.std() / math.sqrt(60)


# Distances over draws of rows.


def few(monkeypatch, models):
    monkeypatch.setattr(of_distances, "table_models", lambda sizes, strengths: models)


def test_distances(truth, monkeypatch):
    few(monkeypatch, {"independent": TableModel(FullyIndependent)})
    for repeats in (2, 5):  # so that an error that does not know how many there were is seen too
        found = [distances(truth, {}, sizes=(100,), repeats=repeats, seed=seed)[0] for seed in range(100)]
        assert_honest([d.open for d in found], [d.error for d in found], 0.7, 1.4)


def test_repeats_of_distances_are_draws_of_their_own(truth, monkeypatch):
    """Each repeat has rows of its own; more rows contain the fewer; all models meet the same ones; another seed, others."""
    few(monkeypatch, {"a": TableModel(FullyIndependent), "b": TableModel(MarkovChain)})
    met = []
    fit = of_distances.fit_recipe
    monkeypatch.setattr(of_distances, "fit_recipe", lambda name, recipe, x: (met.append((name, x)), fit(name, recipe, x))[1])
    for seed in (0, 1):
        torch.manual_seed(5)  # it has a seed of its own
        distances(truth, {}, sizes=(20, 50), repeats=3, seed=seed)
    rows = {"a": [[], []], "b": [[], []]}
    for turn, (name, x) in enumerate(met):
        rows[name][turn // 12].append(x)
    for run_a, run_b in zip(rows["a"], rows["b"], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(run_a, run_b, strict=True))
    first, second = rows["a"]
    assert [len(x) for x in first] == [20] * 3 + [50] * 3
    assert all(torch.equal(small, large[:20]) for small, large in zip(first[:3], first[3:], strict=True))
    large = [*first[3:], *second[3:]]
    assert all(not torch.equal(large[i], large[j]) for i in range(6) for j in range(i))


# Scores of rows, and their differences.


def signed(found, first, second):
    """Differences of `first` less `second` and their claimed errors, whichever of the two was the best."""
    worse = [f[first] if f[first].difference else f[second] for f in found]
    return [row.difference if row.name == first else -row.difference for row in worse], [row.difference_error for row in worse]


def test_compare_of_fitted_joints(truth):
    models = {"independent": closest_table(truth, FullyIndependent), "chain": truth}
    found = [{row.name: row for row in par.compare(models, truth.sample((80,))).rows} for _ in range(100)]
    for name in models:
        assert_honest([f[name].score for f in found], [f[name].error for f in found], 0.7, 1.4)
    assert_honest(*signed(found, "independent", "chain"), 0.7, 1.4)
    last = par.compare(models, truth.sample((80,)))
    assert bars(last.figure().axes[0], along=0) == pytest.approx([row.difference_error for row in last.rows])
    assert all(f" {row.error:.4f} " in str(last) for row in last.rows)
    assert f" {last.rows[1].difference_error:.4f} " in str(last)


def test_compare_of_recipes_and_draws(truth):
    """Leave-one-out in closed form, PSIS-LOO and cross-validation, of all rows drawn anew."""
    found, sums = [], []
    for _ in range(60):
        x = truth.sample((50,)).float()
        draws = to_inference_data(MarkovChain.posterior(x, equivalent_sample_size=2.0, num_states=2), x, num_draws=100)
        models = {"exact": TableModel(FullyIndependent, 1.0, num_states=2), "draws": draws,
                  "folds": lambda x: MarkovChain.from_data(x, num_states=2)}
        found.append({row.name: row for row in par.compare(models, x, folds=3).rows})
        sums.append(psis_loo(draws))
    for name, method in {"exact": "LOO, exact", "draws": "PSIS-LOO (exact posterior)", "folds": "cross-validation, 3 folds"}.items():
        assert {f[name].method for f in found} == {method}
        assert_honest([f[name].score for f in found], [f[name].error for f in found], 0.65, 1.5)
    assert_honest([s.elpd for s in sums], [s.error for s in sums], 0.65, 1.5)  # of the sum over the rows
    for other in ("draws", "folds"):
        pairs = [f for f in found if 0 in (f["exact"].difference, f[other].difference)]
        assert len(pairs) > 20
        assert_honest(*signed(pairs, "exact", other), 0.6, 1.65)


def test_paired_differences_after_cross_validation(truth):
    recipes = {"independent": lambda x: FullyIndependent.from_data(x, num_states=2), "chain": lambda x: MarkovChain.from_data(x, num_states=2)}
    scores = [cross_validate(recipes, truth.sample((60,)), folds=3) for _ in range(100)]
    gaps = [paired_difference(s["independent"], s["chain"]) for s in scores]
    assert_honest([gap.mean for gap in gaps], [gap.error for gap in gaps], 0.7, 1.4)


def test_the_command_compare(truth, monkeypatch, tmp_path):
    """Of the score, and of the difference from the best; the table and the file show these."""
    joints = {"independent": closest_table(truth, FullyIndependent), "FVSBN": truth}
    monkeypatch.setattr(comparison, "fit_recipe", lambda name, recipe, x: joints[name])
    units, found = [], []
    for _ in range(100):
        x = truth.sample((70,))
        plan = Plan("d", x[:10], x[10:], (10,), tuple(joints))
        units.append([comparison._one_unit(plan, 10, model) for model in plan.models])
        found.append({s.model: s for s in comparison_report.summarise(units[-1])})
    for name in joints:
        assert_honest([f[name].nats for f in found], [f[name].error for f in found], 0.7, 1.4)
    worse = [f["independent"] if f["independent"].worse_by.mean else f["FVSBN"] for f in found]
    assert_honest([s.worse_by.mean if s.model == "independent" else -s.worse_by.mean for s in worse], [s.worse_by.error for s in worse], 0.7, 1.4)
    summaries = list(found[-1].values())
    table = comparison_report._text(summaries, 10)
    comparison_report._write(plan, summaries, tmp_path, table)
    with open(tmp_path / "results.csv") as file:
        kept = list(csv.DictReader(file))
    for s, line in zip(summaries, kept, strict=True):
        assert (float(line["se"]), float(line["paired_se"])) == (round(s.error, 6), round(s.worse_by.error, 6))
        assert f" {s.error:.4f} " in table
    assert f" {worse[-1].worse_by.error:.4f} " in table
    left, right = comparison_report._draw(plan, summaries).axes
    by_model = [found[-1][model] for model in plan.models]
    assert bars(left) == pytest.approx([s.error for s in by_model])
    assert bars(right) == pytest.approx([s.worse_by.error for s in by_model])


# Which rows a comparison may see.


@pytest.mark.parametrize("kind", ["neural", "functions"])
def test_compare_scores_no_row_that_it_fitted(kind):
    ledger = Ledger(numbered(40, 3))
    models = {"neural": {"a": NeuralModel(lambda: RecordingFamily(ledger, 3), {"epochs": 1, "batch_size": 16})},
              "functions": {"a": joint_recipe(ledger), "b": joint_recipe(ledger)}}[kind]
    par.compare(models, ledger.x.float(), folds=4)
    ledger.assert_apart()
    assert len(ledger.fits) == 4 * len(models)
    assert all(fit <= set(range(40)) for fit in ledger.fits)
    if kind == "functions":
        assert all(fit == set(range(40)) - set(asked) for fit, asked in zip(ledger.fits, ledger.scores, strict=True))
        assert ledger.fits[::2] == ledger.fits[1::2]  # both meet the same folds
        assert sorted(sum(ledger.scores[::2], [])) == list(range(40))  # noqa: RUF017


def test_the_command_compare_scores_no_row_that_it_fitted(tmp_path, monkeypatch):
    """Test rows stay out of every fit; more training rows contain the fewer."""
    bits = (torch.arange(64)[:, None] >> torch.arange(6)) & 1
    x = bits[torch.randperm(64, generator=torch.Generator().manual_seed(0))].double()
    ledger = Ledger(x)
    plan = Plan("d", x[:44], x[44:], (20, 44), ("independent", "FVSBN"), steps=4)
    fitted = []

    def fit(name, recipe, rows):
        joint = RecordingJoint(ledger, 6)
        ledger.fitted(joint, rows)
        fitted.append((name, len(rows)))
        return joint

    evidences = TableModel.log_evidences
    seen = []
    monkeypatch.setattr(TableModel, "log_evidences", lambda self, x: (seen.append(set(ledger.numbers(x))), evidences(self, x))[1])
    monkeypatch.setattr(comparison, "fit_recipe", fit)
    list(run(plan, Results(tmp_path / "results.json", plan.settings())))
    ledger.assert_apart()
    assert fitted == [("independent", 20), ("FVSBN", 20), ("independent", 44), ("FVSBN", 44)]
    assert ledger.fits[0] < ledger.fits[2] == set(range(44))
    assert seen == ledger.fits[::2]
    assert all(sorted(rows) == list(range(44, 64)) for rows in ledger.scores)
