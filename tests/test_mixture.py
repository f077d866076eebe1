"""Mixtures against sums written out by hand."""

import math

import pytest
import torch

from pyro_ar import FullTable, FullyIndependent, Gaussian, IntractableError, MarkovChain, Mixture
from pyro_ar.mixture import Averaged


def both(components=3):
    """The same mixture over a batch dimension and over a list."""
    logits = torch.randn(components, 4, 3)
    weights = torch.randn(components)
    return Mixture(weights, FullyIndependent(logits)), Mixture(weights, [FullyIndependent(t) for t in logits])


def test_list_and_batch_agree_with_a_sum_by_hand():
    batched, listed = both()
    x = batched.sample((50,))
    visible = torch.rand(50, 4) > 0.4
    w = batched.log_weights.softmax(-1)
    for i in range(50):
        total = sum(
            w[m] * math.prod(batched.joints.logits[m, v].softmax(-1)[int(x[i, v])] for v in range(4) if visible[i, v])
            for m in range(3)
        )
        for mixture in (batched, listed):
            assert mixture.marginal(visible).log_prob(x)[i].item() == pytest.approx(math.log(total), abs=1e-5)
    for question in ("log_prob", "conditional_log_prob", "component_log_joint"):
        torch.testing.assert_close(getattr(batched, question)(x), getattr(listed, question)(x))
    assert batched.num_parameters == listed.num_parameters == 2 + 3 * 8


def test_component_posterior_is_bayes_rule_and_falls_back_on_the_weights():
    mixture, _ = both()
    x, nothing = mixture.sample((6,)), torch.zeros(6, 4, dtype=torch.bool)
    torch.testing.assert_close(mixture.component_posterior(x, nothing).probs, mixture.log_weights.softmax(-1).expand(6, 3))
    scores = mixture.joints.log_prob(x.unsqueeze(1)) + mixture.log_weights.log_softmax(-1)
    torch.testing.assert_close(mixture.component_posterior(x).probs, scores.softmax(-1))


def test_different_orders_and_modes_are_refused_by_name():
    mixture, _ = both()
    with pytest.raises(IntractableError, match="most likely"):
        mixture.given(mixture.sample(), torch.tensor([True, False, False, False])).mode  # noqa: B018


@pytest.mark.parametrize(("weights", "joints", "match"), [
    (torch.zeros(2), FullyIndependent(torch.zeros(3, 4, 2)), r"number of components \(3,\)"),
    (torch.zeros(2), FullyIndependent(torch.zeros(4, 2)), "number of components"),
    (torch.zeros(0), [], "wants joints"),
    (torch.zeros(2), [FullyIndependent(torch.zeros(4, 2)), FullyIndependent(torch.zeros(5, 2))], "one event shape"),
    (torch.zeros(2), [FullyIndependent(torch.zeros(2, 2)), Gaussian(torch.zeros(2), torch.eye(2))], "same states"),
    (torch.zeros(2, 2), [MarkovChain(torch.zeros(3, 2), torch.zeros(1, 2, 2)), FullTable(torch.zeros(2, 2))], "broadcast"),
])
def test_bad_parts_are_named(weights, joints, match):
    with pytest.raises(ValueError, match=match):
        Mixture(weights, joints)


def test_impossible_evidence():
    mixture = Mixture(torch.zeros(2), FullyIndependent(torch.tensor([0.0, -math.inf]).expand(2, 3, 2)))
    with pytest.raises(ValueError, match="positive probability"):
        mixture.component_posterior(torch.ones(3))


def test_an_average_over_draws_counts_its_parameters_once():
    """Whatever is done to it; a mixture of joints with parameters of their own counts all of them."""
    draws = MarkovChain(torch.randn(5, 2), torch.randn(5, 3, 2, 2))
    average, mixture = Averaged(torch.zeros(5), draws), Mixture(torch.zeros(5), draws)
    x = average.sample((20,))
    assert torch.equal(average.log_prob(x), mixture.log_prob(x))
    assert mixture.num_parameters == 5 * 7 + 4
    for same in (average, average.expand([3]), average.with_tensors(average.tensors), Averaged(torch.zeros(2), [draws.expand([1, 5]), draws])):
        assert isinstance(same, Averaged)
        assert same.num_parameters == 7
