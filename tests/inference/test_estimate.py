"""Likelihood weighting against exact enumeration, and its error against its spread."""

import math

import pytest
import torch

from pyro_ar import FVSBN, NADE, ChowLiuTree, OrderlessNADE, outputs
from pyro_ar.inference.estimate import estimate_log_marginal


@pytest.mark.parametrize("make", [
    lambda: FVSBN(10), lambda: NADE(10, 6, order="random"), lambda: NADE((2, 5), 6, outputs.Categorical(3)),
])
def test_it_meets_the_exact_answer_within_its_error(make):
    family = make()
    with torch.no_grad():
        for p in family.parameters():
            p.normal_()
    joint = family()
    x, visible = joint.sample((6,)), torch.rand(6, *joint.event_shape) > 0.4
    exact = joint.marginal(visible).log_prob(x)
    answer = estimate_log_marginal(joint, x.masked_fill(~visible, math.nan), visible, num_particles=20000)
    # 5 standard errors on 6 rows: about 4e-6 false alarms, seed fixed
    assert ((answer.estimate - exact).abs() <= 5 * answer.standard_error + 1e-5).all()
    assert (answer.effective_sample_size <= 20000 * (1 + 1e-5)).all()


def test_its_error_is_that_of_repeated_runs():
    family = NADE(10, 6)
    with torch.no_grad():
        for p in family.parameters():
            p.normal_()
    joint, visible = family(), torch.arange(10) >= 5
    x = joint.sample()
    runs = [estimate_log_marginal(joint, x, visible, num_particles=500) for _ in range(200)]
    spread = torch.stack([r.estimate for r in runs]).std()
    claimed = torch.stack([r.standard_error for r in runs]).mean()
    assert 0.7 < spread / claimed < 1.4  # the spread of 200 runs is known to 5 %


def test_a_prefix_and_an_any_order_family_have_no_error():
    for joint in (NADE(8, 4)(), OrderlessNADE(8, 4)()):
        seen = torch.arange(8) < 5
        answer = estimate_log_marginal(joint, torch.zeros(8), seen, num_particles=50)
        assert answer.standard_error < 1e-3
        torch.testing.assert_close(answer.estimate, joint.marginal(seen).log_prob(torch.zeros(8)))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="wants a chain"):
        estimate_log_marginal(ChowLiuTree.from_data(torch.eye(3)), torch.zeros(3), torch.ones(3).bool())
    with pytest.raises(ValueError, match="2 or more"):
        estimate_log_marginal(FVSBN(3)(), torch.zeros(3), torch.ones(3).bool(), num_particles=1)
    with pytest.raises(ValueError, match="event shape"):
        estimate_log_marginal(FVSBN(3)(), torch.zeros(4), torch.ones(3).bool())
