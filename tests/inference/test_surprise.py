"""Surprise of each variable: against enumeration, and in its two readings."""

import itertools

import pytest
import torch

from pyro_ar.elliptical import Gaussian
from pyro_ar.inference import surprise
from pyro_ar.neural import NADE, OrderlessNADE
from pyro_ar.tables import ChowLiuTree, FullyIndependent


def joints():
    torch.manual_seed(0)
    x = torch.randint(0, 2, (30, 4))
    return {"tree": ChowLiuTree.from_data(x), "net over images": NADE((2, 2), hidden=3)(), "batch": FullyIndependent(torch.randn(3, 4, 2)),
            "any order": OrderlessNADE(4, hidden=3)(), "real": Gaussian(torch.zeros(4), torch.eye(4) + 0.5)}


@pytest.mark.parametrize("name", joints())
def test_given_those_before_the_surprises_of_a_row_sum_to_it(name):
    joint = joints()[name]
    x = torch.randint(0, 2, (5, *joint.batch_shape, *joint.event_shape)).float()
    found = surprise(joint, x)
    assert found.shape == x.shape
    assert found.flatten(-len(joint.event_shape)).sum(-1).detach().numpy() == pytest.approx(-joint.log_prob(x).detach().numpy(), abs=1e-5)


@pytest.mark.parametrize("name", ["tree", "net over images", "batch"])
def test_given_the_others_it_is_a_sum_over_the_values_of_one(name):
    joint = joints()[name]
    event = tuple(joint.event_shape)
    values = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
    x = values.reshape(16, *[1] * len(joint.batch_shape), *event).expand(16, *joint.batch_shape, *event)
    found = surprise(joint, x, given="others")
    assert found.shape == x.shape
    flat = found.flatten(-len(event))
    for i in range(4):
        other = values.clone()
        other[:, i] = 1 - other[:, i]
        here, there = joint.log_prob(x), joint.log_prob(other.reshape(16, *[1] * len(joint.batch_shape), *event).expand_as(x))
        assert flat[..., i].detach().numpy() == pytest.approx((torch.logaddexp(here, there) - here).detach().numpy(), abs=1e-5)
    alone = surprise(joint, x[3], given="others")
    assert alone.detach().numpy() == pytest.approx(found[3].detach().numpy(), abs=1e-5)


def test_many_variables_are_answered_in_parts(monkeypatch):
    joint = joints()["tree"]
    x = torch.randint(0, 2, (5, 4)).float()
    whole = surprise(joint, x, given="others")
    monkeypatch.setattr("pyro_ar.inference.surprising.at_once", lambda each: 1)
    assert surprise(joint, x, given="others").numpy() == pytest.approx(whole.numpy())


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="given must be"):
        surprise(joints()["tree"], torch.zeros(4), given="after")
