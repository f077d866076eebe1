"""Mixtures against sums written out by hand."""

import math

import pytest
import torch

from pyro_ar import MADE, FullTable, FullyIndependent, Gaussian, GenerativeClassifier, MarkovChain, Mixture
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


def excluding(logit=-math.inf, *, listed=False, batch=()):
    """Of two chains the first never starts in state 1, the second never in state 0; drawn or asked, both are needed."""
    initial = torch.tensor([[0.0, logit], [logit, 0.0]]).expand(*batch, 2, 2)
    steps = torch.tensor([[[[0.0, 1.0], [2.0, 0.0]]], [[[1.0, 0.0], [0.0, 3.0]]]]).expand(*batch, 2, 1, 2, 2)
    if listed:
        return Mixture(torch.zeros(2), [MarkovChain(initial[..., m, :], steps[..., m, :, :, :]) for m in range(2)])
    return Mixture(torch.zeros(2), MarkovChain(initial, steps))


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_component_that_excludes_the_evidence_completes_nothing(listed, batch):
    """20,000 draws for each row; the shares are within 5 standard errors (.018) in all but one of 10^6 runs."""
    joint, seen = excluding(listed=listed, batch=batch), torch.tensor([True, False])
    x = torch.tensor([[0.0, math.nan], [1.0, math.nan]]).reshape(2, *[1] * len(batch), 2).expand(2, *batch, 2)
    draws = joint.given(x, seen).sample((20000,))
    assert torch.equal(draws[..., 0], x[..., 0].expand(draws.shape[:-1]))
    # state 0 comes from the first chain alone, state 1 from the second
    for row, steps in enumerate(([0.0, 1.0], [0.0, 3.0])):
        share = torch.tensor(steps).softmax(-1)[1]
        assert (draws[:, row, ..., 1].mean(0) - share).abs().max() < 0.018


def test_a_mixture_within_excludes_the_evidence():
    """Neither component of the inner mixture can give what is seen."""
    inner = Mixture(torch.zeros(2), MarkovChain(torch.tensor([[0.0, -math.inf]] * 2), torch.randn(2, 1, 2, 2)))
    other = excluding()
    nested = Mixture(torch.zeros(2), [inner, other])
    batched = Mixture(torch.zeros(2), Mixture(torch.zeros(2, 2), MarkovChain(
        torch.tensor([[[0.0, -math.inf]] * 2, [[0.0, 0.0]] * 2]), torch.randn(2, 2, 1, 2, 2))))
    for joint in (nested, batched):
        for left in ((), (4,)):
            drawn = joint.expand(left).given(torch.tensor([1.0, 0.0]), torch.tensor([True, False])).sample((50,))
            assert drawn.shape == (50, *left, 2)
            assert bool((drawn[..., 0] == 1).all())


def test_the_classifier_of_chains_without_pseudocounts_completes():
    x = torch.tensor([[0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 1, 0]])
    fitted = GenerativeClassifier(MarkovChain, 2, fit_options={"pseudocount": 0}).fit(x, torch.tensor([0, 1, 0, 1]))
    drawn = fitted.joint_.given(torch.zeros(200, 3), torch.tensor([True, False, False])).sample()
    assert {tuple(row) for row in drawn.tolist()} == {(0.0, 0.0, 0.0), (0.0, 1.0, 0.0)}


@pytest.mark.parametrize("joint", [both()[0], both()[1], excluding(0.0, batch=(3,))], ids=["batch", "list", "batched batch"])
def test_components_of_an_expanded_mixture_have_its_shape(joint):
    n = joint.event_shape[0]
    for left in ((4, 3), (2, 4, 3)):
        wide, x, seen = joint.expand(left), torch.zeros(n), torch.arange(n) < 1
        for more in ((), (seen,)):
            answer = wide.component_log_joint(x, *more)
            assert answer.shape == (*left, joint.log_weights.shape[-1])
            torch.testing.assert_close(answer, joint.component_log_joint(x, *more).expand(answer.shape))
            assert wide.component_posterior(x.expand(5, 1, *[1] * (len(left) - 1), n), *more).batch_shape == (5, *left)


def test_a_component_that_no_draw_chooses():
    joint = Mixture(torch.tensor([0.0, -math.inf]), [FullTable(torch.zeros(2, 2)), FullTable(torch.zeros(2, 2))])
    assert joint.sample((7,)).shape == (7, 2)


@pytest.mark.parametrize("of_joint", [torch.float32, torch.float64])
@pytest.mark.parametrize("of_rows", [torch.float32, torch.float64])
def test_a_list_of_chains_completes_rows_of_either_precision(of_joint, of_rows):
    """Chains draw in their own precision, whatever the rows have; the wider of the two comes back."""
    mixture = Mixture(torch.zeros(2, dtype=of_joint), [MADE(3, 4).to(of_joint)() for _ in range(2)])
    visible = torch.tensor([True, False, True])
    x = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=of_rows)
    drawn = mixture.given(x, visible).sample((20,))
    assert drawn.dtype == torch.promote_types(of_joint, of_rows)
    assert torch.equal(drawn[..., visible].to(of_rows), x[:, visible].expand(20, 2, 2))
    assert set(drawn[..., 1].unique().tolist()) == {0, 1}  # of 40 draws with a probability near a half: missed with 1e-9
