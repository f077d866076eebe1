"""Whatever draws takes its own seed: the generators outside neither change its answer nor are changed by it, and another seed gives another answer."""

import math

import numpy as np
import pyro
import pytest
import torch

import pyro_ar as par

from pyro_ar.classify import (
    CorrectedClassifier,
    DiscriminantAnalysis,
    MixtureChainClassifier,
    MixtureDiscriminantAnalysis,
    PatternNet,
)
from pyro_ar.comparison import NeuralModel, cross_validate
from pyro_ar.experiments.compare.run import IncompleteTable
from pyro_ar.experiments.compare.run import Plan as ComparePlan
from pyro_ar.experiments.distances import NewtonModel, closest_family, distances, make_truth
from pyro_ar.experiments.occlusion.bars import KernelDensity
from pyro_ar.experiments.occlusion.inner import Chosen, inner_split, some_rows
from pyro_ar.experiments.occlusion.plan import Plan
from pyro_ar.experiments.states import load_split
from pyro_ar.inference.annealing import annealed_log_evidence
from pyro_ar.inference.bayesian import Bayesian
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.neural.nade import NADE
from pyro_ar.tables import FullTable, FullyIndependent

with torch.random.fork_rng(devices=[]):
    torch.manual_seed(1)
    BITS = (torch.rand(60, 4) < 0.4).float()
    HOLED = BITS.double().masked_fill(torch.rand(60, 4) < 0.2, math.nan)
    LEVELS = torch.randint(0, 6, (60, 5)).double() + 2 * (torch.arange(60) % 3)[:, None]
    TWO, FOUR = FVSBN(2), FVSBN(4)
CLASSES = np.arange(60) % 3


def weights(joint):
    return torch.cat([t.flatten().double() for t in joint.tensors.values()])


def answers(classifier):
    return classifier.fit(LEVELS, CLASSES).predict_log_proba(LEVELS[:9])


def annealed(seed):
    prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1), 1.0), 1)
    return annealed_log_evidence(lambda t: -t[:, 0].square(), prior, num_particles=4, num_runs=2, moves=1, leapfrog=1, seed=seed).runs


def file_split(seed, tmp_path):
    np.savetxt(tmp_path / "rows.csv", BITS.int().numpy(), fmt="%d", delimiter=",", header="a,b,c,d", comments="")
    return load_split(str(tmp_path / "rows.csv"), seed=seed)[2]


def occluded(seed):
    plan = Plan(par.data.digits().head(60), seeds=(seed,), folds=3)
    return plan.split(seed, 0)[1], plan.pattern("random-50", seed, 0, 5)


BAYES = {"num_draws": 4, "num_chains": 2, "warmup": 3, "steps": 3, "max_tree_depth": 2, "progress": False}
QUICK = {"epochs": 2, "batch_size": 16}
WORK = {
    "NeuralModel": lambda seed: weights(NeuralModel(lambda: NADE(4, 3), QUICK, seed).fit(BITS)),
    "NewtonModel": lambda seed: weights(NewtonModel(lambda: NADE(4, 2), seed=seed, iterations=3).fit(BITS)),
    "closest family": lambda seed: weights(closest_family(make_truth("chain", 3), lambda: NADE(3, 2), seed=seed, iterations=3)),
    "annealing": annealed,
    "evidence": lambda seed: Bayesian(FOUR).log_evidence(BITS, num_particles=4, num_runs=2, moves=1, leapfrog=1, seed=seed).runs,
    **{method: lambda seed, method=method: Bayesian(TWO).fit(BITS[:, :2], method=method, seed=seed, **BAYES).draws["bias"]
       for method in ("nuts", "mean-field", "low-rank", "laplace")},
    "truth": lambda seed: [weights(make_truth(name, 3, seed)) for name in ("mixture", "FVSBN", "coins")],
    "distances": lambda seed: [d[2:5] for d in distances(make_truth("chain", 2), {"FVSBN": lambda: FVSBN(2)}, (20,), 2, (1.0,), seed=seed)],
    "cross-validation": lambda seed: cross_validate({"a": FullyIndependent.from_data}, BITS, seed=seed)["a"],
    "compare": lambda seed: par.compare({"a": FullyIndependent.from_data}, BITS, seed=seed).pointwise["a"],
    "rows to compare on": lambda seed: ComparePlan("d", BITS, BITS, seed=seed).rows(20),
    "incomplete table": lambda seed: weights(IncompleteTable(FullTable, {}, (2,) * 4, seed).fit(HOLED)),
    "split of a file": file_split,
    "occlusion": occluded,
    "inner split": lambda seed: list(inner_split(CLASSES, 4, seed=seed)),
    "some rows": lambda seed: some_rows(CLASSES, 20, seed=seed),
    "settings": lambda seed: answers(Chosen(KernelDensity(), {"bandwidth": (0.1, 0.3)}, max_rows=30, seed=seed)),
    "net": lambda seed: answers(PatternNet(hidden=4, members=1, steps=2, batch_size=8, seed=seed)),
    "mixtures": lambda seed: answers(MixtureDiscriminantAnalysis(3, random_state=seed)),
    "corrected": lambda seed: answers(CorrectedClassifier(DiscriminantAnalysis(shrinkage=0.3), PatternNet(hidden=4, members=1, steps=2, batch_size=8),
                                                          folds=2, random_state=seed)),
    "mixture chain": lambda seed: answers(MixtureChainClassifier(MixtureDiscriminantAnalysis(1), num_levels=10, hidden=2, steps=2, random_state=seed)),
}
NO_SEED = {  # of a user's: they have one of their own
    "mixtures": lambda seed: answers(MixtureDiscriminantAnalysis(3)),
    "free weights": lambda seed: list(Bayesian(FOUR).sizes.values()),
}


def equal(a, b):
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(one, other) for one, other in zip(a, b, strict=True))
    return np.array_equal(np.asarray(a), np.asarray(b))


def drawn(work, outside, seed):
    """Its answer where all generators outside were seeded so, which it must leave alone."""
    pyro.set_rng_seed(outside)
    before = pyro.util.get_rng_state()
    answer = work(seed)
    after = pyro.util.get_rng_state()
    assert torch.equal(before["torch"], after["torch"])
    assert before["random"] == after["random"]
    assert equal(before["numpy"], after["numpy"])
    return answer


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.slow) if name == "corrected" else name for name in WORK),
                                  *(f"{name}, none given" for name in NO_SEED)])
def test_what_draws_has_a_seed_of_its_own(name, tmp_path):
    work = WORK.get(name) or NO_SEED[name.removesuffix(", none given")]
    if name == "split of a file":
        work = lambda seed: file_split(seed, tmp_path)
    first = drawn(work, 1, 0)
    assert equal(first, drawn(work, 2, 0))
    if name in WORK and name != "incomplete table":  # where another seed may well choose the same
        assert not equal(first, drawn(work, 1, 1))
