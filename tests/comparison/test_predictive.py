"""The bridge to ArviZ: draws from everywhere, one finite value per row; PSIS-LOO against the exact answer."""

import math
import os
import subprocess

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoNormal
from pyro.optim import Adam

from pyro_ar.comparison import (
    TableModel,
    arviz_comparison,
    compare,
    guide_draws,
    loo,
    model_log_likelihood,
    pointwise_log_likelihood,
    refit_bad,
    stacking_weights,
    to_inference_data,
)
from pyro_ar.comparison.predictive import Loo
from pyro_ar.inference import arviz_bridge
from pyro_ar.inference.arviz_bridge import group_of
from pyro_ar.inference.bayesian import Bayesian
from pyro_ar.mixture import Mixture
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.tables import ChowLiuTree, FullTable, FullyIndependent, MarkovChain

N, D = 30, 4


def coins(x, visible=None):
    """Coins with priors on their logits: a vector latent, as weights are."""
    w = pyro.sample("w", dist.Normal(0.0, 1.5).expand([D]).to_event(1))
    joint = FullyIndependent(torch.stack([torch.zeros_like(w), w], -1))
    pyro.deterministic("twice", 2 * w)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", joint if visible is None else joint.marginal(visible), obs=x)


def likelihood(draws):
    return FullyIndependent(torch.stack([torch.zeros_like(draws["w"]), draws["w"]], -1))


def rows(count=N):
    return (torch.rand(count, D) < torch.tensor([0.2, 0.5, 0.7, 0.9])).float()


def test_draws_of_nuts():
    x = rows()
    mcmc = MCMC(NUTS(coins), 60, 60, disable_progbar=True)
    mcmc.run(x)
    by_joint = to_inference_data(mcmc, x, likelihood=likelihood)
    by_model = to_inference_data(mcmc, x, model=coins)
    expected = likelihood({"w": mcmc.get_samples()["w"].unsqueeze(1)}).log_prob(x)
    assert arviz_bridge.drawn_by(by_model) == "NUTS"
    for data in (by_joint, by_model):
        np.testing.assert_allclose(group_of(data, "log_likelihood")["x"][0], expected.numpy(), rtol=1e-5)
        assert group_of(data, "posterior")["w"].shape == (1, 60, D)
        assert group_of(data, "sample_stats")["diverging"].shape == (1, 60)
    assert loo(by_joint).pointwise.shape == (N,)
    few = MCMC(NUTS(coins), 3, 3, disable_progbar=True)
    few.run(x)
    with pytest.raises(ValueError, match="4 or more draws of each chain, so that its diagnostics can be computed; got 3"):
        to_inference_data(few, x, likelihood=likelihood)


@pytest.mark.parametrize("guide", [AutoNormal, AutoLowRankMultivariateNormal])
def test_draws_of_guides(guide):
    x = rows()
    guide = guide(coins, init_scale=0.3)
    svi = SVI(coins, guide, Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(30):
        svi.step(x)
    data = to_inference_data(guide, x, likelihood=likelihood, num_draws=50)
    assert group_of(data, "posterior")["w"].shape == (1, 50, D)
    assert group_of(data, "log_likelihood")["x"].shape == (1, 50, N)
    w = torch.as_tensor(group_of(data, "posterior")["w"][0])
    expected = likelihood({"w": w.unsqueeze(1)}).log_prob(x)
    np.testing.assert_allclose(group_of(data, "log_likelihood")["x"][0], expected.numpy(), rtol=1e-5)
    assert loo(data).method == f"PSIS-LOO ({type(guide).__name__}, approximate)"


def test_point_estimates_are_refused():
    x = rows()
    guide = AutoDelta(coins)
    guide(x)
    with pytest.raises(ValueError, match="point estimate"):
        to_inference_data(guide, x, likelihood=likelihood, num_draws=5)
    with pytest.raises(ValueError, match="num_draws must be 2"):
        to_inference_data(guide, x, likelihood=likelihood, num_draws=1)
    with pytest.raises(ValueError, match="point estimate"):
        to_inference_data(FullyIndependent(torch.zeros(D, 2)), x)
    with pytest.raises(ValueError, match="2 draws or more"):
        to_inference_data(FullyIndependent(torch.zeros(1, D, 2)), x)
    with pytest.raises(ValueError, match="all draws are equal"):
        to_inference_data(FullyIndependent(torch.zeros(5, D, 2)), x)


def test_hidden_cells_do_not_count():
    x, visible = rows(), torch.rand(N, D) < 0.5
    draws = FullyIndependent(torch.randn(2, 20, D, 2))
    got = group_of(to_inference_data(draws, x.masked_fill(~visible, math.nan), visible), "log_likelihood")["x"]
    cells = draws.logits.log_softmax(-1)[:, :, None].expand(2, 20, N, D, 2).gather(-1, x.long()[None, None, :, :, None].expand(2, 20, N, D, 1)).squeeze(-1)
    np.testing.assert_allclose(got, torch.where(visible, cells, 0).sum(-1).numpy(), rtol=1e-4, atol=1e-5)


def test_classes_are_summed_out():
    """Of a mixture as a joint, and of an enumerated class in a Pyro model; not drawn (ecosystem.md, trap 3)."""
    x = rows()
    weights, tables = torch.randn(20, 3), torch.randn(20, 3, D, 2)
    expected = (weights.log_softmax(-1)[..., None] + FullyIndependent(tables).log_prob(x[:, None, None]).permute(1, 2, 0)).logsumexp(1)
    joint = Mixture(weights, FullyIndependent(tables))
    torch.testing.assert_close(pointwise_log_likelihood(joint, x), expected)

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        t = pyro.sample("t", dist.Normal(0.0, 1.0).expand([3, D, 2]).to_event(3))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=w))
            pyro.sample("x", FullyIndependent(t[z]), obs=x)

    torch.testing.assert_close(model_log_likelihood(model, {"w": weights, "t": tables}, x), expected)


def test_masks_plates_and_factors():
    """A nested plate is summed, `poutine.mask` counts, deterministic sites and factors do not."""
    x, seen = rows(), torch.rand(N) < 0.7

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([D]).to_event(1))
        with pyro.plate("rows", len(x), dim=-2), pyro.poutine.mask(mask=seen[:, None]):
            pyro.factor("ignored", torch.ones(()))
            with pyro.plate("columns", D, dim=-1):
                pyro.deterministic("also", w)
                pyro.sample("x", dist.Bernoulli(logits=w), obs=x)

    draws = {"w": torch.randn(7, D)}
    expected = dist.Bernoulli(logits=draws["w"][:, None]).log_prob(x).sum(-1) * seen
    torch.testing.assert_close(model_log_likelihood(model, draws, x), expected)


def test_bad_models_are_named():
    x = rows()

    def local(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z.unsqueeze(-1).expand(len(x), D)).to_event(1), obs=x)

    def coupled(x):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=z.unsqueeze(-1).expand(*z.shape, D)).to_event(1), obs=x)

    def scaled(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x), subsample_size=5) as index:
            pyro.sample("x", dist.Bernoulli(logits=w.expand(5, D)).to_event(1), obs=x[index])

    w = {"w": torch.randn(3)}
    with pytest.raises(ValueError, match="'z' is a latent of each row that cannot be enumerated"):
        model_log_likelihood(local, w, x)
    with pytest.raises(ValueError, match="'z' is a latent of each row, and its draws have seen"):
        model_log_likelihood(local, {**w, "z": torch.randn(3, N)}, x)
    with pytest.raises(ValueError, match="'z', which couples the rows"):
        model_log_likelihood(coupled, {"other": torch.zeros(3)}, x)
    with pytest.raises(ValueError, match="must not be subsampled"):
        model_log_likelihood(scaled, w, x)
    with pytest.raises(ValueError, match="plate called 'people'"):
        model_log_likelihood(coins, {"w": torch.randn(3, D)}, x, plate="people")
    with pytest.raises(ValueError, match="draws must hold the latent 'w'"):
        model_log_likelihood(coins, {"v": torch.randn(3, D)}, x)


def test_bad_input_is_named():
    x = rows()
    post = FullyIndependent.posterior(x, equivalent_sample_size=1.0)
    with pytest.raises(ValueError, match="one or more rows"):
        to_inference_data(post, torch.zeros(0, D))
    with pytest.raises(ValueError, match=r"event shape \(4,\)"):
        to_inference_data(post, torch.zeros(5, 3))
    with pytest.raises(ValueError, match="states 0 to 1"):
        to_inference_data(post, torch.full((5, D), 2.0))
    with pytest.raises(ValueError, match="finite log-probability"):
        to_inference_data(FullyIndependent(torch.tensor([0.0, -math.inf]).expand(6, D, 2)), torch.ones(3, D))
    with pytest.raises(ValueError, match="either likelihood"):
        to_inference_data({"w": torch.randn(1, 5, D)}, x)
    with pytest.raises(ValueError, match="batch shape \\(5,\\)"):
        to_inference_data({"w": torch.randn(1, 5, D)}, x, likelihood=lambda d: FullyIndependent(torch.zeros(D, 2)))
    with pytest.raises(ValueError, match="same chains and draws"):
        to_inference_data({"w": torch.randn(1, 5, D), "v": torch.randn(1, 6)}, x, likelihood=likelihood)
    with pytest.raises(ValueError, match="one log_likelihood variable"):
        loo(arviz_bridge.to_arviz({"posterior": {"w": np.zeros((1, 5))}}))


@pytest.mark.parametrize("table", [FullyIndependent, MarkovChain])
def test_psis_loo_is_the_exact_leave_one_out(table):
    """Of 4000 draws, where Pareto k is good: each row to 0.05 nats, the sum to 0.3."""
    torch.manual_seed(1)
    x = rows(200)
    found = loo(to_inference_data(table.posterior(x, equivalent_sample_size=4.0), x, num_draws=4000))
    exact = TableModel(table, 4.0).leave_one_out(x)
    good = found.pareto_k < found.good_k
    assert good.double().mean() > 0.9
    assert (found.pointwise - exact)[good].abs().max() < 0.05
    assert (found.pointwise - exact)[good].sum().abs() < 0.3
    refitted = refit_bad(found, x, TableModel(table, 4.0).with_states([2] * D).fit, limit=200)
    torch.testing.assert_close(refitted.pointwise[~good], exact[~good], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("chains", "draws"), [(4, 30), (1, 30), (2, 100), (4, 250), (4, 2500)])
def test_a_shape_is_good_below_what_all_draws_allow(chains, draws):
    """min(1 - 1 / log10(S), 0.7) of the S draws of all chains together (Vehtari et al. 2024, eq. 13), and ArviZ's own figure."""
    w = 0.1 * torch.randn(chains, draws, D)
    x = rows(5)
    data = to_inference_data({"w": w}, x, likelihood=likelihood)
    found = loo(data)
    assert found.good_k == pytest.approx(min(1 - math.log(10) / math.log(chains * draws), 0.7))
    if arviz.__version__.startswith("0."):
        assert found.good_k == pytest.approx(arviz.loo(data).good_k)
    between = found._replace(pareto_k=torch.tensor([0.0, found.good_k - 1e-3, found.good_k + 1e-3, found.good_k + 0.2, math.nan]).double())
    assert between.bad.tolist() == [3, 2]  # and so is what a comparison counts and fits again


def test_refits_replace_the_worst_rows_first():
    x = torch.cat([rows(20), torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 2)])
    k = torch.zeros(22).double()
    k[20:], k[3] = 1.0, 0.8
    found = Loo(torch.zeros(22).double(), k, 0.7, 1.0)
    assert found.bad.tolist()[:2] in ([20, 21], [21, 20])
    model = TableModel(FullTable, 1.0, num_states=2)
    one = refit_bad(found, x, model.fit, limit=1)
    assert one.bad.tolist() == [3]  # both equal rows at once
    torch.testing.assert_close(one.pointwise[20:], model.leave_one_out(x)[20:], rtol=1e-4, atol=1e-4)
    assert "1 refits" in one.method
    assert len(refit_bad(found, x, model.fit).bad) == 0


def test_stacking_weights_are_those_of_arviz():
    x = MarkovChain(torch.zeros(2), 1.2 * torch.eye(2).expand(3, 2, 2)).sample((150,))
    data = {name: to_inference_data(t.posterior(x, equivalent_sample_size=2.0), x, num_draws=500)
            for name, t in {"independent": FullyIndependent, "chain": MarkovChain, "full": FullTable}.items()}
    theirs = arviz_comparison(data)["weight"]
    ours = stacking_weights({name: loo(d).pointwise for name, d in data.items()})
    for name, weight in ours.items():
        assert weight == pytest.approx(theirs[name], abs=0.02)


def test_guide_draws_have_the_shapes_of_the_sites():
    """`Predictive` gives an AutoNormal's site a plate dimension that it does not have (ecosystem.md, trap 5)."""
    x = rows()
    guide = AutoNormal(coins)
    guide(x)
    assert guide_draws(guide, x, num_draws=6)["w"].shape == (6, D)


BOTH = """
import importlib.util, sys, warnings
import numpy as np
spec = importlib.util.spec_from_file_location("bridge", sys.argv[1])
bridge = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bridge)
warnings.simplefilter("error")
saved = np.load(sys.argv[2])
data = bridge.to_arviz({"posterior": {"w": saved["w"]}, "log_likelihood": {"x": saved["log_p"]}, "observed_data": {"x": saved["x"]}}, "NUTS")
assert bridge.drawn_by(data) == "NUTS"
found = bridge.psis_loo(data)
print(found.elpd, found.error, found.p, found.pareto_k.max(), len(found.pointwise), bridge.group_of(data, "observed_data")["x"].shape[0],
      bridge.diagnostics(data)["r_hat"].max(), len(bridge.compare_table({"a": data, "b": data})))
"""


def test_both_generations_of_arviz_agree(tmp_path):
    """On saved arrays: set PYRO_AR_ARVIZ1 to a Python with ArviZ 1.x, which needs no torch."""
    python = os.environ.get("PYRO_AR_ARVIZ1")
    if not python:
        pytest.skip("PYRO_AR_ARVIZ1 names no Python with ArviZ 1.x")
    x = rows()
    w = torch.randn(4, 250, D) * 0.2
    log_p = likelihood({"w": w.unsqueeze(2)}).log_prob(x)
    np.savez(tmp_path / "saved.npz", w=w.numpy(), log_p=log_p.numpy(), x=x.numpy())
    done = subprocess.run([python, "-c", BOTH, arviz_bridge.__file__, str(tmp_path / "saved.npz")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = [float(v) for v in done.stdout.split()]
    ours = arviz_bridge.psis_loo(arviz_bridge.to_arviz({"posterior": {"w": w.numpy()}, "log_likelihood": {"x": log_p.numpy()}}))
    # The two differ in how they smooth the largest weights, and 1.x in the denominator of the error.
    np.testing.assert_allclose(theirs[:3], [ours.elpd, ours.error, ours.p], rtol=0.03)
    assert theirs[4:6] == [N, N]


def test_tables_of_other_rows_are_refused():
    x = rows()
    for joint, structure in ((MarkovChain, {"order": 2}), (FullTable, {}), (FullyIndependent, {})):
        posterior = joint.posterior(x, equivalent_sample_size=1.0, num_states=2, **structure)
        assert loo(to_inference_data(posterior, x, num_draws=50)).pointwise.shape == (N,)
        for other in (x[:-1], 1 - x, torch.cat([x, x[:1]])):
            with pytest.raises(ValueError, match="table posterior must be scored on the rows it was conditioned on"):
                to_inference_data(posterior, other, num_draws=50)


def test_refits_must_make_one_joint():
    x = rows()
    found = Loo(torch.zeros(N), torch.full((N,), 2.0), 0.7, 1.0)
    with pytest.raises(ValueError, match="refit must be a function"):
        refit_bad(found, x, None)
    with pytest.raises(ValueError, match="refit must return one joint without batch"):
        refit_bad(found, x, lambda x: FullyIndependent(torch.zeros(3, D, 2)))
    assert refit_bad(found._replace(method="PSIS-LOO (NUTS)"), x, FullyIndependent.from_data, limit=1).method == "PSIS-LOO (NUTS), 1 refits"


def test_posteriors_are_scored_on_the_cells_they_were_fitted_to():
    """Of other cells the importance weights would take out what no row put in."""
    x, visible = rows(), torch.rand(N, D) < 0.7
    tables = FullyIndependent.posterior(x, equivalent_sample_size=1.0)
    refusal = r"scored on the cells it was conditioned on.*differs in \d+ of 120 cells"
    with pytest.raises(ValueError, match=refusal):
        to_inference_data(tables, x, visible)
    whole = to_inference_data(tables, x, torch.ones(D).bool(), num_draws=20)  # all is seen: the same as None
    assert arviz_bridge.drawn_by(whole) == "exact posterior"
    posterior = Bayesian(FVSBN(D)).fit(x.masked_fill(~visible, math.nan), visible, method="laplace", num_draws=20, num_chains=1, steps=20, progress=False)
    data = to_inference_data(posterior, x.masked_fill(~visible, math.nan))
    assert arviz_bridge.drawn_by(data) == "Laplace, approximate"
    np.testing.assert_array_equal(np.isnan(group_of(data, "observed_data")["x"]), ~visible.numpy())
    expected = posterior.joint.marginal(visible[:, None, None]).log_prob(x[:, None, None]).permute(1, 2, 0)
    np.testing.assert_allclose(group_of(data, "log_likelihood")["x"], expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(group_of(to_inference_data(posterior, x.masked_fill(~visible, math.nan), visible), "log_likelihood")["x"],
                                  group_of(data, "log_likelihood")["x"])
    with pytest.raises(ValueError, match=refusal):
        to_inference_data(posterior, x.masked_fill(~visible, math.nan), torch.ones_like(visible))
    for bad in (visible.float(), visible[:, :2], visible[None]):
        with pytest.raises(ValueError, match="visible must"):
            to_inference_data(posterior, x.masked_fill(~visible, math.nan), bad)


def test_a_tree_picked_from_the_rows_is_said_to_be():
    """Its score is flattered; the mean over all trees is not. A tree from elsewhere is as good as any table."""
    x = rows(12)
    picked = ChowLiuTree.posterior(x, equivalent_sample_size=1.0)
    assert "tree that these rows pick" in loo(to_inference_data(picked, x, num_draws=50)).method
    star = [(), *[(0,)] * (D - 1)]
    other = star if [tuple(p) for p in ChowLiuTree.from_data(x).structure["parents"]] != star else [(), (0,), (1,), (2,)]
    assert loo(to_inference_data(ChowLiuTree.posterior(x, equivalent_sample_size=1.0, parents=other), x, num_draws=50)).method == "PSIS-LOO (exact posterior)"
    said = str(compare({"picked": to_inference_data(picked, x, num_draws=50), "all": TableModel(ChowLiuTree)}, x))
    assert "Every row took part in picking the tree of picked" in said


def test_draws_without_a_source_say_so():
    x = rows()
    draws = FullyIndependent(torch.randn(20, D, 2))
    assert loo(to_inference_data(draws, x)).method == "PSIS-LOO (draws as given)"
    assert loo(to_inference_data(draws, x, how="Gibbs")).method == "PSIS-LOO (Gibbs)"
    no_posterior = {"log_likelihood": {"x": np.random.default_rng(0).normal(size=(1, 9, 4))}}
    assert arviz_bridge.drawn_by(arviz_bridge.to_arviz(no_posterior)) is None
