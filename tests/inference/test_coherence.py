"""Coherence: every number against loops over orders and completions, zero where there is one joint, and what averaging does."""

import itertools
import math

import numpy as np
import pytest
import torch

from pyro_ar.inference import coherence
from pyro_ar.mixture import Averaged
from pyro_ar.neural import NADE, AnyOrderTransformer, OrderlessNADE
from pyro_ar.order import random_orders
from pyro_ar.outputs import Bernoulli, Categorical, Normal, PerVariable


def rough(make, scale=1.5):
    """Weights far from the start, whose orders differ."""
    torch.manual_seed(0)
    family = make()
    with torch.no_grad():
        for weight in family.parameters():
            weight.copy_(scale * torch.randn_like(weight))
    return family.eval()


FAMILIES = {
    "binary": (lambda: OrderlessNADE(5, hidden=3), None),
    "states": (lambda: OrderlessNADE((1, 2, 2), hidden=3, output=Categorical(3)), None),
    "mixed states": (lambda: OrderlessNADE(4, hidden=3, output=PerVariable((Bernoulli(), Categorical(4), Bernoulli(), Categorical(3)))), None),
    "context": (lambda: OrderlessNADE(4, hidden=3, context_dim=2), 2),
    "transformer": (lambda: AnyOrderTransformer(4, width=8, layers=1, heads=2), None),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_number_by_loops(name):
    make, width = FAMILIES[name]
    family = rough(make, 0.7)
    event, n = tuple(family.event_shape), math.prod(family.event_shape)
    states = family().num_states if width is None else (2,) * n
    rows = torch.stack([torch.randint(0, k, (3,)) for k in states], -1).float()
    context = None if width is None else torch.randn(3, width)
    found = coherence(family, rows.reshape(3, *event), context, num_orders=7, averaged=(1, 3), num_hidden=2,
                      generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    orders = random_orders(7, n, generator=generator)
    cells = torch.rand(3, n, generator=generator).argsort(-1)[:, :2]
    assert (found.rows, found.num_orders, found.num_hidden) == (3, 7, 2)
    for m in (1, 3):
        log_p, gaps = np.zeros((3, 7 // m)), np.zeros((3, 7 // m))
        for i, g in itertools.product(range(3), range(7 // m)):
            told = None if context is None else context[i].expand(m, width)
            joint = Averaged(torch.zeros(m), family(told, orders[g * m:(g + 1) * m]))
            row = rows[i]
            log_p[i, g] = joint.log_prob(row.reshape(event)).item()
            hidden = sorted(cells[i].tolist())
            seen = torch.tensor([place not in hidden for place in range(n)])
            every = []
            for values in itertools.product(*(range(states[c]) for c in hidden)):
                completed = row.clone()
                completed[hidden] = torch.tensor(values, dtype=row.dtype)
                every.append(joint.log_prob(completed.reshape(event)).exp().item())
            gaps[i, g] = joint.marginal(seen.reshape(event)).log_prob(row.reshape(event)).item() - math.log(sum(every))
        assert found.log_prob[m] == pytest.approx(log_p.mean(), abs=1e-4)
        assert found.spread[m] == pytest.approx(math.sqrt(log_p.var(axis=1, ddof=1).mean()), abs=1e-4)
        assert found.gap[m] == pytest.approx(np.abs(gaps).mean(), abs=1e-4)
        assert found.bias[m] == pytest.approx(gaps.mean(), abs=1e-4)
    assert found.spread[1] > 0.05
    assert found.gap[1] > 0.005


def test_one_joint_has_neither_spread_nor_gap():
    """Independent cells: what is known tells nothing."""
    family = rough(lambda: OrderlessNADE(5, hidden=3))
    with torch.no_grad():
        dict(family.named_parameters())["net.output_weight"].zero_()
    found = coherence(family, torch.randint(0, 2, (6, 5)), num_orders=8, averaged=(1, 4))
    for number in (*found.spread.values(), *found.gap.values(), *found.bias.values()):
        assert number == pytest.approx(0, abs=1e-5)


def test_averaging_brings_orders_together():
    """The spread of a mean over m orders falls, and its log p is never less: log of a mean of p against a mean of logs."""
    family = rough(lambda: OrderlessNADE(8, hidden=5), 0.7)
    found = coherence(family, torch.randint(0, 2, (30, 8)), num_orders=64, averaged=(1, 4, 16), generator=torch.Generator().manual_seed(0))
    assert found.spread[1] > 1.5 * found.spread[4] > 2.25 * found.spread[16]
    assert found.log_prob[1] < found.log_prob[4] < found.log_prob[16]


def test_how_many_cells_are_hidden():
    family = rough(lambda: OrderlessNADE(12, hidden=2))
    x = torch.zeros(2, 12)
    assert coherence(family, x, num_orders=2, averaged=(1,)).num_hidden == 8
    assert coherence(rough(lambda: OrderlessNADE(4, hidden=2, output=Categorical(17))), torch.zeros(2, 4), num_orders=2, averaged=(1,)).num_hidden == 2
    assert coherence(rough(lambda: OrderlessNADE(3, hidden=2)), torch.zeros(2, 3), num_orders=2, averaged=(1,)).num_hidden == 2
    assert coherence(rough(lambda: OrderlessNADE(4, hidden=2, output=Categorical(18))), torch.zeros(2, 4), num_orders=2, averaged=(1,)).num_hidden == 1
    real = coherence(rough(lambda: OrderlessNADE(3, hidden=2, output=Normal())), torch.zeros(2, 3), num_orders=4, averaged=(1, 2))
    assert real.num_hidden is None
    assert real.gap == real.bias == {}
    assert real.spread[1] > 0


def test_the_table():
    text = str(coherence(rough(lambda: OrderlessNADE(4, hidden=2)), torch.zeros(3, 4), num_orders=8, averaged=(1, 4)))
    lines = text.splitlines()
    assert lines[0].startswith("3 rows, 8 orders, 3 cells hidden")
    assert [line.split()[0] for line in lines[2:]] == ["1", "4"]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: coherence(NADE(4, hidden=2), torch.zeros(2, 4)), "any-order family"),
    (lambda: coherence(OrderlessNADE(4, hidden=2), torch.zeros(4)), "rows of shape"),
    (lambda: coherence(OrderlessNADE(4, hidden=2), torch.zeros(2, 5)), "event shape"),
    (lambda: coherence(OrderlessNADE(4, hidden=2), torch.full((2, 4), torch.nan)), "NaN"),
    (lambda: coherence(OrderlessNADE(4, hidden=2), torch.zeros(2, 4), num_orders=8, averaged=(1, 5)), "half of num_orders"),
    (lambda: coherence(OrderlessNADE(4, hidden=2), torch.zeros(2, 4), averaged=()), "half of num_orders"),
    (lambda: coherence(OrderlessNADE(4, hidden=2), torch.zeros(2, 4), num_hidden=5), "num_hidden must be from 1 to 4"),
    (lambda: coherence(OrderlessNADE(12, hidden=2), torch.zeros(2, 12), num_hidden=9), "num_hidden must be from 1 to 8"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
