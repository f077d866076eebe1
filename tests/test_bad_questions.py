"""Questions about hidden cells that cannot be asked, and those at the edge: of every kind of joint."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_ar as par

from pyro_ar.inference import estimate_log_marginal, sample_given
from pyro_ar.outputs import Normal

torch.manual_seed(0)
BITS = (torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
REAL = torch.randn(40, 4, generator=torch.Generator().manual_seed(1)).double()
JOINTS = {
    "independent": par.FullyIndependent.from_data(BITS), "Markov chain": par.MarkovChain.from_data(BITS), "tree": par.ChowLiuTree.from_data(BITS),
    "latent tree": par.LatentTree.from_data(BITS, num_hidden=2, epochs=2), "chain of nets": par.NADE(4, 3)(), "any-order": par.OrderlessNADE(4, 3)(),
    "mixture": par.Mixture(torch.zeros(2), [par.FullyIndependent.from_data(BITS[:20]), par.FullyIndependent.from_data(BITS[20:])]),
    "Gaussian": par.Gaussian.from_data(REAL), "Student-t": par.StudentT.from_data(REAL), "low rank": par.LowRankGaussian.from_data(REAL, rank=1),
    "chain over numbers": par.NADE(4, 3, Normal())(),
}
ALL, NOTHING = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)


def rows(joint):
    return (BITS if joint.num_states is not None else REAL)[:3].to(joint.dtype)


@pytest.mark.parametrize("name", JOINTS)
@pytest.mark.parametrize("visible", [torch.ones(3, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool), torch.ones(4),
                                     torch.ones(4, dtype=torch.long), "left"], ids=["too short", "too long", "float", "whole", "a word"])
def test_bad_patterns_are_refused(name, visible):
    joint = JOINTS[name]
    with pytest.raises(ValueError, match="visible"):
        joint.marginal(visible)
    with pytest.raises(ValueError, match="visible"):
        joint.given(rows(joint), visible)


@pytest.mark.parametrize("name", JOINTS)
def test_everything_hidden_and_nothing_hidden(name):
    joint = JOINTS[name]
    x = rows(joint)
    torch.testing.assert_close(joint.marginal(NOTHING).log_prob(torch.full_like(x, math.nan)), torch.zeros(3, dtype=joint.dtype), atol=1e-6, rtol=0)
    torch.testing.assert_close(joint.marginal(ALL).log_prob(x), joint.log_prob(x))
    assert torch.equal(joint.given(x, ALL).sample(), x)
    drawn = joint.given(x, NOTHING).sample()
    assert drawn.shape == x.shape
    assert bool(drawn.isfinite().all())


@pytest.mark.parametrize("name", JOINTS)
def test_visible_values_outside_the_support_are_refused(name):
    joint, visible = JOINTS[name], torch.tensor([True, True, False, False])
    bad = rows(joint).clone()
    bad[1, 1] = 2.0 if joint.num_states is not None else math.inf
    for ask in (lambda x: joint.marginal(visible).log_prob(x), lambda x: joint.given(x, visible)):
        with pytest.raises(ValueError, match=r"support|finite|states|value"):
            ask(bad)
        missing = rows(joint).clone()
        missing[0, 0] = math.nan
        with pytest.raises(ValueError, match=r"support|finite|states|NaN|value"):
            ask(missing)
    bad[:, 1], bad[:, 3] = 0.0, 7.0
    assert bool(joint.marginal(visible).log_prob(bad).isfinite().all())  # what is hidden may be anything


def test_impossible_evidence():
    sure = par.FullyIndependent(torch.tensor([[0.0, -math.inf], [0.0, 0.0]]))
    x, visible = torch.tensor([1.0, 0.0]), torch.tensor([True, False])
    assert float(sure.marginal(visible).log_prob(x)) == -math.inf
    with pytest.raises(ValueError, match="probability zero"):
        sure.given(x, visible)
    with pytest.raises(ValueError, match="probability zero"):
        par.GenerativeClassifier([sure, sure]).fit(np.zeros((2, 2)), [0, 1]).predict(x[None].numpy(), visible.numpy())


@pytest.mark.parametrize("ask", [estimate_log_marginal, sample_given])
def test_questions_to_particles(ask):
    chain, visible = JOINTS["chain of nets"], torch.arange(4) > 1
    for options in ({"num_particles": 1}, {"num_islands": 1}, {"num_particles": 2.5}):
        with pytest.raises(ValueError, match="must be 2 or more"):
            ask(chain, BITS[0], visible, **options)
    with pytest.raises(ValueError, match="want a chain"):
        ask(JOINTS["tree"], BITS[0], visible)
    with pytest.raises(ValueError, match="visible"):
        ask(chain, BITS[0], torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"support|states|value"):
        ask(chain, torch.full((4,), 2.0), visible)


def test_tables_that_cannot_be_filled():
    """The same of frames in `tests/imputation`; here one row of each kind of trouble, together with what is said."""
    good = pd.DataFrame({"size": [1.5, 2.5, None, 4.0], "colour": ["red", None, "blue", "red"]})
    with pytest.raises(ValueError, match="column size is all missing"):
        par.JointImputer("mixture of 4").fit(good.assign(size=np.nan))
    with pytest.raises(ValueError, match="column colour must hold numbers or words, not both"):
        par.JointImputer("mixture of 4").fit(good.assign(colour=["red", 3, "blue", "red"]))
    fitted = par.JointImputer("mixture of 4").fit(good)
    with pytest.raises(ValueError, match="column colour holds what it never held in fit"):
        fitted.transform(good.assign(colour="green"))
    nothing = fitted.transform(pd.DataFrame({"size": [np.nan], "colour": [None]}).astype(good.dtypes))
    assert not nothing.isna().any().any()
