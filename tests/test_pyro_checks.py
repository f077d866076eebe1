"""What Pyro's own tests ask of every distribution, asked of one instance of every class of joint, and of marginals and completions.

The properties are those of `tests/distributions/test_distributions.py` in Pyro's repository, stated anew: supports, shapes, shapes from
shapes, enumeration, expanding in every way, wrapping, reparameterisation and pickling.
"""

import pickle

from collections.abc import Mapping

import pyro.distributions as dist
import pytest
import torch

from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import transforms

import pyro_ar as par

from pyro_ar.changes.transformed import Transformed
from pyro_ar.elliptical import Gaussian, LowRankGaussian, LowRankStudentT, StudentT
from pyro_ar.joint import Joint
from pyro_ar.mixture import Averaged, Mixture
from pyro_ar.neural.autoregressive import Autoregressive
from pyro_ar.queries import Given, Latent, Marginal
from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain

randn = torch.randn
FORK = [(), (0,), (0,)]


def net_tables(*batch):
    return [randn(*batch, 2), randn(2, 2), randn(*batch, 2, 2)]


def neural(family, draws=(), context=None, order=None):
    """The arguments of the joint of a family, with draws of its weights."""
    net = family(context).net
    weights = {name: p.detach() + 0.1 * randn(*draws, *p.shape) for name, p in family.net.named_parameters()}
    return Autoregressive, {"net": net, "weights": weights, "output": family.output, "order": order, "context": context}


def mixture_chain():
    scores = torch.tensor([[-1.0, 0.0, 1.0]]).expand(3, 3)
    return par.MixtureChain(torch.zeros(2, 2), 5.0, randn(2, 2, 3), torch.eye(3).expand(2, 2, 3, 3), scores, hidden=2)


def made(name):
    kind, arguments = CASES[name]()
    return kind(**arguments)


CASES = {
    "full table": lambda: (FullTable, {"logits": randn(2, 3, 2)}),
    "full table, batch": lambda: (FullTable, {"logits": randn(3, 1, 2, 2), "num_states": (2, 2)}),
    "independent": lambda: (FullyIndependent, {"logits": randn(3, 2)}),
    "independent, batch": lambda: (FullyIndependent, {"logits": randn(4, 1, 3, 2)}),
    "independent, ragged": lambda: (FullyIndependent, {"logits": [randn(2), randn(5, 3), randn(2, 1, 2)]}),
    "chain": lambda: (MarkovChain, {"initial_logits": randn(2), "transition_logits": randn(2, 2, 2)}),
    "chain, batch": lambda: (MarkovChain, {"initial_logits": randn(3, 2), "transition_logits": randn(2, 1, 4, 2, 2)}),
    "chain of order 2": lambda: (MarkovChain, {"initial_logits": randn(2, 2), "transition_logits": randn(3, 2, 2, 2, 2), "order": 2}),
    "chain, ragged": lambda: (MarkovChain, {"initial_logits": randn(2), "transition_logits": [randn(2, 3), randn(4, 3, 2)]}),
    "chain, one table": lambda: (MarkovChain, {"initial_logits": randn(2), "transition_logits": randn(3, 2, 2), "num_variables": 4}),
    "chain, stationary": lambda: (MarkovChain, {"initial_logits": None, "transition_logits": randn(3, 2, 2), "num_variables": 4}),
    "bayes net": lambda: (BayesNet, {"parents": FORK, "tables": net_tables()}),
    "bayes net, batch": lambda: (BayesNet, {"parents": FORK, "tables": net_tables(4)}),
    "tree, batch": lambda: (ChowLiuTree, {"parents": FORK, "tables": net_tables(2, 1)}),
    "gaussian": lambda: (Gaussian, {"loc": randn(3), "covariance_matrix": torch.eye(3) + 0.3}),
    "gaussian, batch": lambda: (Gaussian, {"loc": randn(2, 1, 3), "covariance_matrix": (torch.eye(3) + 0.3).expand(4, 3, 3)}),
    "student t": lambda: (StudentT, {"df": 4.0, "loc": randn(3), "scale_matrix": torch.eye(3)}),
    "student t, batch": lambda: (StudentT, {"df": torch.tensor([[3.0], [5.0]]), "loc": randn(4, 3), "scale_matrix": torch.eye(3)}),
    "low-rank gaussian": lambda: (LowRankGaussian, {"loc": randn(5, 3), "cov_factor": randn(3, 2), "cov_diag": torch.ones(3)}),
    "low-rank student t": lambda: (LowRankStudentT, {
        "df": torch.tensor([3.0, 4.0]), "loc": randn(3), "cov_factor": randn(1, 3, 1), "cov_diag": torch.ones(3)}),
    "transformed": lambda: (Transformed, {"joint": made("gaussian, batch"), "transform": transforms.ExpTransform()}),
    "mixture over a batch": lambda: (Mixture, {"log_weights": randn(4), "joints": FullyIndependent(randn(4, 3, 2))}),
    "mixture over a batch, batch": lambda: (Mixture, {"log_weights": randn(5, 1, 4), "joints": FullyIndependent(randn(3, 4, 3, 2))}),
    "mixture of a list": lambda: (Mixture, {"log_weights": randn(3, 2), "joints": [FullyIndependent(randn(3, 2)), made("chain, order 1")]}),
    "mixture of gaussians": lambda: (Mixture, {"log_weights": randn(4), "joints": made("gaussian, batch")}),
    "average": lambda: (Averaged, {"log_weights": torch.zeros(4), "joints": FullyIndependent(randn(4, 3, 2))}),
    "fvsbn": lambda: neural(par.FVSBN(3)),
    "fvsbn, three states, draws": lambda: neural(par.FVSBN(3, par.outputs.Categorical(3)), (4,)),
    "nade": lambda: neural(par.NADE((1, 3), hidden=2)),
    "nade, normal, context": lambda: neural(par.NADE(3, hidden=2, output=par.outputs.Normal(), context_dim=2), context=randn(2, 1, 2)),
    "nade, mixture of normals, draws": lambda: neural(par.NADE(3, hidden=2, output=par.outputs.MixtureOfNormals(2)), (2, 1)),
    "made, three states, context and draws": lambda: neural(
        par.MADE(3, hidden=4, output=par.outputs.Categorical(3, "one-hot"), context_dim=2), (4, 1), randn(3, 2)),
    "made, grey levels": lambda: neural(par.MADE((3, 1), hidden=4, output=par.outputs.DiscretisedLogisticMixture(4, 2))),
    "orderless, orders": lambda: neural(par.OrderlessNADE(3, hidden=2), order=par.order.random_orders((5,), 3)),
    "orderless, three states": lambda: neural(par.OrderlessNADE(3, hidden=2, output=par.outputs.Categorical(3, "level")), (2,)),
    "mixture over orders": lambda: (Mixture, {"log_weights": torch.zeros(2), "joints": Autoregressive(
        **neural(par.OrderlessNADE(3, hidden=2), order=par.order.random_orders((2,), 3))[1])}),
    "mixture chain": lambda: neural(mixture_chain(), context=torch.eye(2), order=torch.arange(3)),
    "chain, order 1": lambda: (MarkovChain, {"initial_logits": randn(2), "transition_logits": randn(2, 2, 2)}),
}
ASKED = ["full table, batch", "independent, batch", "chain", "bayes net, batch", "gaussian, batch", "low-rank student t", "transformed",
         "mixture over a batch, batch", "mixture of gaussians", "nade", "nade, normal, context", "orderless, orders", "mixture chain"]


def pattern(joint, *rows):
    """The first cell of the chain alone is seen."""
    order = joint.order.reshape(-1, joint.order.shape[-1])[0] if not isinstance(joint, Mixture) else torch.arange(joint.event_shape.numel())
    seen = torch.zeros(joint.event_shape.numel(), dtype=torch.bool)
    seen[order[0]] = True
    return seen.reshape(joint.event_shape).expand(*rows, *joint.event_shape)


def asked(kind, name, rows):
    def arguments():
        joint = made(name)
        visible = pattern(joint, *rows)
        if kind is Marginal:
            return Marginal, {"joint": joint, "visible": visible}
        return Given, {"joint": joint, "x": joint.sample(rows[:1]), "visible": visible}

    return arguments


for _name in ASKED:
    CASES[f"marginal of {_name}"] = asked(Marginal, _name, ())
    CASES[f"given of {_name}"] = asked(Given, _name, ())
CASES["marginal of chain, a pattern per row"] = asked(Marginal, "chain", (5,))
CASES["given of chain, a value per row"] = asked(Given, "chain", (5,))
CASES["latent of gaussian"] = lambda: (Latent, {"given": made("given of gaussian, batch")})
ALL = list(CASES)


@pytest.mark.parametrize("name", ALL)
def test_support_has_the_shape_of_the_batch_and_holds_the_samples(name):
    one = made(name)
    x = one.sample((3,))
    support = one.support
    assert support.event_dim == len(one.event_shape) == one.event_dim
    good = support.check(x)
    assert good.shape == (3, *one.batch_shape)
    assert good.all()
    joint = getattr(getattr(one, "given", one), "joint", one)
    assert support.is_discrete == (joint.num_states is not None)


def shape_of(argument):
    """What `infer_shapes` is told in place of an argument."""
    if isinstance(argument, Tensor):
        return argument.shape
    if isinstance(argument, Joint | Given):
        return argument.batch_shape, argument.event_shape
    if isinstance(argument, Mapping):
        return {name: shape_of(t) for name, t in argument.items()}
    if isinstance(argument, float):
        return ()
    return [shape_of(part) for part in argument] if isinstance(argument, list) else argument


@pytest.mark.parametrize("name", ALL)
def test_shapes_follow_from_shapes(name):
    kind, arguments = CASES[name]()
    shapes = {key: shape_of(value) for key, value in arguments.items()}
    one = kind(**arguments)
    found = kind.infer_shapes(**shapes)
    assert found == (one.batch_shape, one.event_shape)
    assert all(isinstance(shape, Size) for shape in found)
    itself = {key: value if isinstance(value, Joint | Given) else shapes[key] for key, value in arguments.items()}
    assert kind.infer_shapes(**itself) == found


@pytest.mark.parametrize(("kind", "shapes", "error", "match"), [
    (FullTable, {"logits": (3, 2, 2), "num_states": ()}, NotImplementedError, "num_states"),
    (FullTable, {"logits": (3, 2, 2), "num_states": (2, 3)}, ValueError, "numbers of states"),
    (FullyIndependent, {"logits": (3,)}, ValueError, "at least 2 dimensions"),
    (FullyIndependent, {"logits": [(2, 2), (3, 2)]}, ValueError, "broadcast"),
    (MarkovChain, {"initial_logits": (2,), "transition_logits": (3, 2, 2), "order": ()}, NotImplementedError, "order"),
    (MarkovChain, {"initial_logits": (4, 2), "transition_logits": (3, 3, 2, 2)}, ValueError, "broadcast"),
    (BayesNet, {"parents": (), "tables": [(2,), (2, 2)]}, NotImplementedError, "parents"),
    (BayesNet, {"parents": [(), (0,)], "tables": [(2,), (2,)]}, ValueError, "at least 2 dimensions"),
    (Gaussian, {"loc": (2, 3), "covariance_matrix": (5, 3, 3)}, ValueError, "broadcast"),
    (Gaussian, {"loc": (3,)}, ValueError, "covariance_matrix"),
    (StudentT, {"loc": (3,), "scale_matrix": (3, 3), "scale": ()}, ValueError, "df, loc, scale_matrix"),
    (Mixture, {"log_weights": (4,), "joints": ()}, NotImplementedError, "its own"),
    (Mixture, {"log_weights": (4,), "joints": ((3,), (2,))}, ValueError, "number of components"),
    (Mixture, {"log_weights": (2,), "joints": [((), (2,)), ((), (3,))]}, ValueError, "one event shape"),
    (Transformed, {"joint": (), "transform": ()}, NotImplementedError, "give the joint"),
    (Autoregressive, {"net": (), "weights": (), "output": ()}, NotImplementedError, "net itself"),
    (Marginal, {"joint": (), "visible": (3,)}, NotImplementedError, "give the joint"),
    (Marginal, {"joint": ((2,), (3,)), "visible": (4, 3)}, ValueError, "pattern"),
    (Given, {"joint": ((2,), (3,)), "x": (4, 3), "visible": (3,)}, ValueError, "value"),
    (Joint, {"logits": (3,)}, NotImplementedError, "make one and ask it"),
])
def test_shapes_that_do_not_follow_are_refused_in_words(kind, shapes, error, match):
    with pytest.raises(error, match=match):
        kind.infer_shapes(**shapes)


@pytest.mark.parametrize("name", ALL)
def test_log_prob_has_the_broadcast_shape(name):
    one = made(name)
    event = len(one.event_shape)
    for rows in ((), (1,), (5,), (5, *[1] * len(one.batch_shape))):
        x = one.sample()
        x = x.expand(rows + x.shape) if len(rows) < 2 else x[(0,) * len(one.batch_shape)].expand(rows + one.event_shape)
        wanted = torch.broadcast_shapes(one.shape(), x.shape)
        assert one.log_prob(x).shape == wanted[: len(wanted) - event]


@pytest.mark.parametrize("name", ALL)
def test_values_of_a_wrong_shape_are_refused(name):
    one = made(name)
    with pytest.raises(ValueError, match="shape"):
        one.log_prob(torch.ones(*one.shape(), 1).expand(*one.shape(), 7))
    if one.batch_shape:
        wide = torch.ones(one.batch_shape[0] + 2, *one.batch_shape[1:], *one.event_shape)
        if one.batch_shape[0] > 1:
            with pytest.raises(ValueError, match="broadcast"):
                one.log_prob(wide)


@pytest.mark.parametrize("name", ALL)
def test_enumeration_has_its_shapes(name):
    one = made(name)
    if not one.has_enumerate_support:
        with pytest.raises(NotImplementedError):
            one.enumerate_support()
        return
    for d in (one, one.expand((4, *one.batch_shape))):
        every, thin = d.enumerate_support(), d.enumerate_support(expand=False)
        assert every.shape == (len(every), *d.batch_shape, *d.event_shape)
        assert thin.shape == (len(every), *[1] * len(d.batch_shape), *d.event_shape)
        assert torch.equal(d.enumerate_support(expand=True), every)
        assert torch.equal(thin.expand(every.shape), every)


def answers_agree(small, large):
    """Draws of one are scored alike by both."""
    x = small.sample()
    torch.testing.assert_close(small.log_prob(x).expand(large.batch_shape), large.log_prob(x))
    x = large.sample()
    assert x.shape == large.shape()
    torch.testing.assert_close(small.log_prob(x), large.log_prob(x))


def by_default(one, shape):
    return TorchDistribution.expand(one, Size(shape))


@pytest.mark.parametrize("name", ALL)
def test_expanding_in_every_way(name):
    small = made(name)
    for rows in ((), (2,), (2, 3)):
        for kind in (Size, tuple, list):
            large = small.expand_by(kind(rows))
            assert large.batch_shape == rows + small.batch_shape
            assert isinstance(small.expand(kind(rows + small.batch_shape)).batch_shape, Size)
        answers_agree(small, large)
        answers_agree(small, by_default(small, rows + small.batch_shape))
    for dim, size in enumerate(small.batch_shape):
        if size == 1:
            shape = [*small.batch_shape[:dim], 5, *small.batch_shape[dim + 1:]]
            answers_agree(small, small.expand(shape))
            answers_agree(small, by_default(small, shape))
    for way in (lambda one, shape: one.expand(shape), by_default):
        one = small
        for shape in ((2, 1, 1), (2, 1, 3), (2, 5, 3)):
            larger = way(one, Size(shape) + small.batch_shape)
            assert larger.batch_shape == shape + small.batch_shape
            answers_agree(one, larger)
            one = larger
        for first, second in (((2, 1), (4, 3)), ((2, 4), (2, 2, 1)), ((1, 2, 1), (2, 1))):
            with pytest.raises((ValueError, RuntimeError)):
                way(small, Size(first) + small.batch_shape).expand(Size(second) + small.batch_shape)


@pytest.mark.parametrize("name", ALL)
def test_wrapping(name):
    one = made(name)
    batch, event, x = one.batch_shape, one.event_shape, one.sample((2,))
    wrapped = one.expand_by((3,)).to_event(1 + len(batch))
    assert wrapped.shape() == (3, *batch, *event)
    assert wrapped.event_dim == 1 + len(batch) + len(event)
    y = wrapped.sample((2,))
    torch.testing.assert_close(wrapped.log_prob(y), one.log_prob(y).reshape(2, -1).sum(-1))
    torch.testing.assert_close(dist.Independent(one, len(batch)).log_prob(x), one.log_prob(x).reshape(2, -1).sum(-1))
    for keep in (True, False):
        masked = one.mask(torch.tensor(keep))
        assert masked.sample((2,)).shape == x.shape
        torch.testing.assert_close(masked.log_prob(x), one.log_prob(x) if keep else torch.zeros(2, *batch))


@pytest.mark.parametrize("name", ALL)
def test_samples_and_reparameterisation(name):
    kind, arguments = CASES[name]()
    one = kind(**arguments)
    for rows in (Size(), Size([3]), Size([2, 3])):
        assert one.sample(rows).shape == rows + one.shape()
        assert one(rows).shape == rows + one.shape()
    assert not one.sample().requires_grad
    joint = getattr(getattr(one, "given", one), "joint", one)
    for t in joint.tensors.values():
        t.requires_grad_(t.is_floating_point() and t.is_leaf)
    joint = joint.with_tensors(joint.tensors)
    if isinstance(one, Marginal | Given):
        visible = one.visible if isinstance(one, Given) else arguments["visible"]
        one = joint.marginal(visible) if isinstance(one, Marginal) else joint.given(arguments["x"], visible)
    elif isinstance(one, Latent):
        one = joint.given(one.given._x, one.given.visible).latent()
    else:
        one = joint
    assert not one.sample().requires_grad
    if one.has_rsample:
        assert one.rsample((2,)).requires_grad
    else:
        with pytest.raises(NotImplementedError):
            one.rsample()


@pytest.mark.parametrize("name", ALL)
def test_pickling(name):
    one = made(name)
    for d in (one, one.expand((2, *one.batch_shape))):
        twin = pickle.loads(pickle.dumps(d))
        x = d.sample()
        assert twin.shape() == d.shape()
        assert torch.equal(twin.log_prob(x), d.log_prob(x))
