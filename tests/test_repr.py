"""What things say they are: one line, not long, with what tells them apart."""

from functools import partial

import pytest
import torch

from registered import ANY_SHAPE, OF_IMAGES, VARIANTS
from test_conformance import JOINTS, tree

import pyro_ar as par

from pyro_ar.checks import counted, one_line
from pyro_ar.comparison import TableModel, compare, loo, structure_posterior, to_inference_data
from pyro_ar.inference.bayesian import Bayesian
from pyro_ar.inference.training import Fit
from pyro_ar.neural.over_orders import OverOrders

MOST = 150
randn = torch.randn
FAMILIES = {
    **{name: partial(make, (1, 4, 6), context_dim=3) for name, make in {**ANY_SHAPE, **OF_IMAGES, **VARIANTS}.items()},
    "large NADE": lambda: par.NADE((8, 8), hidden=50, output=par.outputs.Categorical(17), context_dim=10),
    "large MADE": lambda: par.MADE(784, hidden=(500, 500), output=par.outputs.DiscretisedLogisticMixture(256, 10)),
    "large RecurrentAR": lambda: par.RecurrentAR((8, 8), 16, par.outputs.Categorical(17), cell="lstm", layers=2, places=False),
    "large CausalTransformer": lambda: par.CausalTransformer((1, 8, 8), 32, 2, 4, context_dim=10, key_heads=2, dropout=0.1),
    "OverOrders": lambda: OverOrders(par.OrderlessNADE(6, 8), 3),
}
MORE = {
    "StudentT": lambda: par.StudentT(torch.tensor(4.0), torch.zeros(3), torch.eye(3)),
    "LowRankGaussian": lambda: par.LowRankGaussian(torch.zeros(5), randn(5, 2), torch.ones(5)),
    "Transformed": lambda: par.Transformed(par.Gaussian(torch.zeros(2), torch.eye(2)), torch.distributions.ExpTransform()),
    "wide": lambda: par.FullyIndependent(randn(12, 784, 2)),
    "many": lambda: par.Mixture(randn(20), [par.FullyIndependent(randn(3, 2)) for _ in range(20)]),
}


def bound(make):
    family = make()
    width = getattr(family, "context_dim", 0)
    return family(torch.eye(width)) if width else family()


EVERY = JOINTS | MORE | {name: partial(bound, make) for name, make in FAMILIES.items()}


def short(text):
    assert 0 < len(text) <= MOST, text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_every_joint_says_what_it_is(make):
    joint = make()
    said = short(repr(joint))
    assert said.startswith(type(joint).__name__ + "(")
    n = joint.event_shape.numel()
    assert f"{n:,} variable" in said or f"{n:,} real variable" in said
    assert f"{joint.num_parameters:,} parameter" in said
    assert (f"batch {tuple(joint.batch_shape)}" in said) == (joint.batch_shape != ())
    if joint.num_states:
        few, most = min(joint.num_states), max(joint.num_states)
        assert (f"of {few} states" if few == most else f"of {few} to {most} states") in said
    everything = torch.ones(joint.event_shape, dtype=torch.bool)
    assert f"{n} of {n} cells visible" in short(repr(joint.marginal(everything)))
    assert short(repr(joint.marginal(everything))).startswith("Marginal(")


def test_what_tells_classes_apart():
    assert "4 variables of 2 to 3 states, 3 edges, " in repr(tree())
    assert repr(par.MarkovChain(torch.zeros(2, 2), torch.zeros(3, 2, 2, 2), 2)) == "MarkovChain(5 variables of 2 states, order 2, 15 parameters)"
    stationary = par.MarkovChain(None, torch.zeros(3, 2, 2), num_variables=9)
    assert repr(stationary) == "MarkovChain(9 variables of 2 states, order 1, one transition table, stationary start, batch (3,), 2 parameters)"
    assert repr(par.FullTable(torch.zeros(2, 3))) == "FullTable(2 variables of 2 to 3 states, 5 parameters)"
    assert repr(par.Gaussian(torch.zeros(2), torch.eye(2))) == "Gaussian(2 real variables, 5 parameters)"
    assert "20 components of FullyIndependent" in repr(MORE["many"]())
    assert "rank 2" in repr(MORE["LowRankGaussian"]())
    assert "ExpTransform of Gaussian" in repr(MORE["Transformed"]())
    assert repr(par.NADE(4, hidden=3)()) == "Autoregressive(4 variables of 2 states, NADENet, Bernoulli(), 28 parameters)"


def test_patterns_and_completions():
    chain = par.MarkovChain(torch.zeros(2), torch.zeros(3, 2, 2))
    visible = torch.tensor([[True, False, False, True], [True, True, True, False]])
    assert repr(chain.marginal(visible)) == "Marginal(2 to 3 of 4 cells visible in each of 2 patterns, of MarkovChain, 4 variables of 2 states, order 1)"
    assert repr(chain.given(torch.zeros(4), visible[0])) == "Given(2 of 4 cells visible, of MarkovChain, 4 variables of 2 states, order 1)"
    assert "batch (5,)" in short(repr(chain.given(torch.zeros(5, 4), visible[0])))


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_families(make):
    said = short(repr(make()))
    assert said.startswith(type(make()).__name__ + "(")
    if "OverOrders" not in said:
        assert f"{make().num_parameters:,} parameters" in said or said.endswith("...)")


def test_families_of_other_settings_differ():
    """The settings of experiments are told apart by this."""
    kinds = [par.NADE(4, hidden=3), par.NADE(4, hidden=5), par.NADE(4, hidden=3, context_dim=2), par.NADE(4, hidden=3, activation="relu"),
             par.NADE(4, hidden=3, output=par.outputs.Categorical(3)), par.NADE((2, 2), hidden=3), par.NADE(4, hidden=3, order=[3, 2, 1, 0])]
    assert len(set(map(repr, kinds))) == len(kinds)


def test_results():
    x = torch.randint(0, 2, (60, 3))
    posterior = Bayesian(par.FVSBN(3)).fit(x.float(), method="mean-field", num_draws=6, num_chains=2, steps=5, progress=False)
    assert repr(posterior) == "Posterior(mean-field, 2 chains of 6 draws, 6 weights, given 60 rows)"
    tables = par.MarkovChain.posterior(x, equivalent_sample_size=1.0)
    assert repr(tables) == "TablePosterior(of MarkovChain, 3 variables of 2 states, 3 tables)"
    found = compare({"chain": TableModel(par.MarkovChain), "tree": TableModel(par.ChowLiuTree)}, x)
    assert short(repr(found)).startswith(f"Comparison(2 models on 60 rows, best: {found.best}")
    assert "nats/row" in str(found)
    assert "best: " in short(repr(structure_posterior(x)))
    assert short(repr(loo(to_inference_data(tables, x, num_draws=20)))).startswith("Loo(PSIS-LOO (exact posterior), 60 rows, ")
    assert short(repr(Fit(1.0, 3, 4, False, [(1.0, 2.0)] * 500)))


def test_lines_are_bounded():
    assert len(one_line("Thing", "word " * 100)) == MOST
    assert one_line("Thing", "a\nb", "") == "Thing(a b)"
    assert counted(10**400, "cell") == "2^1328 or more cells"
