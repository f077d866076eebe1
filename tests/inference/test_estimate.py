"""Sequential Monte Carlo along a chain against exact enumeration, its error against its spread, and its draws against the exact ones."""

import itertools
import math

import pytest
import torch

from pyro_ar import FVSBN, MADE, NADE, ChowLiuTree, FullyIndependent, OrderlessNADE, PixelCNN, outputs
from pyro_ar.inference import estimate_log_marginal, sample_given
from pyro_ar.neural import particles as module


def wild(family, scale=1.0):
    with torch.no_grad():
        for p in family.parameters():
            p.normal_().mul_(scale)
    return family


def by_listing(joint, x, visible):
    """log p(x_visible) by summing over all states, without `marginal`."""
    states = [range(k) for k in joint.num_states]
    free = [i for i, seen in enumerate(visible.flatten().tolist()) if not seen]
    rows = []
    for state in itertools.product(*(states[i] for i in free)):
        row = x.clone().flatten()
        row[free] = torch.tensor(state, dtype=x.dtype)
        rows.append(row.reshape(x.shape))
    return joint.log_prob(torch.stack(rows)).logsumexp(0)


CHAINS = {
    "fvsbn": lambda: wild(FVSBN(8)),
    "nade, random order": lambda: wild(NADE(8, 6, order="random")),
    "made": lambda: wild(MADE(8, (9,)), 1.5),
    "nade, three states": lambda: wild(NADE((2, 3), 6, outputs.Categorical(3))),
    "mixed states": lambda: wild(NADE(5, 6, outputs.PerVariable([outputs.Bernoulli(), outputs.Categorical(3), outputs.Categorical(4), outputs.Bernoulli(),
                                                                 outputs.Bernoulli()]))),
    "gated pixel cnn": lambda: wild(PixelCNN((1, 2, 3), 6, 1, kernel=3, gated=True), 0.7),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("twisted", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_the_estimate_is_unbiased_and_its_error_is_its_spread(name, twisted, monkeypatch):
    """Particles are resampled whenever weights differ. 400 runs of 5 rows in one batch: 5 standard errors of the mean of exp, 3e-6 false alarms for 5 rows; the
    spread is known to 4 %."""
    torch.manual_seed(0)
    monkeypatch.setattr(module, "FEWEST", 0.999)
    joint = CHAINS[name]()()
    look = FullyIndependent([0.5 * torch.randn(k) for k in joint.num_states]) if twisted else None
    if look is not None and len(joint.event_shape) > 1:
        pytest.skip("tables are over vectors")
    x, visible = joint.sample((5,)), torch.rand(5, *joint.event_shape) > 0.5
    visible.flatten(1)[:, -1] = True
    exact = torch.stack([by_listing(joint, *row) for row in zip(x, visible, strict=True)])
    many = estimate_log_marginal(joint, x.masked_fill(~visible, math.nan).expand(400, *x.shape), visible, num_particles=64, num_islands=8, look_ahead=look)
    ratio = (many.estimate - exact).exp()
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / 20 + 1e-9).all(), (ratio.mean(0), ratio.std(0) / 20)
    spread, claimed = many.estimate.std(0), many.standard_error.square().mean(0).sqrt()
    loose = spread > 1e-6
    assert ((spread / claimed)[loose] > 0.75).all()
    assert ((spread / claimed)[loose] < 1.3).all()
    assert loose.any()


@pytest.mark.usefixtures("float64")
def test_islands_resample(monkeypatch):
    """A long chain in which only neighbours matter: without resampling the spread is larger; with islands of one there is none to do."""
    torch.manual_seed(3)
    family = FVSBN(60)
    with torch.no_grad():
        family.net.weight.zero_()
        for i in range(1, 60):
            family.net.weight[i, 0, i - 1, 0] = 4.0
        family.net.bias.fill_(-2.0)
    joint = family()
    x, visible = joint.sample(), torch.arange(60) % 2 == 1
    together = estimate_log_marginal(joint, x.expand(60, 60), visible, num_particles=512, num_islands=8)
    alone = estimate_log_marginal(joint, x.expand(60, 60), visible, num_particles=512, num_islands=512)
    assert together.estimate.std() < 0.5 * alone.estimate.std()
    assert together.effective_sample_size.median() > 3 * alone.effective_sample_size.median()
    monkeypatch.setattr(module, "FEWEST", 0.0)
    never = estimate_log_marginal(joint, x.expand(60, 60), visible, num_particles=512, num_islands=8)
    assert together.estimate.std() < 0.7 * never.estimate.std()


def test_coverage_on_random_queries():
    """Of 500 queries, 1.96 standard errors hold 95 % where the error is trusted; 16 islands make that 93 (Student's t). 5 binomial deviations: 6e-7."""
    torch.manual_seed(1)
    joint = wild(NADE(9, 6), 1.5)()
    x, visible = joint.sample((500,)), torch.rand(500, 9) < torch.rand(500, 1)
    exact = joint.marginal(visible).log_prob(x)
    found = estimate_log_marginal(joint, x, visible, num_particles=512)
    near = (found.estimate - exact).abs() <= 1.96 * found.standard_error + 1e-5
    share = near[found.trusted].double().mean()
    assert found.trusted.sum() > 400
    assert abs(share - 0.935) < 5 * math.sqrt(0.935 * 0.065 / 400)


def test_a_look_ahead_that_is_right_leaves_no_error():
    """The chain's own marginals as look-ahead, here those of an independent joint: every weight is the same."""
    torch.manual_seed(2)
    family = FVSBN(6)
    with torch.no_grad():
        family.net.weight.zero_()
        family.net.bias.normal_()
    logits = torch.stack((torch.zeros(6), family.net.bias.detach().flatten()), -1)
    x, seen = torch.tensor([0.0, 1, 0, 1, 1, 0]), torch.arange(6) % 2 == 1
    found = estimate_log_marginal(family(), x, seen, num_particles=32, look_ahead=FullyIndependent(logits))
    assert found.standard_error < 1e-5
    torch.testing.assert_close(found.estimate, FullyIndependent(logits).marginal(seen).log_prob(x))


@pytest.mark.parametrize("twisted", [False, True])
def test_draws_follow_the_exact_completions(twisted, monkeypatch):
    """40,000 draws out of 400 runs: shares of the 8 states within 5 standard errors of exact ones, which count runs (draws of one share particles)."""
    torch.manual_seed(4)
    monkeypatch.setattr(module, "FEWEST", 0.999)
    joint = wild(NADE(7, 5), 2.0)()
    x, seen = joint.sample(), torch.tensor([False, True, False, True, True, True, False])
    states = torch.cartesian_prod(*3 * [torch.tensor([0.0, 1.0])])
    rows = x.repeat(8, 1)
    rows[:, ~seen] = states
    exact = (joint.log_prob(rows) - joint.log_prob(rows).logsumexp(0)).exp()
    look = FullyIndependent(torch.randn(7, 2)) if twisted else None
    drawn = sample_given(joint, x.expand(400, 7).masked_fill(~seen, math.nan), seen, 100, num_particles=512, look_ahead=look).x
    assert (drawn[..., seen] == x[seen]).all()
    code = (drawn[..., ~seen] @ torch.tensor([4.0, 2.0, 1.0])).long()
    shares = torch.stack([(code == k).double().mean(0) for k in range(8)], -1)
    assert ((shares.mean(0) - exact).abs() < 5 * shares.std(0) / math.sqrt(400) + 0.01 * exact).all()


def test_contexts_draws_of_weights_and_orders():
    torch.manual_seed(5)
    family = wild(NADE(6, 4, context_dim=3))
    seen = torch.tensor([False, True, True, False, True, False])
    joint = family(torch.eye(3))
    x = torch.tensor([0.0, 1, 1, 0, 0, 1])
    found = estimate_log_marginal(joint, x, seen, num_particles=4096)
    assert found.estimate.shape == (3,)
    assert ((found.estimate - joint.marginal(seen).log_prob(x)).abs() < 5 * found.standard_error + 1e-5).all()
    plain = wild(NADE(6, 4))
    draws = plain().with_tensors({name: t.detach() + 0.5 * torch.randn(4, 1, *t.shape) for name, t in plain().tensors.items()})
    rows = draws.sample()[0, 0].expand(2, 6)
    found = estimate_log_marginal(draws, rows, seen, num_particles=2048)
    exact = draws.marginal(seen).log_prob(rows)
    assert found.estimate.shape == exact.shape == (4, 2)
    assert ((found.estimate - exact).abs() < 5 * found.standard_error + 1e-5).all()


def test_real_cells_can_be_hidden():
    """A chain of normals with hand-made weights is Gaussian: scipy's density is the oracle."""
    from scipy.stats import multivariate_normal

    torch.manual_seed(6)
    joint = wild(FVSBN(4, outputs.Normal()), 0.3)()
    drawn = joint.sample((200000,)).double()
    x, seen = torch.tensor([0.3, -0.2, 0.1, 0.4]), torch.tensor([False, True, False, True])
    found = estimate_log_marginal(joint, x, seen, num_particles=8192)
    kernel = multivariate_normal(drawn[:, seen].mean(0), drawn[:, seen].T.cov()).logpdf(x[seen])
    assert found.trusted
    assert abs(found.estimate - kernel) < 0.2  # scales depend on values too, so that the joint is only nearly Gaussian


def test_an_estimate_that_hangs_on_few_particles_is_not_trusted():
    """Half of 24 cells in the middle are seen to be what the chain holds for next to impossible."""
    torch.manual_seed(8)
    joint = wild(FVSBN(24), 4.0)()
    drawn = joint.sample((64,))
    visible = torch.arange(24) >= 8
    unlikely = drawn[joint.log_prob(drawn).argmin()].roll(5)
    found = estimate_log_marginal(joint, unlikely.expand(20, 24), visible, num_particles=32)
    assert found.trusted.sum() <= 2
    assert (found.trusted <= (found.standard_error <= 0.3)).all()
    likely = drawn[joint.log_prob(drawn).argmax()]
    assert estimate_log_marginal(joint, likely, torch.arange(24) >= 2, num_particles=2**12).trusted


def test_a_prefix_and_an_any_order_family_have_no_error():
    for joint in (NADE(8, 4)(), OrderlessNADE(8, 4)()):
        for seen in (torch.arange(8) < 5, torch.ones(8).bool(), torch.zeros(8).bool()):
            answer = estimate_log_marginal(joint, torch.zeros(8), seen, num_particles=50)
            assert answer.standard_error < 1e-3
            torch.testing.assert_close(answer.estimate, joint.marginal(seen).log_prob(torch.zeros(8)))


def test_evidence_that_no_particle_explains():
    torch.manual_seed(7)
    family = FVSBN(3, outputs.Categorical(2))
    joint = family()
    broken = joint.with_tensors({name: torch.where(torch.zeros_like(t, dtype=torch.bool), t, 0.0) for name, t in joint.tensors.items()})
    found = estimate_log_marginal(broken, torch.tensor([0.0, 0, 1]), torch.tensor([False, False, True]), num_particles=32)
    torch.testing.assert_close(found.estimate, torch.tensor(0.5).log())
    assert found.trusted


def test_bad_arguments_are_named():
    good = torch.zeros(3), torch.ones(3).bool()
    with pytest.raises(ValueError, match="want a chain"):
        estimate_log_marginal(ChowLiuTree.from_data(torch.eye(3)), *good)
    with pytest.raises(ValueError, match="num_particles must be 2 or more"):
        estimate_log_marginal(FVSBN(3)(), *good, num_particles=1)
    with pytest.raises(ValueError, match="num_islands must be 2 or more"):
        estimate_log_marginal(FVSBN(3)(), *good, num_islands=1)
    with pytest.raises(ValueError, match="event shape"):
        estimate_log_marginal(FVSBN(3)(), torch.zeros(4), torch.ones(3).bool())
    with pytest.raises(ValueError, match="look_ahead must be a joint over"):
        estimate_log_marginal(FVSBN(3)(), *good, look_ahead=FullyIndependent(torch.zeros(4, 2)))
    family = FVSBN(3)
    draws = family().with_tensors({name: t.expand(2, *t.shape) for name, t in family().tensors.items()})
    with pytest.raises(ValueError, match="without draws of its weights"):
        estimate_log_marginal(draws, *good, look_ahead=FullyIndependent(torch.zeros(3, 2)))
    with pytest.raises(ValueError, match="num_samples must be 1 or more"):
        sample_given(FVSBN(3)(), *good, 0)
