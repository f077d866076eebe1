"""`enumeration.up_to`: what it lets through is the sum by hand, what it holds back says its price, and it ends with its block."""

import itertools

import numpy as np
import pytest
import torch

import pyro_ar as par

from pyro_ar.checks import IntractableError
from pyro_ar.enumeration import most_states, up_to
from pyro_ar.neural import FVSBN
from pyro_ar.outputs import Categorical, Normal


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return FVSBN(14)().with_tensors({name: torch.randn_like(t) for name, t in FVSBN(14)().tensors.items()})


LAST = torch.arange(14) == 13


def test_a_raised_bound_sums_over_all_states(chain):
    with pytest.raises(IntractableError, match=r"13 hidden variables.*2\^13 joint states, and at most 4096.*up_to\(8192\), at the price of as many passes"):
        chain.marginal(LAST)
    x = torch.zeros(14)
    x[13] = 1.0
    with up_to(8192):
        got = chain.marginal(LAST).log_prob(x)
        assert chain.marginal(LAST).method == "enumeration"
        drawn = chain.given(x, LAST).sample((5,))
    rows = torch.tensor([[*bits, 1.0] for bits in itertools.product([0.0, 1.0], repeat=13)])
    wanted = torch.cat([chain.log_prob(part) for part in rows.split(1000)]).logsumexp(0)
    torch.testing.assert_close(got, wanted)
    assert (drawn[:, 13] == 1).all()
    with pytest.raises(IntractableError, match="at most 4096"):
        chain.marginal(LAST)


def test_a_lowered_bound_refuses(chain):
    few = torch.arange(14) >= 3
    assert chain.marginal(few).method == "enumeration"
    with up_to(7), pytest.raises(IntractableError, match=r"2\^3 joint states, and at most 7"):
        chain.marginal(few)
    with up_to(8):
        assert chain.marginal(few).method == "enumeration"


def test_moments_of_many_states(chain):
    """Means of a mixture of chains over 13 hidden cells, by the sum over all of them."""
    mixture = par.Mixture(torch.zeros(2), [chain, chain])
    x = torch.ones(14)
    with pytest.raises(IntractableError, match="up_to"):
        _ = chain.given(x, LAST).mean
    with up_to(8192):
        got = chain.given(x, LAST).mean
        both = mixture.marginal(LAST).log_prob(x)
    rows = torch.tensor([[*bits, 1.0] for bits in itertools.product([0.0, 1.0], repeat=13)])
    p = chain.log_prob(rows).softmax(0)
    torch.testing.assert_close(got, (p[:, None] * rows).sum(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both, chain.log_prob(rows).logsumexp(0), atol=1e-4, rtol=1e-5)


def test_blocks_nest_and_end_with_an_error():
    assert most_states() == 4096
    with up_to(10):
        with up_to(20):
            assert most_states() == 20
        assert most_states() == 10
    with pytest.raises(ZeroDivisionError), up_to(30):
        _ = 1 / 0
    assert most_states() == 4096


def test_no_way_is_offered_that_cannot_be_paid():
    real = par.NADE(4, 3, Normal())()
    wide = par.NADE(64, 3, Categorical(17))()
    for joint, n in ((real, 4), (wide, 64)):
        with pytest.raises(IntractableError) as error:
            joint.marginal(torch.arange(n) == n - 1)
        assert "up_to" not in str(error.value)
    with up_to(10**9), pytest.raises(IntractableError, match="infinitely many"):
        real.marginal(torch.arange(4) == 3)


@pytest.mark.parametrize("states", [0, -1, 2.0, True, "many", np.nan])
def test_bad_bounds_are_refused(states):
    with pytest.raises(ValueError, match="a whole number of states, 1 or more"), up_to(states):
        pass
