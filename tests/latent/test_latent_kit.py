"""Latent trees of every structure and emission pass the conformance kit, or the check says why it does not apply."""

import pytest
import torch

from pyro_ar.latent import LatentTree
from pyro_ar.mixture import Mixture
from pyro_ar.outputs import (
    Bernoulli,
    Categorical,
    Constant,
    DiscretisedLogisticMixture,
    MixtureOfNormals,
    Normal,
    PerVariable,
)
from pyro_ar.testing import CHECKS, NotApplicable
from pyro_ar.testing.shapes import answers_no_rows, expands, shapes_agree

randn = torch.randn
BRANCHING = (2, 2, 4, 2, None, 1)  # root 4; 2 below it; 0, 1 and 3 below 2; 5 below 1


def tree(n=4, K=3, batch=(), output=None, H=None, **structure):
    H = n if H is None else H
    raw = (output or Bernoulli()).raw
    return LatentTree(randn(*batch, K), 2 * randn(*batch, H - 1, K, K) if H > 1 else None, randn(*batch, n, K, raw), output, **structure)


def forbidding():
    root, steps = randn(3), randn(3, 3, 3)
    root[1] = steps[0, 2, 0] = steps[1, :, 1] = steps[2, 1, :2] = -torch.inf
    return LatentTree(root, steps, randn(4, 3, 1), parents=[1, 3, 1, None])


STATES = PerVariable.of_states((2, 3, 1, 4))
JOINTS = {
    "tree": lambda: tree(5, 2, H=6, parents=BRANCHING, nodes=(0, 3, 3, 5, 1)),
    "tree, batch": lambda: tree(batch=(2,), parents=((), (0,), (0,), (2,))),
    "chain, states of its own": lambda: tree(output=STATES),
    "star": lambda: tree(H=1),
    "star of normals, batch": lambda: tree(3, 2, (2,), Normal(), H=1),
    "one hidden state": lambda: tree(K=1),
    "one variable": lambda: tree(1, 3, (), output=Categorical(4)),
    "impossible steps": forbidding,
    "mixed batch": lambda: LatentTree(randn(2, 1, 3), randn(3, 2, 3, 3), randn(3, 3, 2), Categorical(3), parents=(-1, 0, 0)),
    "grey levels": lambda: tree(3, 2, output=DiscretisedLogisticMixture(4, 2)),
    "normals": lambda: tree(3, 3, output=Normal(), parents=(1, -1, 1)),
    "mixtures of normals": lambda: tree(2, 2, output=MixtureOfNormals(2)),
    "too many to enumerate": lambda: tree(14, 2, parents=[None, *[(i - 1) // 2 for i in range(1, 14)]]),
    "mixture of trees": lambda: Mixture(randn(2), [tree(3, 2, parents=(-1, 0, 0)), tree(3, 3)]),
    "mixture over a batch of trees": lambda: Mixture(randn(2), tree(3, 2, (2,))),
}
FAST = ("tree", "star of normals, batch", "impossible steps")
HEAVY = ("runs_nuts", "predicts", "trains_by_svi", "infers_the_likeliest_class", "enumerates_as_latent", "runs_on_cuda", "answers_no_rows",
         "samples_follow_log_prob",
         "given_samples_follow_log_prob")
CASES = [pytest.param(make, check, id=f"{name}-{check.__name__}",
                      marks=() if (name in FAST and check.__name__ not in HEAVY) or name == "tree" else pytest.mark.slow)
         for name, make in JOINTS.items() for check in CHECKS]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("make", "check"), CASES)
def test_conforms(make, check):
    try:
        check(make())
    except NotApplicable as reason:
        pytest.skip(str(reason))


MIXED = PerVariable([Bernoulli(), Normal(), Constant(), Categorical(3), MixtureOfNormals(2)])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("check", [shapes_agree, expands, answers_no_rows], ids=lambda check: check.__name__)
def test_rows_of_several_kinds_keep_their_shapes(check):
    check(tree(5, 3, (2,), MIXED, parents=(1, -1, 1, 2, 2)))
