"""`torch.func` over every joint: grad, jacobians and Hessians against autograd and differences, vmap against loops.

With vmap the joints are made without validation, which looks at values; what cannot be answered is refused in words.
"""

import functools
import itertools
import math

import pyro
import pytest
import torch

from registered import ANY_SHAPE
from torch.distributions import transforms
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import pyro_ar as par

from pyro_ar.changes.transformed import Transformed
from pyro_ar.checks import IntractableError
from pyro_ar.elliptical import Gaussian, LowRankGaussian, LowRankStudentT, StudentT
from pyro_ar.mixture import Mixture
from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain

pytestmark = pytest.mark.usefixtures("float64")

PARENTS = [(), (0,), (0, 1)]


@pytest.fixture
def unchecked():
    with pyro.validation_enabled(False):
        yield


def matrix(t):
    return t.reshape(3, 3) @ t.reshape(3, 3).mT + torch.eye(3)


def gaussians(t):
    return Gaussian(t[:6].reshape(2, 3), torch.stack([matrix(t[6:15]), matrix(t[15:])]))


MAKE = {
    "independent": (6, lambda t: FullyIndependent(t.reshape(3, 2))),
    "independent, ragged": (7, lambda t: FullyIndependent([t[:2], t[2:5], t[5:]])),
    "full table": (8, lambda t: FullTable(t.reshape(2, 2, 2))),
    "chain": (10, lambda t: MarkovChain(t[:2], t[2:].reshape(2, 2, 2))),
    "stationary chain": (4, lambda t: MarkovChain(None, t.reshape(2, 2), num_variables=3)),
    "second-order chain": (12, lambda t: MarkovChain(t[:4].reshape(2, 2), t[4:].reshape(1, 2, 2, 2), order=2)),
    "net": (14, lambda t: BayesNet(PARENTS, [t[:2], t[2:6].reshape(2, 2), t[6:].reshape(2, 2, 2)])),
    "tree": (10, lambda t: ChowLiuTree([(), (0,), (0,)], [t[:2], t[2:6].reshape(2, 2), t[6:].reshape(2, 2)])),
    "gaussian": (12, lambda t: Gaussian(t[:3], matrix(t[3:]))),
    "student t": (13, lambda t: StudentT(t[12].exp(), t[:3], matrix(t[3:12]))),
    "low-rank gaussian": (9, lambda t: LowRankGaussian(t[:3], t[3:6].reshape(3, 1), t[6:].exp())),
    "low-rank student t": (10, lambda t: LowRankStudentT(t[9].exp(), t[:3], t[3:6].reshape(3, 1), t[6:9].exp())),
    "mixture over a batch": (14, lambda t: Mixture(t[:2], FullyIndependent(t[2:].reshape(2, 3, 2)))),
    "mixture of a list": (16, lambda t: Mixture(t[:2], [FullyIndependent(t[2:8].reshape(3, 2)), FullTable(t[8:].reshape(2, 2, 2))])),
    "mixture of gaussians": (26, lambda t: Mixture(t[:2], gaussians(t[2:]))),
    "transformed": (12, lambda t: Transformed(Gaussian(t[:3], matrix(t[3:])), transforms.ExpTransform())),
}
FAMILIES = {
    **{name: functools.partial(make, 3, context_dim=2) for name, make in ANY_SHAPE.items()},
    "NADE in another order": lambda: par.NADE(3, hidden=3, context_dim=2, order=[2, 0, 1]),
    "NADE, three states": lambda: par.NADE(3, hidden=3, context_dim=2, output=par.outputs.Categorical(3)),
    "NADE, normal": lambda: par.NADE(3, hidden=3, context_dim=2, output=par.outputs.Normal()),
    "mixture chain": lambda: par.MixtureChain(torch.randn(2, 2), 5.0, torch.randn(2, 2, 3), torch.eye(3).expand(2, 2, 3, 3) + 0.2,
                                              torch.tensor([-1.0, 0.0, 1.5]).expand(3, 3), hidden=2),
    "mixture over orders": lambda: par.OverOrders(par.OrderlessNADE(3, hidden=3, context_dim=2), 2),
}
TABLES = [name for name, (_, make) in MAKE.items() if "gauss" not in name and "student" not in name and name != "transformed"]
CHAINS = [name for name, make in FAMILIES.items() if isinstance(make(), par.Family) and not make().any_order]
LARGE = [name for name, make in ANY_SHAPE.items() if make(3, context_dim=2).num_parameters > 90]  # differences cost two answers for each


def case(name):
    """From a flat vector to a joint, one such vector, and a pattern that hides some cell before the last visible one where it may."""
    if name in MAKE:
        size, make = MAKE[name]
        return make, torch.randn(size), torch.tensor([True, False, True])
    family = FAMILIES[name]()
    net = getattr(family, "family", family).net
    shapes = {key: p.shape for key, p in net.named_parameters()}
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])

    def make(t):
        """Weights first, then the context."""
        pieces = t[:-2].split([s.numel() for s in shapes.values()])
        weights = {key: piece.reshape(s) for (key, s), piece in zip(shapes.items(), pieces, strict=True)}
        if name == "mixture over orders":
            weights = {f"family.net.{key}": t for key, t in weights.items()}
            return torch.func.functional_call(family, weights, (t[-2:],))
        return torch.func.functional_call(family, {f"net.{key}": t for key, t in weights.items()}, (t[-2:],))

    visible = torch.tensor([True, True, False] if name == "NADE, normal" else [True, False, True])
    return make, torch.cat([flat + 0.3 * torch.randn(flat.shape), torch.randn(2)]), visible


ASK = {
    "log_prob": lambda joint, x, visible: joint.log_prob(x),
    "conditionals": lambda joint, x, visible: (joint.conditional_log_prob(x) * torch.arange(1.0, 4.0)).sum(-1),
    "marginal": lambda joint, x, visible: joint.marginal(visible).log_prob(x),
    "given": lambda joint, x, visible: joint.given(x, visible).log_prob(x),
}
ALL = [*MAKE, *FAMILIES]


def asked(make, ask, visible, t, x):
    return ASK[ask](make(t), x, visible)


def applies(name, ask):
    if name == "mixture over orders" and ask == "conditionals":
        pytest.skip("a mixture over orders has no conditionals of its own")


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-7)


def differences(function, at, step=1e-5):
    """Central differences, one coordinate at a time: the oracle that knows nothing of autograd."""
    eye = torch.eye(len(at)) * step
    return torch.stack([(function(at + e) - function(at - e)) / (2 * step) for e in eye], -1)


def derived():
    """Of families' four answers the marginal by default: the others are made of log_prob and it."""
    for name, ask in itertools.product(ALL, ASK):
        slow = ask in ("log_prob", "conditionals") or name in LARGE or (name in FAMILIES and ask == "given")
        yield pytest.param(name, ask, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("name", "ask"), list(derived()))
def test_derivatives_by_parameters_and_context(name, ask):
    applies(name, ask)
    make, at, visible = case(name)
    x = make(at).sample()
    function = functools.partial(asked, make, ask, visible, x=x)
    slope = grad(function)(at)
    torch.testing.assert_close(slope, differences(function, at), atol=2e-7, rtol=2e-6)
    close(jacrev(function)(at), slope)
    close(jacfwd(function)(at), slope)
    leaf = at.clone().requires_grad_()
    close(slope, torch.autograd.grad(function(leaf), leaf)[0])
    curve = hessian(function)(at)
    torch.testing.assert_close(curve, differences(grad(function), at), atol=2e-6, rtol=2e-5)
    assert torch.allclose(curve, curve.mT, atol=1e-9)


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize("name", ["gaussian", "student t", "low-rank gaussian", "low-rank student t", "mixture of gaussians", "transformed",
                                  "NADE, normal"])
def test_derivatives_by_values(name, ask):
    make, at, visible = case(name)
    x = make(at).sample().abs().clamp(0.3, 3)  # where differences of a log-normal have their digits
    function = functools.partial(asked, make, ask, visible, at)
    slope = grad(function)(x)
    torch.testing.assert_close(slope, differences(function, x), atol=2e-7, rtol=2e-6)
    if ask == "marginal":
        assert (slope[~visible] == 0).all()
        hidden = torch.where(visible, x, math.nan)
        close(grad(function)(hidden), slope)
    torch.testing.assert_close(hessian(function)(x), differences(grad(function), x), atol=2e-6, rtol=2e-5)


def rows_of(name):
    make, at, visible = case(name)
    return make, at + 0.3 * torch.randn(4, len(at)), make(at).sample((4,)), visible


def loop(function, *each):
    return torch.stack([function(*row) for row in zip(*each, strict=True)])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("ask", [pytest.param(ask, marks=pytest.mark.slow if ask == "conditionals" else ()) for ask in ASK])
@pytest.mark.parametrize("name", ALL)
def test_vmap_over_values_and_parameters(name, ask):
    applies(name, ask)
    make, at, x, visible = rows_of(name)
    function = functools.partial(asked, make, ask, visible)
    close(vmap(function, (None, 0))(at[0], x), loop(lambda x: function(at[0], x), x))
    close(vmap(function, (0, None))(at, x), loop(lambda t: function(t, x), at))
    close(vmap(function)(at, x), loop(function, at, x))
    close(vmap(vmap(function, (None, 0)), (0, None))(at, x), loop(lambda t: function(t, x), at))
    close(vmap(grad(function))(at, x), loop(grad(function), at, x))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["chain", "net", "gaussian", "low-rank student t", "NADE", "OrderlessNADE", "mixture of a list"])
def test_vmap_over_hessians(name):
    make, at, x, visible = rows_of(name)
    function = functools.partial(asked, make, "marginal", visible)
    close(vmap(hessian(function))(at[:2], x[:2]), loop(hessian(function), at[:2], x[:2]))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("ask", ["marginal", "given"])
@pytest.mark.parametrize("name", ALL)
def test_vmap_over_patterns_is_a_loop_or_refused(name, ask):
    make, at, x, _ = rows_of(name)
    patterns = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]]).bool()

    def function(x, visible):
        return ASK[ask](make(at[0]), torch.where(visible, x, math.nan) if ask == "marginal" else x, visible)

    if name in CHAINS:
        with pytest.raises(IntractableError, match="vmap"):
            vmap(function)(x, patterns)
        return
    close(vmap(function)(x, patterns), loop(function, x, patterns))
    close(vmap(function, (None, 0))(x[0], patterns), loop(lambda v: function(x[0], v), patterns))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", [n for n in [*TABLES, "gaussian", "student t", "low-rank gaussian", "NADE", "OrderlessNADE"] if "mixture" not in n])
def test_modes_under_vmap(name):
    make, at, x, visible = rows_of(name)

    def mode(t, x):
        return make(t).given(x, visible).mode

    close(vmap(mode)(at, x), loop(mode, at, x))


@pytest.mark.usefixtures("unchecked")
def test_modes_over_patterns_of_an_any_order_family_are_refused():
    make, at, x, visible = rows_of("OrderlessNADE")
    with pytest.raises(IntractableError, match="vmap"):
        vmap(lambda v: make(at[0]).given(x[0], v).mode)(visible.expand(2, 3))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", [*TABLES, "gaussian", "student t", "low-rank student t", "mixture of gaussians", "NADE", "OrderlessNADE"])
def test_draws_under_vmap_follow_their_parameters(name):
    """Mean of 4000 draws of each of three joints, within 5.5 standard errors: false alarms under 1e-5 over all cells of a case."""
    make, at, x, visible = rows_of(name)
    at = at[:3].clone()
    for which in ("joint", "given"):
        def draw(t, x, which=which):
            joint = make(t)
            return (joint if which == "joint" else joint.given(x, visible)).sample((4000,))

        found = vmap(draw, (0, None), randomness="different")(at, x[0])
        wanted = torch.stack([draw(t, x[0]) for t in at])
        assert found.shape == (3, 4000, 3)
        found, wanted = found.atan(), wanted.atan()  # heavy tails have no mean of their own
        error = (found.var(1) + wanted.var(1)).div(4000).sqrt()
        assert ((found.mean(1) - wanted.mean(1)).abs() <= 5.5 * error + 1e-12).all()
        if which == "given":
            assert (found[..., visible] == x[0][visible].atan()).all()


@pytest.mark.parametrize("name", [*TABLES, "gaussian", "low-rank student t", "mixture of gaussians", "transformed"])
def test_validation_under_vmap_is_refused_in_words(name):
    make, at, x, visible = rows_of(name)
    for function in (lambda t, x: make(t).log_prob(x), lambda t, x: make(at[0]).marginal(visible).log_prob(x)):
        with pytest.raises(RuntimeError, match="validate_args=False"):
            vmap(function)(at, x)


@pytest.mark.usefixtures("unchecked")
def test_impossible_evidence_under_vmap_is_no_number():
    """`given` cannot refuse it there: what it says of it is NaN, never a number."""
    forbidding = FullyIndependent(torch.tensor([[0.0, -math.inf], [0.0, 1.0]]))
    x, seen = torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.tensor([True, False])
    close(vmap(lambda x: forbidding.marginal(seen).log_prob(x))(x), torch.tensor([0.0, -math.inf]))
    found = vmap(lambda x: forbidding.given(x, seen).log_prob(x))(x)
    assert found.isnan().tolist() == [False, True]
    modes = vmap(lambda x: forbidding.given(x, seen).mode)(x)
    assert modes.isnan().all(-1).tolist() == [False, True]
    with pytest.raises(RuntimeError, match="nan"):  # torch's own refusal to draw
        vmap(lambda x: forbidding.given(x, seen).sample((3,)), randomness="different")(x)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("make", [lambda m: Gaussian(torch.zeros(2), m), lambda m: StudentT(3.0, torch.zeros(2), m)])
def test_a_matrix_that_is_not_positive_definite_is_refused_under_vmap(make):
    bad = torch.stack([torch.eye(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])])
    x = torch.zeros(2)
    with pytest.raises(RuntimeError, match="positive"):
        vmap(lambda m: make(m).log_prob(x))(bad)
    with pytest.raises(RuntimeError, match="positive"):
        vmap(lambda m: make(m).marginal(torch.ones(2, dtype=torch.bool)).log_prob(x))(bad)
