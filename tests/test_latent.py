"""`given` as a latent site: its form for that is a density over everything, and as it is it is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import HMC, MCMC, NUTS, SVI, Importance, Predictive, RandomWalkKernel, RenyiELBO, Trace_ELBO, autoguide
from pyro.ops.integrator import potential_grad
from pyro.optim import Adam, ClippedAdam
from torch.distributions import biject_to, transforms

import pyro_ar as par

pytestmark = pytest.mark.usefixtures("float64")
NAN = math.nan


def matrix(*batch, size=3):
    root = torch.randn(*batch, size, size)
    return root @ root.mT / size + 0.3 * torch.eye(size)


def gaussian(*batch):
    return par.Gaussian(torch.randn(*batch, 3), matrix(*batch))


def chain(*, any_order=False):
    family = (par.OrderlessNADE if any_order else par.NADE)(event_shape=3, hidden=4, output=par.outputs.Normal())
    for p in family.parameters():
        p.data = 0.5 * torch.randn_like(p)
        p.requires_grad_(False)
    return family()


# Each with a pattern that it answers and that hides the last cell alone, in its order.
JOINTS = {
    "gaussian": gaussian,
    "gaussian, batch": lambda: gaussian(2),
    "student": lambda: par.StudentT(torch.tensor([3.0, 30.0]), torch.randn(2, 3), matrix()),
    "low rank": lambda: par.LowRankGaussian(torch.randn(3), torch.randn(3, 2), torch.rand(3) + 0.1),
    "low rank student": lambda: par.LowRankStudentT(4.0, torch.randn(3), torch.randn(3, 1), torch.rand(3) + 0.1),
    "mixture": lambda: par.Mixture(torch.randn(2), gaussian(2)),
    "log-normal": lambda: par.Transformed(gaussian(), transforms.ExpTransform()),
    "logit-normal, batch": lambda: par.Transformed(gaussian(2), par.changes.logit(-1.0, 3.0)),
    "decreasing": lambda: par.Transformed(par.StudentT(5.0, torch.randn(3), matrix()), transforms.AffineTransform(1.0, torch.tensor([-2.0, 3.0, 0.5]))),
    "mixture of log-normals": lambda: par.Mixture(torch.randn(2), par.Transformed(gaussian(2), transforms.ExpTransform())),
    "chain": chain,
    "any order": lambda: chain(any_order=True),
}
REPARAMETERISED = {"gaussian", "gaussian, batch", "student", "low rank", "low rank student", "log-normal", "logit-normal, batch", "decreasing"}
LAST = torch.tensor([True, True, False])


def reference(joint, z):
    """Standard normal on the reals, cell by cell: written out for each support."""
    inner = joint.joints if isinstance(joint, par.Mixture) else joint
    change = inner.transform if isinstance(inner, par.Transformed) else None
    if change is None:
        return dist.Normal(0.0, 1.0).log_prob(z)
    free = z.log() if isinstance(change, transforms.ExpTransform) else None
    if isinstance(change, transforms.AffineTransform):
        return dist.Normal(change.loc, abs(torch.as_tensor(change.scale))).log_prob(z)
    if free is None:  # z = 4 sigmoid(u) - 1
        share = (z + 1) / 4
        return dist.Normal(0.0, 1.0).log_prob((share / (1 - share)).log()) - (4 * share * (1 - share)).log()
    return dist.Normal(0.0, 1.0).log_prob(free) - free


@pytest.fixture(params=JOINTS)
def named(request):
    return request.param, JOINTS[request.param]()


def test_density_is_that_of_given_times_a_reference_on_what_is_visible(named):
    _, joint = named
    x, z = joint.sample((5,)), joint.sample((5,))
    torn = x.masked_fill(~LAST, NAN)
    given = joint.given(torn, LAST)
    whole = torch.where(LAST, x, z)
    expected = given.log_prob(whole) + reference(joint, z)[..., :2].sum(-1)
    torch.testing.assert_close(given.latent().log_prob(z), expected)
    torch.testing.assert_close(given.latent().complete(z), whole, rtol=0, atol=0)
    row = torch.stack([joint.given(t, LAST).latent().log_prob(v) for t, v in zip(torn, z, strict=True)])
    torch.testing.assert_close(row, expected)


HEAVY = {"student", "low rank student", "decreasing"}


@pytest.mark.parametrize("pattern", [[True, True, False], [True, False, False], [False, False, False]], ids=["one hidden", "two", "three"])
def test_density_integrates_over_the_hidden_cells_to_the_reference_of_the_visible_ones(named, pattern):
    name, joint = named
    visible, many = torch.tensor(pattern), len(joint.batch_shape)
    reach = 12.0 if name in HEAVY else 10.0
    u = torch.linspace(-reach, reach, {1: 2001, 2: 301, 3: 61}[3 - int(visible.sum())])
    weight = torch.full_like(u, float(u[1] - u[0])).log()
    if name in HEAVY:
        u, weight = u.sinh(), weight + u.cosh().log()
    hidden = (~visible).nonzero().squeeze(-1)
    free = torch.zeros(*[len(u)] * len(hidden), 3)
    free[..., hidden] = torch.stack(torch.meshgrid(*[u] * len(hidden), indexing="ij"), -1)
    free = free.reshape(-1, *[1] * many, 3).expand(-1, *joint.batch_shape, 3)
    weight = torch.stack(torch.meshgrid(*[weight] * len(hidden), indexing="ij")).sum(0).reshape(-1, *[1] * many)
    latent = joint.given(joint.sample(), visible).latent()
    T = biject_to(latent.support)
    T = getattr(T, "base_transform", T)
    z = T(free)
    slope = T.log_abs_det_jacobian(free, z).expand(z.shape)
    total = (latent.log_prob(z) + torch.where(visible, 0, slope).sum(-1) + weight).logsumexp(0)
    expected = torch.where(visible, reference(joint, z[0]), 0).sum(-1)
    # Three cells on a grid of 61 points: a joint narrower than the grid is seen roughly.
    torch.testing.assert_close(total, expected, atol=1e-6 if len(hidden) < 3 else 0.05, rtol=0)


def test_what_stands_in_the_visible_cells_changes_nothing_else_and_all_gradients_are_finite(named):
    _, joint = named
    x, z, noise = joint.sample((4,)), joint.sample((6, 4)).requires_grad_(), joint.sample((6, 4))
    given = joint.given(x.masked_fill(~LAST, NAN), LAST)
    latent = given.latent()
    (slope,) = torch.autograd.grad(latent.log_prob(z).sum(), z)
    assert slope.isfinite().all()
    for visible_cells in (noise, x):
        other = torch.where(LAST, visible_cells, z.detach()).requires_grad_()
        (again,) = torch.autograd.grad(latent.log_prob(other).sum(), other)
        torch.testing.assert_close(again[..., ~LAST], slope[..., ~LAST])
        assert torch.equal(latent.complete(other), latent.complete(z))
    (hidden,) = torch.autograd.grad(given.log_prob(other).sum(), other)
    torch.testing.assert_close(slope[..., ~LAST], hidden[..., ~LAST])


def test_draws_are_completions_and_reference_and_have_every_shape(named):
    name, joint = named
    x = joint.sample((4,))
    visible = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [False] * 3])
    visible = visible.reshape(4, *[1] * len(joint.batch_shape), 3)
    latent = joint.given(torch.where(visible, x, NAN), visible).latent()
    assert latent.has_rsample == (name in REPARAMETERISED | {"chain", "any order"})
    z = latent.sample((2000,))
    assert z.shape == (2000, *x.shape)
    assert not z.requires_grad
    assert latent.support.check(z).all()
    done = latent.complete(z)
    assert torch.equal(torch.where(visible, done, 0), torch.where(visible, x, 0).expand_as(done))
    # The visible cells pulled back are standard normal: at most 12 means and variances, each of 2000 draws, so that 5
    # standard errors are missed with probability below 2e-5.
    free, each = biject_to(latent.support).inv(z), visible.expand(x.shape)
    assert (free.mean(0)[each].abs() < 5 / 2000**0.5).all()
    assert ((free.var(0)[each] - 1).abs() < 5 * (2 / 2000) ** 0.5).all()
    wide = latent.expand((5, *latent.batch_shape))
    assert wide.sample((2,)).shape == (2, 5, *x.shape)
    assert wide.sample().flatten(1).unique(dim=0).shape[0] == 5
    torch.testing.assert_close(wide.log_prob(z[:5]), latent.log_prob(z[:5]))
    assert wide.log_prob(z[0]).shape == (5, *latent.batch_shape)
    torch.testing.assert_close(latent.log_prob(z[:7]), torch.stack([latent.log_prob(v) for v in z[:7]]))


def test_completions_keep_the_dtype_of_the_draw():
    given = gaussian().given(torch.tensor([0.5, NAN, NAN]), torch.tensor([True, False, False]))
    assert given.latent().complete(torch.zeros(4, 3, dtype=torch.float32)).dtype == torch.float32
    assert given.latent().complete(torch.zeros(4, 3)).dtype == torch.float64


def test_one_impossible_row_among_others_is_refused():
    joint = par.FullTable(torch.tensor([[0.0, 0.0], [-math.inf, -math.inf]]))
    with pytest.raises(ValueError, match="probability zero in 1 of 3 rows"):
        joint.given(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([True, False]))


def test_completions_of_latent_draws_follow_given():
    joint = par.Mixture(torch.tensor([0.0, 1.0]), gaussian(2))
    x, visible = joint.sample(), torch.tensor([False, True, False])
    given = joint.given(x, visible)
    drawn, wanted = given.latent().complete(given.latent().sample((20000,))), given.sample((20000,))
    # Means and second moments of two cells: 5 standard errors are missed with probability 2e-6.
    for f in (torch.clone, torch.square):
        a, b = f(drawn)[:, ~visible], f(wanted)[:, ~visible]
        assert ((a.mean(0) - b.mean(0)).abs() < 5 * ((a.var(0) + b.var(0)) / 20000).sqrt()).all()


@pytest.mark.parametrize("name", sorted(REPARAMETERISED - {"logit-normal, batch", "gaussian, batch", "student"}))
def test_reparameterised_draws_have_the_gradient_of_their_expectation(name):
    """Of E[tanh(z_3)] by every tensor: by draws, against the gradient of a quadrature over the hidden cell."""
    joint = JOINTS[name]()
    joint = joint.with_tensors({k: t.detach().clone().requires_grad_() for k, t in joint.tensors.items()})
    names, tensors = zip(*joint.tensors.items(), strict=True)
    x = joint.sample()
    T = joint.transform if isinstance(joint, par.Transformed) else transforms.identity_transform
    draws = joint.given(x, LAST).latent().rsample((20000,))
    blocks = [torch.autograd.grad(part[:, 2].tanh().mean(), tensors, allow_unused=True, retain_graph=True, materialize_grads=True)
              for part in draws.split(1000)]
    u, heavy = torch.linspace(-12, 12, 4001), name in HEAVY
    free = torch.zeros(4001, 3)
    free[:, 2] = u.sinh() if heavy else u
    z = T(free)
    slope = T.log_abs_det_jacobian(free, z).expand(free.shape)[:, 2].exp() * (u.cosh() if heavy else 1.0) * (u[1] - u[0])
    density = joint.given(x, LAST).log_prob(torch.where(LAST, x, z)).exp()
    total = (density.detach() * slope).sum()
    torch.testing.assert_close(total, torch.ones(()), atol=1e-5, rtol=0)
    expected = torch.autograd.grad((density * z[:, 2].tanh() * slope).sum(), tensors, allow_unused=True, materialize_grads=True)
    for k, wanted, *found in zip(names, expected, *blocks, strict=True):
        found = torch.stack(found)
        if k.endswith("matrix"):  # of a symmetric matrix
            found, wanted = found + found.mT, wanted + wanted.mT
        # Means of 20 blocks, some 20 numbers: 6 standard errors on 19 degrees of freedom are missed with probability 2e-4 (seeded).
        assert ((found.mean(0) - wanted).abs() <= 6 * found.std(0) / 20**0.5 + 1e-9).all(), k


# As it is, `given` is no latent site.

X = torch.tensor([[1.0, 2.0, NAN], [NAN, 0.5, NAN]], dtype=torch.float64)
SEEN = ~X.isnan()


def latent_model(x, visible, joint=None):
    joint = joint or par.Gaussian(torch.zeros(3), torch.eye(3) + 0.5)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", joint.given(x, visible))
        pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=torch.zeros(len(x)))


def elsewhere(reparameterised=True):
    def guide(x, visible, joint=None):
        loc = pyro.param("loc", torch.zeros(2, 3))
        normal = dist.Normal if reparameterised else NonreparameterizedNormal
        with pyro.plate("rows", len(x)):
            pyro.sample("z", normal(loc, torch.ones(2, 3)).to_event(1))

    return guide


AUTOGUIDES = ["AutoNormal", "AutoDelta", "AutoDiagonalNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal", "AutoIAFNormal",
              "AutoLaplaceApproximation", "AutoGaussian", "AutoStructured"]


@pytest.mark.parametrize("init", [None, autoguide.init_to_sample, autoguide.init_to_median], ids=["default", "sample", "median"])
@pytest.mark.parametrize("name", AUTOGUIDES)
def test_autoguides_refuse_given_as_it_is(name, init):
    options = {} if init is None or name == "AutoIAFNormal" else {"init_loc_fn": init}
    guide = getattr(autoguide, name)(latent_model, **options)
    svi = SVI(latent_model, guide, Adam({}), Trace_ELBO())
    with pytest.raises(ValueError, match=r"latent\(\)"):
        svi.step(X, SEEN)


@pytest.mark.parametrize("elbo", [Trace_ELBO(), Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1), RenyiELBO(num_particles=2)],
                         ids=["one", "vectorised", "renyi"])
@pytest.mark.parametrize("reparameterised", [True, False], ids=["pathwise", "score function"])
def test_a_guide_off_the_visible_cells_is_refused(elbo, reparameterised):
    svi = SVI(latent_model, elsewhere(reparameterised), Adam({}), elbo)
    for ask in (svi.step, svi.evaluate_loss):
        with pytest.raises(ValueError, match=r"latent\(\)[\s\S]*site 'z'"):
            ask(X, SEEN)


def test_a_guide_off_the_visible_cells_of_a_site_in_an_event_is_refused():
    def model():
        pyro.sample("z", par.Gaussian(torch.zeros(3), torch.eye(3)).given(X, SEEN).to_event(1))

    def guide():
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2, 3)), 1.0).to_event(2))

    with pytest.raises(ValueError, match=r"latent\(\)[\s\S]*site 'z'"):
        SVI(model, guide, Adam({}), Trace_ELBO()).step()


@pytest.mark.parametrize("validate", [True, False])
def test_importance_sampling_off_the_visible_cells_is_refused(validate):
    with pyro.validation_enabled(validate), pytest.raises(ValueError, match=r"latent\(\)[\s\S]*site 'z'"):
        Importance(latent_model, elsewhere(), num_samples=2).run(X, SEEN)


@pytest.mark.parametrize("kernel", [NUTS, HMC, RandomWalkKernel])
def test_mcmc_refuses_given_as_it_is(kernel):
    with pytest.raises(ValueError, match=r"latent\(\)"):
        MCMC(kernel(latent_model), num_samples=1, warmup_steps=1, disable_progbar=True).run(X, SEEN)


def test_discrete_given_is_refused_with_what_works():
    tree = par.FullyIndependent(torch.zeros(3, 2))
    x, visible = torch.tensor([[1.0, NAN, 0.0]]), torch.tensor([[True, False, True]])
    with pytest.raises(par.IntractableError, match="marginal"):
        tree.given(x, visible).latent()
    for ask in (lambda: SVI(latent_model, autoguide.AutoNormal(latent_model), Adam({}), Trace_ELBO()).step(x, visible, tree),
                lambda: MCMC(NUTS(latent_model), num_samples=1, warmup_steps=1, disable_progbar=True).run(x, visible, tree)):
        with pytest.raises(ValueError, match="marginal"):
            ask()


def test_a_marginal_with_hidden_cells_is_no_latent_site():
    def model(visible):
        with pyro.plate("rows", 2):
            pyro.sample("z", par.Gaussian(torch.zeros(3), torch.eye(3)).marginal(visible))

    for ask in (lambda: SVI(model, autoguide.AutoNormal(model), Adam({}), Trace_ELBO()).step(SEEN),
                lambda: MCMC(NUTS(model), num_samples=1, warmup_steps=1, disable_progbar=True).run(SEEN)):
        with pytest.raises(ValueError, match="no latent site"):
            ask()
    all_seen = torch.ones(2, 3, dtype=torch.bool)
    assert math.isfinite(SVI(model, autoguide.AutoNormal(model), Adam({}), Trace_ELBO()).step(all_seen))


def test_supports_say_which_values_there_are():
    joint = par.Gaussian(torch.zeros(3), torch.eye(3))
    given, marginal = joint.given(X, SEEN), joint.marginal(SEEN)
    assert given.support.check(given.sample((4,))).all()
    assert given.support.event_dim == 1
    off = given.sample()
    off[0, 1] += 1
    assert given.support.check(off).tolist() == [False, True]
    assert marginal.support.check(marginal.sample((4,))).all()
    assert marginal.support.check(X.masked_fill(torch.arange(3) == 1, NAN)).tolist() == [False, False]


# What it still serves for.


def test_given_still_serves_as_guide_proposal_and_observed():
    joint = par.Gaussian(torch.zeros(3), torch.eye(3) + 0.5)

    def guide(x, visible):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", joint.given(x, visible))

    for elbo in (Trace_ELBO(), Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)):
        assert math.isfinite(SVI(latent_model, guide, Adam({}), elbo).evaluate_loss(X, SEEN))
    weights = Importance(latent_model, guide, num_samples=3).run(X, SEEN).log_weights
    assert all(math.isfinite(w) for w in weights)
    assert Predictive(latent_model, num_samples=3)(X, SEEN)["z"].shape == (3, 2, 3)

    def observed(value):
        with pyro.plate("rows", 2):
            pyro.sample("z", joint.given(X, SEEN), obs=value)

    inside = joint.given(X, SEEN).sample()
    total = pyro.poutine.trace(observed).get_trace(inside).log_prob_sum()
    torch.testing.assert_close(total, joint.given(X, SEEN).log_prob(inside).sum())
    assert pyro.poutine.trace(observed).get_trace(inside + 1).log_prob_sum() == -math.inf
    assert (joint.given(X, SEEN).log_prob(inside + 1) == -math.inf).all()


def test_a_given_guide_is_reparameterised_where_its_joint_is():
    loc = torch.zeros(3, requires_grad=True)
    given = par.Gaussian(loc, torch.eye(3) + 0.5).given(X[0], SEEN[0])
    (slope,) = torch.autograd.grad(given.rsample((5,))[:, 2].mean(), loc)
    # The hidden cell's mean is loc_3 + regression (x_v - loc_v), with Sigma_hv Sigma_vv^-1 = (.25, .25).
    torch.testing.assert_close(slope, torch.tensor([-0.25, -0.25, 1.0]))
    assert not par.Mixture(torch.zeros(1), gaussian(1)).given(X[0], SEEN[0]).has_rsample


# The call that puts both together.


def regression(x, y=None, *, visible=None):
    joint = par.Gaussian(torch.tensor([0.5, 0.0, -0.5]), torch.eye(3) + 0.5)
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("rows", len(x)):
        full = par.impute("x", joint, x, visible)
        pyro.sample("y", dist.Normal((full * slope).sum(-1), 0.5), obs=y)
    return full


def torn_rows(rows=40):
    joint = par.Gaussian(torch.tensor([0.5, 0.0, -0.5]), torch.eye(3) + 0.5)
    x = joint.sample((rows,))
    y = x @ torch.tensor([1.0, -1.0, 0.5]) + 0.5 * torch.randn(rows)
    return joint, torch.where(torch.rand(rows, 3) < 0.6, x, NAN), y


def test_impute_weighs_the_complete_rows_by_the_joint():
    joint, x, y = torn_rows()
    trace = pyro.poutine.trace(regression).get_trace(x, y)
    full, visible = trace.nodes["_RETURN"]["value"], ~x.isnan()
    assert torch.equal(full[visible], x[visible])
    assert torch.equal(trace.nodes["x"]["value"], full)
    trace.compute_log_prob()
    sites = trace.nodes["x_observed"]["log_prob_sum"] + trace.nodes["x_unobserved"]["log_prob_sum"]
    z = trace.nodes["x_unobserved"]["value"]
    torch.testing.assert_close(sites, joint.log_prob(full).sum() + dist.Normal(0.0, 1.0).log_prob(z)[visible].sum())
    same = pyro.poutine.condition(regression, {"x_unobserved": z, "slope": trace.nodes["slope"]["value"]})
    by_pattern = pyro.poutine.trace(same).get_trace(x.nan_to_num(7.0), y, visible=visible)
    assert torch.equal(by_pattern.nodes["_RETURN"]["value"], full)
    torch.testing.assert_close(by_pattern.log_prob_sum(), trace.log_prob_sum())


def test_impute_refuses_what_it_cannot_do():
    with pytest.raises(par.IntractableError, match="marginal"):
        par.impute("x", par.FullyIndependent(torch.zeros(2, 2)), torch.tensor([1.0, NAN]))
    with pytest.raises(par.IntractableError, match="infinitely many"):
        par.impute("x", chain(), torch.tensor([NAN, 1.0, 1.0]))
    with pytest.raises(ValueError, match="tensor"):
        par.impute("x", gaussian(), [1.0, NAN, 0.0])


@pytest.mark.parametrize("name", ["AutoNormal", "AutoDelta", "AutoMultivariateNormal"])
def test_autoguides_train_on_imputed_rows(name):
    _, x, y = torn_rows(6)
    guide = getattr(autoguide, name)(regression)
    svi = SVI(regression, guide, Adam({"lr": 0.05}), Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1))
    losses = [svi.step(x, y) for _ in range(60)]
    assert all(map(math.isfinite, losses))
    assert sum(losses[-10:]) < sum(losses[:10])


def test_particles_together_have_the_loss_of_particles_one_by_one():
    _, x, y = torn_rows(6)
    slope, z = torch.randn(3), torch.randn(6, 3)

    def guide(x, y):
        pyro.sample("slope", dist.Delta(slope, event_dim=1))
        with pyro.plate("rows", 6):
            pyro.sample("x_unobserved", dist.Delta(z, event_dim=1))

    one = Trace_ELBO().loss(regression, guide, x, y)
    many = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1).loss(regression, guide, x, y)
    assert many == pytest.approx(one)


def test_random_parameters_of_the_joint_in_vectorised_particles():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", len(x)):
            return par.impute("x", par.Gaussian(loc, torch.eye(3) + 0.5), x)

    guide = autoguide.AutoNormal(model)
    for particles in (1, 3):
        elbo = Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)
        assert math.isfinite(SVI(model, guide, Adam({}), elbo).step(X))
    drawn = Predictive(model, guide=guide, num_samples=4, parallel=True, return_sites=["x"])(X)["x"].squeeze()
    assert drawn.shape == (4, 2, 3)
    torch.testing.assert_close(drawn[:, SEEN], X[SEEN].expand(4, -1))


def test_subsampled_plates_move_the_rows_they_hold_and_weigh_them():
    joint, x, y = torn_rows(12)
    index = torch.tensor([7, 2, 5, 0])

    def model(subsample=None):
        with pyro.plate("rows", 12, subsample=subsample, subsample_size=4) as rows:
            full = par.impute("x", joint, x[rows])
            pyro.sample("y", dist.Normal(full.sum(-1), 0.5), obs=y[rows])

    trace = pyro.poutine.trace(model).get_trace(index)
    z = trace.nodes["x_unobserved"]["value"]
    assert z.shape == (4, 3)
    part = joint.given(x[index], ~x[index].isnan()).latent().log_prob(z).sum() * 3
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["x_unobserved"]["log_prob_sum"], part)
    guide = autoguide.AutoNormal(model, create_plates=lambda: pyro.plate("rows", 12, subsample_size=4))
    svi = SVI(model, guide, Adam({"lr": 0.05}), Trace_ELBO())
    svi.step()
    before = guide.locs.x_unobserved.detach().clone()
    assert before.shape == (12, 3)
    assert all(math.isfinite(svi.step()) for _ in range(20))
    assert ((guide.locs.x_unobserved - before).abs().sum(-1) > 0).all()


def test_evidence_that_rounds_to_nothing_is_a_divergence_to_nuts_and_an_error_to_a_user():
    def potential(z):
        return -par.Gaussian(z["loc"], torch.eye(1)).given(torch.zeros(1), torch.tensor([True])).log_evidence

    with pytest.raises(ValueError, match="positive probability"):
        potential({"loc": torch.full((1,), 1e200)})
    slopes, energy = potential_grad(potential, {"loc": torch.full((1,), 1e200)})
    assert energy.isnan()
    assert slopes["loc"].tolist() == [0.0]
    assert potential_grad(potential, {"loc": torch.ones(1)})[0]["loc"].tolist() == [1.0]


def test_nuts_moves_transformed_cells_where_they_are_allowed():
    joint = par.Transformed(par.Gaussian(torch.zeros(2), torch.eye(2) + 0.5), transforms.ExpTransform())

    def model():
        with pyro.plate("rows", 2):
            par.impute("x", joint, torch.tensor([[2.0, NAN], [NAN, NAN]]))

    mcmc = MCMC(NUTS(model), num_samples=150, warmup_steps=50, disable_progbar=True)
    mcmc.run()
    drawn = mcmc.get_samples()["x_unobserved"]
    logs, mean, spread = drawn.log(), math.log(2) / 3, (1.5 - 0.25 / 1.5) ** 0.5
    assert (drawn > 0).all()
    # Nothing else is observed: log z given log 2 is normal around log(2) / 3, and the visible cell is standard normal. NUTS is
    # nearly independent here: 6 standard errors of 75 independent draws are missed with probability below 1e-8 (seeded).
    assert abs(float(logs[:, 0, 1].mean()) - mean) < 6 * spread / 75**0.5
    assert abs(float(logs[:, 0, 0].mean())) < 6 / 75**0.5
    assert abs(float(logs[:, 0, 0].std()) - 1) < 6 / 150**0.5
    assert abs(float(logs[:, 0, 1].std()) / spread - 1) < 6 / 150**0.5


# Does it do what it is for? A regression with covariates that are hidden where y is large.

TRUTH = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)


def hidden_by_response(rows, seed):
    torch.manual_seed(seed)
    joint = par.Gaussian(torch.zeros(3), 0.5 * torch.eye(3) + 0.5)
    x = joint.sample((rows,))
    y = x @ TRUTH + torch.randn(rows)
    return joint, torch.where(torch.rand(rows, 3) < 0.8 * (3 * y).sigmoid()[:, None], NAN, x), y


def slopes_and_errors(x, y):
    x = torch.cat([x, torch.ones(len(x), 1)], -1)
    inverse = torch.linalg.inv(x.T @ x)
    found = inverse @ x.T @ y
    return found[:3], ((y - x @ found).square().sum() / (len(x) - 4) * inverse.diagonal()).sqrt()[:3]


def slope_model(joint, x, y):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    intercept, noise = pyro.sample("intercept", dist.Normal(0.0, 2.0)), pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        full = par.impute("x", joint, x)
        pyro.sample("y", dist.Normal(intercept + (full * slope).sum(-1), noise), obs=y)


def rows_guide(joint, x, y):
    loc = pyro.param("loc", torch.zeros(x.shape))
    root = pyro.param("root", torch.eye(3).repeat(len(x), 1, 1), constraint=dist.constraints.lower_cholesky)
    with pyro.plate("rows", len(x)):
        pyro.sample("x_unobserved", dist.MultivariateNormal(loc, scale_tril=root))


def slopes_by_svi(joint, x, y, steps=600):
    rest = autoguide.AutoNormal(pyro.poutine.block(slope_model, hide=["x_unobserved", "rows"]))

    def guide(*data):
        rest(*data)
        rows_guide(*data)

    svi = SVI(slope_model, guide, ClippedAdam({"lr": 0.05, "lrd": 0.02 ** (1 / steps)}), Trace_ELBO())
    for _ in range(steps):
        svi.step(joint, x, y)
    return rest.median()["slope"].detach()


def slopes_by_nuts(joint, x, y):
    mcmc = MCMC(NUTS(slope_model, max_tree_depth=4), num_samples=100, warmup_steps=60, disable_progbar=True)
    mcmc.run(joint, x, y)
    return mcmc.get_samples()["slope"].mean(0)


def test_svi_recovers_coefficients_that_complete_rows_miss():
    joint, x, y = hidden_by_response(300, seed=0)
    seen = ~x.isnan().any(-1)
    complete, error = slopes_and_errors(x[seen], y[seen])
    assert ((complete - TRUTH).abs() / error)[:2].min() > 4
    # Posterior standard deviations are about .1: 4 of them are missed by one of three coefficients with probability 2e-4 (seeded).
    assert (slopes_by_svi(joint, x, y) - TRUTH).abs().max() < 0.4
    assert (complete - TRUTH).abs().max() > 0.4


@pytest.mark.slow
def test_nuts_recovers_coefficients_that_complete_rows_miss():
    joint, x, y = hidden_by_response(300, seed=0)
    # As for SVI; 100 draws add a tenth or so to the error.
    assert (slopes_by_nuts(joint, x, y) - TRUTH).abs().max() < 0.44
