"""Every joint, what it says of partly seen rows, and posteriors come back from a file with the same answers, bit by bit."""

import importlib
import inspect
import pkgutil

import pyro.distributions as dist
import pytest
import torch

from pyro.distributions import transforms
from torch.distributions.transforms import CatTransform

import pyro_ar as par

from pyro_ar.changes.transformed import logit
from pyro_ar.files.classes import CLASSES
from pyro_ar.joint import Joint
from pyro_ar.latent import LatentTree
from pyro_ar.mixture import Averaged
from pyro_ar.neural.registry import FAMILIES
from pyro_ar.outputs import Bernoulli, Categorical, Normal, PerVariable
from pyro_ar.queries import Given, Latent, Marginal

randn = torch.randn
NET = [(), (0,), (0, 1)]
AFFINE = transforms.AffineTransform(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, -1.0, 0.5]))


def gaussian(*batch, size=3):
    root = randn(*batch, size, size)
    return par.Gaussian(randn(*batch, size), root @ root.mT / size + 0.2 * torch.eye(size))


def named_net():
    net = par.BayesNet(NET, [randn(4, 2), randn(2, 3), randn(4, 2, 3, 2)])
    net.variables, net.state_names = ("rain", 1, "wet"), (("no", "yes"), (0, 1, 2), ("dry", "wet"))
    return net


def transformed(transform):
    return par.Transformed(gaussian(2), transform)


def ranks():
    return par.RankNormal.from_data(randn(30, 3))


def chain(context_dim=1, **options):
    scores = randn(3, 4).cumsum(-1).exp().cumsum(-1)
    shape = (max(context_dim, 1), 2)
    return par.MixtureChain(randn(shape), 5.0, randn(*shape, 3), torch.eye(3).expand(*shape, 3, 3), scores, hidden=4, **options)


def drawn(family, *draws):
    """A joint of several draws of the weights."""
    joint = family()
    return joint.with_tensors({name: t.detach() + 0.3 * randn(*draws, *t.shape) for name, t in joint.tensors.items()})


def in_eval(family):
    return family.eval()()


def of_family(entry):
    return lambda: entry.family(4, **entry.small, order=[2, 0, 3, 1], context_dim=2, output=Categorical(3))(randn(5, 2))


def partly(kind):
    joint, visible = gaussian(2), torch.tensor([[True, False, True], [False, False, True]])
    return joint.marginal(visible) if kind == "marginal" else joint.given(randn(4, 2, 3), visible)


JOINTS = {
    "full table": lambda: par.FullTable(randn(3, 2, 3), num_states=(2, 3)),
    "full table, impossible states": lambda: par.FullTable(torch.tensor([[0.3, -torch.inf], [1.0, 0.2]])),
    "independent": lambda: par.FullyIndependent(randn(4, 3)),
    "independent, ragged": lambda: par.FullyIndependent([randn(2), randn(3, 4), randn(2, 1, 3)]),
    "chain of order 2": lambda: par.MarkovChain(randn(2, 2), randn(2, 2, 2, 2), order=2),
    "chain, ragged": lambda: par.MarkovChain(randn(2), [randn(2, 3), randn(3, 2)]),
    "stationary chain of order 2": lambda: par.MarkovChain(None, randn(2, 2, 2, 2), order=2, num_variables=5),
    "chain of one table": lambda: par.MarkovChain(randn(3), randn(3, 3), num_variables=4),
    "bayes net with names": named_net,
    "tree": lambda: par.ChowLiuTree.from_data(torch.randint(3, (20, 4)).to(torch.get_default_dtype()), weights=torch.rand(2, 20)),
    "gaussian": lambda: gaussian(2),
    "gaussian, shared matrix that lies across": lambda: par.Gaussian(randn(3, 4).mT, gaussian().covariance_matrix.mT),
    "gaussian, expanded": lambda: gaussian(2).expand([5, 2]),
    "gaussian, unchecked": lambda: par.Gaussian(randn(3), torch.eye(3), validate_args=False),
    "student": lambda: par.StudentT(torch.tensor([3.0, 4.0]), randn(2, 3), gaussian(2).covariance_matrix),
    "low rank": lambda: par.LowRankGaussian(randn(3), randn(3, 2), torch.rand(3) + 0.1),
    "low rank student": lambda: par.LowRankStudentT(4.5, randn(2, 3), randn(3, 2), torch.rand(3) + 0.1),
    "latent tree": lambda: LatentTree(randn(2, 3), randn(2, 3, 3), randn(3, 3, 2), Categorical(3), parents=(-1, 0, 0), nodes=(1, 0, 2)),
    "latent star": lambda: LatentTree(randn(3), None, randn(4, 3, 2), PerVariable([Normal(), Bernoulli(), Categorical(3), Normal(0.1)])),
    "mixture over a batch": lambda: par.Mixture(randn(2, 3), gaussian(2, 3)),
    "mixture of a list": lambda: par.Mixture(randn(2), [par.FullTable(randn(2, 2)), par.FullyIndependent(randn(3, 2, 2))]),
    "averaged": lambda: Averaged(torch.zeros(3), par.FullyIndependent(randn(3, 4, 2))),
    "expanded mixture of expanded": lambda: par.Mixture(randn(3), gaussian().expand([3])).expand([2]),
    "affine": lambda: transformed(AFFINE),
    "log-normal, shifted": lambda: transformed(transforms.ComposeTransform([transforms.ExpTransform(), transforms.AffineTransform(1.0, 2.0)])),
    "logit": lambda: transformed(logit(-1.0, 17.0)),
    "inverse": lambda: transformed(transforms.ComposeTransform([transforms.SigmoidTransform(), transforms.SigmoidTransform().inv])),
    "tanh and power": lambda: transformed(transforms.ComposeTransform([transforms.ExpTransform(), transforms.PowerTransform(torch.tensor(2.0))])),
    "softplus": lambda: transformed(torch.distributions.SoftplusTransform()),
    "softplus of pyro": lambda: transformed(transforms.SoftplusTransform()),
    "tanh": lambda: transformed(transforms.TanhTransform()),
    "leaky": lambda: transformed(transforms.LeakyReLUTransform()),
    "cat": lambda: transformed(CatTransform([AFFINE, transforms.AffineTransform(torch.zeros(0), 1.0)], -1, [3, 0])),
    "ranks": lambda: transformed(ranks()),
    **{entry.family.__name__: of_family(entry) for entry in FAMILIES.values() if entry.free},
    "draws of weights": lambda: drawn(par.NADE((2, 2), 3, Normal()), 2, 3),
    "draws of weights, expanded": lambda: drawn(par.MADE(4, 3), 2).expand([4, 2]),
    "columns of their own": lambda: par.FVSBN(4, PerVariable([Bernoulli(), Normal(0.1), Categorical(3, "one-hot"), Bernoulli()]), order=[2, 0, 3, 1])(),
    "a bound order of each row": lambda: par.OrderlessNADE(4, 3)(None, torch.tensor([[0, 1, 2, 3], [3, 1, 0, 2]])),
    "in eval mode": lambda: in_eval(par.OrderlessNADE(4, 3)),
    "a net whose weights lie across": lambda: drawn(par.FVSBN(4), 2),
    "mixture chain": lambda: chain(order=[2, 0, 1])(),
    "mixture chain with context": lambda: chain(2)(torch.eye(2)),
    "over orders": lambda: par.OverOrders(par.OrderlessNADE(4, 3), 3)(),
    "marginal": lambda: partly("marginal"),
    "given": lambda: partly("given"),
    "given, expanded": lambda: partly("given").expand([3, 4, 2]),
    "latent": lambda: partly("given").latent(),
    "marginal of any order": lambda: par.OrderlessNADE(4, 3)().marginal(torch.tensor([False, True, True, False])),
}


@pytest.fixture(params=[torch.float32, torch.float64], ids=["single", "double"])
def precision(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def answers(joint):
    """Draws of one seed and what is said of them, whole and partly seen."""
    torch.manual_seed(3)
    x = joint.sample((3,))
    found = [x, joint.log_prob(x)]
    if isinstance(joint, Joint):
        visible = torch.arange(joint.event_shape.numel()).reshape(joint.event_shape) % 2 == (joint.num_states is not None)
        if isinstance(joint, par.Autoregressive) and joint.num_states is None:
            visible = torch.arange(joint.event_shape.numel()).reshape(joint.event_shape) < 2  # no exact answer for others
        given = joint.given(x, visible)
        found += [joint.marginal(visible).log_prob(x), given.sample(), given.log_prob(x), joint.order if joint.coherent else x]
    return [t.detach() for t in found]


def there_and_back(thing, tmp_path):
    par.save(thing, tmp_path / "file")
    before = torch.get_rng_state()
    back = par.load(tmp_path / "file")
    assert torch.equal(torch.get_rng_state(), before)  # modules are made without touching the draws to come
    return back


def same(joint, back):
    assert type(back) is type(joint)
    assert back.batch_shape == joint.batch_shape
    assert back._validate_args == joint._validate_args
    assert repr(back) == repr(joint)
    for ours, theirs in zip(answers(joint), answers(back), strict=True):
        assert theirs.dtype == ours.dtype
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("make", JOINTS.values(), ids=JOINTS.keys())
def test_joints_answer_as_before(make, precision, tmp_path):
    joint = make()
    back = there_and_back(joint, tmp_path)
    same(joint, back)
    same(joint, there_and_back(back, tmp_path))


def parts_of(thing, found):
    """The classes of a thing and of what it holds."""
    if isinstance(thing, Joint | Marginal | Given | Latent):
        found.add(type(thing))
        for part in thing.arguments.values():
            for one in part if isinstance(part, list | tuple) else [part]:
                parts_of(one, found)


def test_no_joint_is_forgotten():
    for module in pkgutil.walk_packages(par.__path__, "pyro_ar."):
        importlib.import_module(module.name)

    def below(cls):
        return {cls}.union(*(below(sub) for sub in cls.__subclasses__()))

    library = {cls for cls in below(Joint) if cls.__module__.startswith("pyro_ar.")}
    concrete = {cls for cls in library if not inspect.isabstract(cls) and cls.num_parameters is not Joint.num_parameters}
    assert {par.FullTable, par.Gaussian, par.Mixture, par.Autoregressive} < concrete
    tested = set()
    for make in JOINTS.values():
        parts_of(make(), tested)
    assert concrete <= set(CLASSES.values()), "export it from its package"
    assert concrete <= tested, "add a case above"
    assert {entry.family for entry in FAMILIES.values()} <= set(CLASSES.values())
    assert {type(transform) for transform in [ranks()]} <= set(CLASSES.values())


def test_names_of_classes_are_their_own():
    assert all(cls.__name__ == name.rpartition(".")[2] for name, cls in CLASSES.items())
    assert len(set(CLASSES.values())) == len(CLASSES)


def test_names_of_a_net_come_back(tmp_path):
    net = named_net()
    back = there_and_back(net, tmp_path)
    assert (back.variables, back.state_names, back.parents) == (net.variables, net.state_names, net.parents)


def test_what_was_one_is_one_again(tmp_path):
    shared = gaussian()
    back = there_and_back(par.Mixture(randn(2), [shared, shared]), tmp_path)
    assert back.joints[0] is back.joints[1]
    apart = there_and_back(par.Mixture(torch.zeros(2), [par.FullyIndependent(torch.zeros(2, 2)), par.FullyIndependent(torch.zeros(2, 2))]), tmp_path)
    apart.joints[0].logits += 1  # equal numbers stand in the file once, and yet are no one tensor
    assert not torch.equal(apart.joints[0].logits, apart.joints[1].logits)


def test_expanded_tensors_are_not_written_out(tmp_path):
    joint = par.FullyIndependent(randn(1, 50, 2).expand(10_000, 50, 2))
    back = there_and_back(joint, tmp_path)
    assert (tmp_path / "file").stat().st_size < 10_000
    assert back.logits.shape == joint.logits.shape
    assert torch.equal(back.logits, joint.logits)


def test_tensors_lie_as_before(tmp_path):
    matrix = gaussian(2, size=4).covariance_matrix
    joint = par.Gaussian(randn(4, 2).mT, matrix.permute(0, 2, 1))
    assert not joint.loc.is_contiguous()
    back = there_and_back(joint, tmp_path)
    assert back.loc.stride() == joint.loc.stride()
    assert back.covariance_matrix.stride() == joint.covariance_matrix.stride()


@pytest.mark.parametrize("make", [
    lambda: par.FullTable.posterior(torch.randint(2, (9, 3)), concentration=0.5),
    lambda: par.MarkovChain.posterior(torch.randint(3, (9, 4)).double(), equivalent_sample_size=2.0, order=2, stationary=True),
    lambda: par.ChowLiuTree.posterior(torch.randint(2, (9, 4)), concentration=1.0),
], ids=["full table", "stationary chain", "tree"])
def test_posteriors_of_tables(make, tmp_path):
    posterior = make()
    back = there_and_back(posterior, tmp_path)
    assert repr(back) == repr(posterior)
    same(posterior.predictive(), back.predictive())
    torch.manual_seed(1)
    mine = posterior.sample((2,))
    torch.manual_seed(1)
    same(mine, back.sample((2,)))


PRIOR = {"weight": dist.Laplace(0.0, 0.5), "bias": dist.StudentT(4.0, 0.0, 1.5)}


@pytest.mark.parametrize(("family", "prior", "method"), [
    (lambda: par.FVSBN(3), PRIOR, "mean-field"), (lambda: par.NADE(3, 2, order=[2, 0, 1]).double(), 0.7, "nuts"),
], ids=["guide", "nuts"])
def test_posteriors_of_weights(family, prior, method, tmp_path):
    model = par.Bayesian(family(), prior)
    x = torch.randint(2, (20, 3)).to(next(model.family.parameters()))
    x[0, 1] = torch.nan
    options = {"method": method, "num_draws": 4, "num_chains": 2, "steps": 20, "warmup": 2, "max_tree_depth": 1, "seed": 3, "progress": False}
    posterior = model.fit(x, **options)
    back = there_and_back(posterior, tmp_path)
    assert repr(back) == repr(posterior)
    same(posterior.joint, back.joint)
    same(posterior.predictive(3), back.predictive(3))
    for ours, theirs in [(posterior.x, back.x), (posterior.visible, back.visible), (posterior.diverging, back.diverging),
                         *((t, back.draws[name]) for name, t in posterior.draws.items())]:
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0, equal_nan=True)
    assert (back.method, back.elbo, str(back.elbo_change), back.evidence) == (method, posterior.elbo, str(posterior.elbo_change), None)
    again = back.refit(x[:15])  # the same as the fit of the model that was saved, seed and prior included
    for name, t in model.fit(x[:15], **options).draws.items():
        assert torch.equal(again.draws[name], t)


def test_evidence_stays_with_its_posterior(tmp_path):
    model = par.Bayesian(par.FVSBN(2))
    x = torch.randint(2, (10, 2)).float()
    posterior = model.fit(x, method="mean-field", num_draws=2, num_chains=1, steps=5, progress=False)
    posterior.evidence = model.log_evidence(x, num_particles=4, num_runs=2)
    assert there_and_back(posterior, tmp_path).evidence == posterior.evidence


def test_what_cannot_be_written_is_named(tmp_path):
    class Bent(transforms.ExpTransform):
        pass

    cases = {
        r"model\.arguments\.transform.*'Bent'": par.Transformed(gaussian(), Bent()),
        "save wants a family, a joint": [gaussian()],
        "with its family": par.FVSBN(3).net,
        "'Normal'": dist.Normal(0.0, 1.0).expand([2]).to_event(1),
        "'function'": par.GenerativeClassifier(par.FVSBN(3, context_dim=2), train=lambda: None),
    }
    for match, thing in cases.items():
        with pytest.raises(ValueError, match=match if match != "'Normal'" else "does not know how to write model"):
            par.save(thing, tmp_path / "file")
    nan = par.FullyIndependent(torch.zeros(2, 2))
    nan.logits[0, 0] = torch.nan
    with pytest.raises(ValueError, match="logits holds NaN"):
        par.save(nan, tmp_path / "file")
    family = par.FVSBN(3)
    par_of_pyro = importlib.import_module("pyro.nn.module").to_pyro_module_
    par_of_pyro(family)
    with pytest.raises(ValueError, match="Pyro's random ones"):
        par.save(family, tmp_path / "file")
    assert not list(tmp_path.iterdir())


class Biased(par.FullyIndependent):
    """A joint of one's own, with an argument of its own."""

    def __init__(self, logits, by, *, validate_args=None):
        super().__init__(logits + by, validate_args=validate_args)
        self.by = by

    @property
    def arguments(self):
        return {"logits": self.logits - self.by, "by": self.by}


class Forgetful(par.FullyIndependent):
    def __init__(self, table):
        super().__init__(table)


def test_joints_of_ones_own(tmp_path):
    joint = Biased(torch.zeros(2, 2), 1.0)
    par.save(joint, tmp_path / "file")
    with pytest.raises(ValueError, match=r"unknown class.*'Biased'"):
        par.load(tmp_path / "file")
    back = par.load(tmp_path / "file", {"Biased": Biased})
    assert back.by == 1.0
    same(joint, back)
    with pytest.raises(ValueError, match=r"to hold the arguments of its constructor.*'table'"):
        par.save(Forgetful(torch.zeros(2, 2)), tmp_path / "other")
    with pytest.raises(ValueError, match="a name of its own"):
        par.save(type("Gaussian", (Biased,), {})(torch.zeros(2, 2), 1.0), tmp_path / "other")


def test_dimensions_that_go_round_and_equal_numbers_of_other_shapes(tmp_path):
    table = par.FullTable(randn(4, 2, 3).permute(2, 0, 1))  # three dimensions in turn: the way back is another than the way there
    back = there_and_back(table, tmp_path)
    assert torch.equal(back.logits, table.logits)
    assert back.logits.stride() == table.logits.stride()
    ragged = par.FullyIndependent([torch.zeros(2), torch.zeros(1, 2), torch.zeros(1, 1, 2)])
    assert [t.shape for t in there_and_back(ragged, tmp_path).logits] == [t.shape for t in ragged.logits]


@pytest.mark.parametrize("entry", [entry for entry in FAMILIES.values() if entry.images])
def test_families_of_images_and_their_joints(entry, tmp_path):
    family = entry.family((2, 3), **entry.small).eval()
    same(family(), there_and_back(family(), tmp_path))
    same(family(), there_and_back(family, tmp_path)())
