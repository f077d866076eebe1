"""What a family cannot close, and what it has not closed yet."""

import pytest
import torch

from pyro_ar.divergence import closest_table, kl_divergence
from pyro_ar.experiments.distances import NewtonModel, closest_family, distances, draw
from pyro_ar.families import FVSBN
from pyro_ar.mixture import Mixture
from pyro_ar.tables import FullyIndependent


@pytest.fixture
def truth(float64):
    torch.manual_seed(0)
    return Mixture(torch.zeros(3), FullyIndependent(1.5 * torch.randn(3, 5, 2)))


def test_the_story(truth):
    """Floors fall with what a family may say; the open part falls with the rows, and is larger the more there is to learn."""
    found = {(d.model, d.rows): d for d in distances(truth, {"FVSBN": lambda: FVSBN(5)}, sizes=(30, 3000), repeats=3)}
    floor = {name: d.floor for (name, _), d in found.items()}
    assert floor["independent"] > floor["Markov chain 1"] > floor["Markov chain 2"] > floor["Markov chain 3"] > floor["full table"] == pytest.approx(0, abs=1e-9)
    assert floor["independent"] > floor["Chow-Liu tree"]
    assert floor["independent"] > floor["FVSBN"] > 1e-4
    for (name, rows), d in found.items():
        assert d.open > -1e-6, name
        if rows == 3000:
            assert d.open < 0.1 * found[name, 30].open
    assert found["full table", 30].open > 2 * found["independent", 30].open
    assert found["independent", 30].open + floor["independent"] < found["full table", 30].open + floor["full table"] + 0.6
    assert len(draw(list(found.values())).axes) == 2


def test_the_closest_fvsbn(truth):
    """A climb from elsewhere ends in the same place, and small steps from it lead away."""
    nearest = closest_family(truth, lambda: FVSBN(5))
    distance = kl_divergence(truth, nearest)
    again = kl_divergence(truth, closest_family(truth, lambda: FVSBN(5), seed=5))
    assert again.item() == pytest.approx(distance.item(), abs=1e-6)
    for _ in range(10):
        other = nearest.with_tensors({k: t + 0.05 * torch.randn_like(t) for k, t in nearest.tensors.items()})
        assert kl_divergence(truth, other) > distance - 1e-9
    assert distance < kl_divergence(truth, closest_table(truth, FullyIndependent))  # which is an FVSBN without weights


def test_newton_is_penalised_maximum_likelihood(float64):
    """One variable: the logit solves N p - ones + logit / scale^2 = 0."""
    x = torch.tensor([[1.0]] * 7 + [[0.0]] * 3)
    logit = NewtonModel(lambda: FVSBN(1), scale=1.5).fit(x).tensors["bias"].reshape(())
    assert (10 * logit.sigmoid() - 7 + logit / 1.5**2).item() == pytest.approx(0, abs=1e-3)


def test_bad_input_is_named(truth):
    with pytest.raises(ValueError, match="repeats must be 2"):
        distances(truth, {}, repeats=1)
    with pytest.raises(ValueError, match="one joint of at most"):
        closest_family(truth.expand((2,)), lambda: FVSBN(5))
    with pytest.raises(ValueError, match="positive"):
        NewtonModel(lambda: FVSBN(5), scale=0.0)
