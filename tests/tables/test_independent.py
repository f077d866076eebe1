"""Independent variables against plain loops."""

import math

import pytest
import torch

from listing import dirichlet_predictive, log_softmax

from pyro_ar.tables import FullyIndependent


def terms_by_hand(logits, row):
    return [log_softmax(t.tolist())[s] for t, s in zip(logits, row, strict=True)]


@pytest.mark.parametrize("stacked", [True, False])
def test_every_answer_is_a_plain_sum(stacked):
    torch.manual_seed(0)
    sizes = (3,) * 5 if stacked else (2, 5, 1, 3, 17)
    logits = [torch.randn(k, dtype=torch.float64) for k in sizes]
    joint = FullyIndependent(torch.stack(logits) if stacked else logits)
    assert joint.num_states == sizes
    x = torch.stack([torch.randint(k, (40,)) for k in sizes], -1)
    visible = torch.rand(40, 5) < 0.5
    answer, given = joint.marginal(visible).log_prob(x), joint.given(x.double(), visible)
    for i, (row, seen) in enumerate(zip(x.tolist(), visible.tolist(), strict=True)):
        terms = terms_by_hand(logits, row)
        assert joint.conditional_log_prob(x)[i].tolist() == pytest.approx(terms)
        assert joint.log_prob(x)[i].item() == pytest.approx(sum(terms))
        assert answer[i].item() == pytest.approx(sum(t for t, v in zip(terms, seen, strict=True) if v), abs=1e-12)
        best = [s if v else int(t.argmax()) for s, v, t in zip(row, seen, logits, strict=True)]
        assert given.mode[i].tolist() == best


def test_batch_and_extra_left_dimensions():
    torch.manual_seed(1)
    logits = torch.randn(3, 1, 4, 2, dtype=torch.float64)
    joint = FullyIndependent(logits)
    assert joint.batch_shape == (3, 1)
    x = torch.randint(2, (5, 1, 6, 4))
    visible = torch.rand(5, 1, 6, 4) < 0.5
    answer = joint.marginal(visible).log_prob(x)
    assert answer.shape == joint.log_prob(x).shape == (5, 3, 6)
    for s in range(5):
        for b in range(3):
            for r in range(6):
                terms = terms_by_hand(logits[b, 0], x[s, 0, r].tolist())
                seen = visible[s, 0, r].tolist()
                assert answer[s, b, r].item() == pytest.approx(sum(t for t, v in zip(terms, seen, strict=True) if v))


def test_lists_may_have_different_batches():
    joint = FullyIndependent([torch.zeros(3, 1, 2), torch.zeros(4, 5)])
    assert joint.batch_shape == (3, 4)
    torch.testing.assert_close(joint.log_prob(torch.tensor([1, 4])), torch.full((3, 4), -math.log(10)))


@pytest.mark.parametrize("scale", [30, 100, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits(scale, dtype):
    torch.manual_seed(2)
    logits = (scale * torch.randn(784, 16, dtype=dtype)).requires_grad_()
    x, visible = torch.randint(16, (10, 784)), torch.rand(10, 784) < 0.5
    answer = FullyIndependent(logits).marginal(visible).log_prob(x)
    probs = logits.detach().double().log_softmax(-1)
    expected = (probs.gather(-1, x.T).T * visible).sum(-1)
    torch.testing.assert_close(answer.double(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)
    (gradient,) = torch.autograd.grad(answer.sum(), logits)
    onehot = torch.nn.functional.one_hot(x, 16)
    by_hand = ((onehot - probs.exp()) * visible[..., None]).sum(0)
    torch.testing.assert_close(gradient.double(), by_hand, rtol=0, atol=1e-3 if dtype == torch.float32 else 1e-9)


def test_forbidden_states():
    logits = torch.tensor([[0.0, -math.inf], [0.0, 0.0]], requires_grad=True)
    joint = FullyIndependent(logits)
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    assert joint.log_prob(x).tolist() == pytest.approx([-math.log(2), -math.inf])
    assert joint.marginal(torch.tensor([False, True])).log_prob(x).tolist() == pytest.approx([-math.log(2)] * 2)
    joint.log_prob(x)[0].backward()
    assert bool(logits.grad.isfinite().all())


def test_parameters():
    assert FullyIndependent(torch.zeros(784, 2)).num_parameters == 784
    assert FullyIndependent.count_parameters([256] * 10**4) == 255 * 10**4
    assert FullyIndependent([torch.zeros(2), torch.zeros(5)]).num_parameters == 5


@pytest.mark.parametrize("concentration", [0.5, 1.0, 3.0])
def test_evidence_is_the_product_of_predictive_probabilities(concentration):
    torch.manual_seed(3)
    x = torch.stack([torch.randint(k, (30,)) for k in (2, 3, 5)], -1)
    by_hand = sum(dirichlet_predictive([(s, k) for s in x[:, v].tolist()], concentration)
                  for v, k in enumerate((2, 3, 5)))
    found = FullyIndependent.log_evidence(x, concentration=concentration, num_states=(2, 3, 5))
    assert found.item() == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize(("make", "match"), [
    (lambda: FullyIndependent(torch.zeros(2)), r"logits must be a floating tensor \(\*B, n, K\); got .*\(2,\)"),
    (lambda: FullyIndependent(torch.zeros(2, 2, dtype=torch.long)), "logits must be a floating tensor"),
    (lambda: FullyIndependent([]), "at least one tensor of logits is needed"),
    (lambda: FullyIndependent([torch.zeros(2), torch.zeros(())]), "logits.1 must be a floating tensor of at least 1 dim"),
    (lambda: FullyIndependent([torch.zeros(2), [0.0]]), "logits.1 must be a floating tensor"),
    (lambda: FullyIndependent([torch.zeros(2), torch.tensor([1, 2])]), "logits.1 must be a floating tensor"),
    (lambda: FullyIndependent([torch.tensor([0.0, math.nan])]), "logits.0 must not hold NaN"),
    (lambda: FullyIndependent(torch.tensor([[0.0, math.nan]])), "constraint Real"),
    (lambda: FullyIndependent([torch.zeros(3, 2), torch.zeros(4, 2)]), "batch dimensions of the tensors must broadcast"),
    (lambda: FullyIndependent(torch.zeros(0, 2)), "needs at least one variable"),
    (lambda: FullyIndependent(torch.zeros(3, 0)), "at least one state of each"),
], ids=range(11))
def test_bad_arguments_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()
