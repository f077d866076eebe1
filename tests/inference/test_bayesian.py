"""Bayesian families: draws agree between methods and with quadrature; the predictive is a joint."""

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

from pyro_ar.comparison import loo, to_inference_data
from pyro_ar.inference.bayesian import Bayesian
from pyro_ar.mixture import Mixture
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.neural.nade import NADE

METHODS = ["nuts", "mean-field", "low-rank", "laplace"]
X = torch.tensor([[0.0, 0.0]] * 15 + [[1.0, 1.0]] * 20 + [[1.0, 0.0]] * 8 + [[0.0, 1.0]] * 7)


def fit(method, x=X, family=None, **options):
    model = Bayesian(FVSBN(2) if family is None else family, 2.0)
    options = {"num_draws": 100, "num_chains": 2, "warmup": 60, "steps": 700} | options
    return model.fit(x, method=method, **{"progress": False, **options})


@pytest.fixture(scope="module")
def posteriors():
    with torch.random.fork_rng():
        return {method: fit(method) for method in METHODS}


def first_bias():
    """Mean and standard deviation of the first logit, by quadrature: 28 ones, 22 zeros."""
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    log_p = dist.Normal(0.0, 2.0).log_prob(grid) + 28 * torch.nn.functional.logsigmoid(grid) + 22 * torch.nn.functional.logsigmoid(-grid)
    p = log_p.softmax(0)
    mean = (p * grid).sum()
    return mean.item(), (p * (grid - mean).square()).sum().sqrt().item()


@pytest.mark.parametrize("method", METHODS)
def test_draws_follow_the_posterior(posteriors, method):
    """Against quadrature: mean to 0.4 and spread to 40 % of the true spread. Of 100 effective draws these are 4 and 5 standard errors: false alarm 1e-4."""
    mean, spread = first_bias()
    draws = posteriors[method].draws["bias"][..., 0]
    assert draws.mean().item() == pytest.approx(mean, abs=0.4 * spread)
    assert draws.std().item() == pytest.approx(spread, rel=0.4)


@pytest.mark.parametrize("method", METHODS)
def test_diagnostics_by_arviz(posteriors, method):
    found = posteriors[method].diagnostics()
    assert 0.98 < found.r_hat < 1.06
    assert found.ess_bulk > 30
    assert found.divergences == 0
    assert found.draws == 200


def test_stuck_chains_are_seen(posteriors):
    stuck = posteriors["laplace"]
    moved = {name: t + torch.tensor([0.0, 9.0])[:, None, None] for name, t in stuck.draws.items()}
    other = type(stuck)(stuck.joint, moved, stuck.x, None, "nuts", torch.ones(2, 100, dtype=torch.bool), stuck.refit)
    assert other.diagnostics().r_hat > 1.5
    assert other.diagnostics().divergences == 200


@pytest.mark.parametrize("method", ["nuts", "laplace"])
def test_the_predictive_is_a_joint(posteriors, method):
    joint = posteriors[method].predictive()
    assert isinstance(joint, Mixture)
    states = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(joint.log_prob(states).logsumexp(0), torch.tensor(0.0), atol=1e-4, rtol=0)
    each = posteriors[method].joint.log_prob(states[:, None, None])
    torch.testing.assert_close(joint.log_prob(states), each.flatten(1).logsumexp(1) - math.log(200), atol=1e-4, rtol=0)
    seen = torch.tensor([False, True])
    torch.testing.assert_close(joint.marginal(seen).log_prob(states[1]).exp(), joint.log_prob(states[[1, 3]]).exp().sum(), atol=1e-5, rtol=0)
    assert posteriors[method].predictive(7).log_weights.shape == (7,)


def test_predictives_classify(posteriors):
    """With a class as its component, a mixture of predictives is a generative classifier, also of half-seen rows."""
    other = fit("laplace", x=1 - X, steps=300, num_draws=20)
    classes = Mixture(torch.zeros(2), [posteriors["laplace"].predictive(20), other.predictive(20)])
    p = classes.component_posterior(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[True, True], [True, False]])).probs
    torch.testing.assert_close(p.sum(-1), torch.ones(2))
    assert p[0, 0] > 0.5 > p[1, 0] - 0.1


def test_draws_go_to_arviz(posteriors):
    found = loo(to_inference_data(posteriors["nuts"], X))
    assert found.pointwise.shape == (50,)
    assert len(found.bad) == 0
    assert 1.0 < found.p < 5.0  # three weights


def test_weights_that_never_enter_are_not_drawn():
    model = Bayesian(FVSBN(6))
    assert model.num_weights == 21 == FVSBN(6).num_parameters
    joint = model.bind({name: torch.randn(4, size) for name, size in model.sizes.items()})
    assert joint.batch_shape == (4,)
    weight = joint.tensors["weight"].squeeze()
    assert (weight.triu() == 0).all()
    assert Bayesian(NADE(4, hidden=3)).num_weights == NADE(4, hidden=3).num_parameters


def test_a_guide_of_ones_own():
    """`Bayesian.model` is a Pyro model, and any guide's draws make a joint through `bind`."""
    model = Bayesian(FVSBN(2), {"weight": dist.Normal(0.0, 1.0), "bias": dist.Cauchy(0.0, 2.5)})
    guide = AutoNormal(model.model)
    svi = SVI(model.model, guide, Adam({"lr": 0.05}), Trace_ELBO())
    pyro.set_rng_seed(0)
    for _ in range(20):
        svi.step(X)
    data = to_inference_data(guide, X, likelihood=model.bind, num_draws=30)
    assert loo(data).pointwise.shape == (50,)


def test_hidden_cells_leave_the_prior():
    """A column that nobody saw: its weights keep their prior spread of 2."""
    visible = torch.tensor([True, False]).expand(50, 2)
    hidden = Bayesian(FVSBN(2), 2.0).fit(X.masked_fill(~visible, math.nan), visible, method="nuts", num_draws=100, num_chains=1, warmup=60, progress=False)
    mean, spread = first_bias()
    assert hidden.draws["bias"][..., 0].mean().item() == pytest.approx(mean, abs=0.5 * spread)
    assert 1.2 < hidden.draws["bias"][..., 1].std().item() < 3.0


def test_the_seed_is_all():
    a, b = (fit("laplace", steps=30, num_draws=5) for _ in range(2))
    assert torch.equal(a.draws["bias"], b.draws["bias"])
    family = FVSBN(2)
    before = torch.random.get_rng_state()
    fit("laplace", family=family, steps=3, num_draws=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not list(pyro.get_param_store().keys())


def test_bad_input_is_named():
    model = Bayesian(FVSBN(2))
    with pytest.raises(ValueError, match=r"without context.*fit one Bayesian to each and take the Mixture of their predictives.*context_dim=1"):
        Bayesian(FVSBN(2, context_dim=1))
    with pytest.raises(ValueError, match="positive standard deviation"):
        Bayesian(FVSBN(2), 0.0)
    with pytest.raises(ValueError, match="prior must name the weights"):
        Bayesian(FVSBN(2), {"w": dist.Normal(0.0, 1.0)})
    with pytest.raises(ValueError, match="prior of bias"):
        Bayesian(FVSBN(2), {"weight": dist.Normal(0.0, 1.0), "bias": dist.Gamma(1.0, 1.0)})
    with pytest.raises(ValueError, match="method must be nuts"):
        model.fit(X, method="vi")
    with pytest.raises(ValueError, match="one draw is no posterior"):
        model.fit(X, num_draws=1)
    with pytest.raises(ValueError, match="num_draws of nuts must be 4 or more, so that its diagnostics can be computed; got 3"):
        model.fit(X, num_draws=3)
    with pytest.raises(ValueError, match="one or more rows"):
        model.fit(X[:0])
    with pytest.raises(ValueError, match="one or more rows"):
        model.fit(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="states 0 to 1"):
        model.fit(X + 1)


@pytest.mark.parametrize("method", ["mean-field", "low-rank"])
def test_guides_begin_where_they_are_told(method):
    """With a step size of nothing the mean of 400 draws is the start: deviations are .05 (low rank: .07), so that 6 standard errors are .021."""
    torch.manual_seed(3)
    family = NADE(4, 3)
    with torch.no_grad():
        family.net.hidden_bias.add_(1.0)
    options = {"method": method, "num_draws": 400, "num_chains": 1, "steps": 1, "lr": 1e-9}
    x = torch.randint(0, 2, (20, 4)).float()
    begun, zeros = (fit(x=x, family=family, start=start, **options) for start in ("family", "zeros"))
    now = dict(family.net.named_parameters())
    for name, draws in begun.draws.items():
        weights = now[name].detach()[:3].flatten() if name == "input_weight" else now[name].detach().flatten()  # nothing reads the last variable
        torch.testing.assert_close(draws.mean((0, 1)), weights, atol=0.021, rtol=0)
        torch.testing.assert_close(zeros.draws[name].mean((0, 1)), torch.zeros_like(weights), atol=0.021, rtol=0)
    assert torch.equal(begun.refit(x).draws["hidden_bias"], begun.draws["hidden_bias"])
    with pytest.raises(ValueError, match="start must be 'zeros' or 'family'; got 'prior'"):
        fit(method, family=family, start="prior")


def test_settling_and_bad_arguments():
    from pyro_ar.tables import FullTable

    x = torch.randint(0, 2, (20, 3)).float()
    posterior = Bayesian(FVSBN(3)).fit(x, method="mean-field", num_draws=4, num_chains=1, steps=100, progress=False)
    assert posterior.elbo < 0
    assert abs(posterior.elbo_change) < 1
    with pytest.raises(ValueError, match="wants a family of neural joints"):
        Bayesian(FullTable, 1.0)
    with pytest.raises(ValueError, match="rank must be 1 or more"):
        Bayesian(FVSBN(3)).fit(x, method="low-rank", rank=0)


@pytest.mark.parametrize(("warmup", "full"), [(17, False), (18, True)])
def test_a_covariance_wants_enough_warmup(monkeypatch, warmup, full):
    """Three weights: six steps of warm-up for each, or NUTS adapts to variances alone."""
    asked = []

    class Stop(Exception):
        pass

    def nuts(model, **options):
        asked.append(options["full_mass"])
        raise Stop

    monkeypatch.setattr("pyro_ar.inference.bayesian.NUTS", nuts)
    with pytest.raises(Stop):
        fit("nuts", warmup=warmup)
    assert asked == [full]


@pytest.mark.parametrize("method", ["nuts", "mean-field"])
def test_a_bar_is_shown_unless_told(method, capsys, monkeypatch):
    """On standard error; a fit again for leave-one-out keeps quiet."""
    for name in ("CI", "PYTEST_XDIST_WORKER"):  # in which Pyro shows none
        monkeypatch.delenv(name, raising=False)
    options = {"method": method, "num_draws": 4, "num_chains": 1, "warmup": 2, "steps": 3}
    shown = Bayesian(FVSBN(2)).fit(torch.zeros(4, 2), **options)
    captured = capsys.readouterr()
    assert "%|" in captured.err
    assert captured.out == ""
    quiet = Bayesian(FVSBN(2)).fit(torch.zeros(4, 2), progress=False, **options)
    shown.refit(torch.zeros(3, 2))
    assert capsys.readouterr().err == ""
    assert all(torch.equal(shown.draws[name], quiet.draws[name]) for name in quiet.draws)


@pytest.mark.parametrize("method", ["nuts", "mean-field"])
def test_a_posterior_survives_pickle(method):
    """Draws, the joint of each, and what makes the posterior of other rows."""
    torch.manual_seed(0)
    x = torch.randint(2, (12, 2)).float()
    posterior = Bayesian(FVSBN(2)).fit(x, method=method, num_draws=4, num_chains=1, warmup=4, steps=4, progress=False)
    again = pickle.loads(pickle.dumps(posterior))
    assert torch.equal(again.joint.log_prob(x.unsqueeze(-2).unsqueeze(-2)), posterior.joint.log_prob(x.unsqueeze(-2).unsqueeze(-2)))
    assert torch.equal(again.predictive().log_prob(x), posterior.predictive().log_prob(x))
    assert all(torch.equal(a, b) for a, b in zip(again.refit(x[1:]).draws.values(), posterior.refit(x[1:]).draws.values(), strict=True))
