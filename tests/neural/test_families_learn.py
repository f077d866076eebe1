"""Trained briefly on the binarised digits, as `pyro-ar families` does it, each family beats the Markov chain and the Chow-Liu tree."""

import pytest
import torch

import pyro_ar as par

from pyro_ar.neural.registry import FAMILIES


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in FAMILIES.items() if entry.shown])
def test_it_beats_the_markov_chain_and_the_chow_liu_tree(name) -> None:
    x = (par.data.digits().x >= 8).float()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    train, test = x[:1500], x[1500:]
    tables = [joint.from_data(train, num_states=2, pseudocount=0.5).log_prob(test) for joint in (par.MarkovChain, par.ChowLiuTree)]
    entry = FAMILIES[name]
    torch.manual_seed(0)
    family = entry.family((1, 8, 8), **entry.shown.options)
    how = {"epochs": 20, "batch_size": 64, "lr": 3e-3, **entry.shown.fit}
    par.fit(family, train.reshape(-1, 1, 8, 8), progress=False, accelerator="cpu", **how)
    with torch.no_grad():
        nats = family.eval()().log_prob(test.reshape(-1, 1, 8, 8))
    print(f"{name}: {-nats.mean():.2f} nats, Markov chain {-tables[0].mean():.2f}, Chow-Liu tree {-tables[1].mean():.2f}")
    for other in tables:
        better = nats - other
        # The seed is fixed; by more than two standard errors over the held-out rows.
        assert better.mean() > 2 * better.std() / len(better) ** 0.5
