"""Every family, with every output and many shapes, passes every check of the conformance kit."""

import math

import pytest
import torch

from pyro_ar import outputs
from pyro_ar.neural.any_order_transformer import AnyOrderTransformer
from pyro_ar.neural.causal_transformer import CausalTransformer
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.neural.made import MADE
from pyro_ar.neural.nade import NADE
from pyro_ar.neural.orderless_nade import OrderlessNADE
from pyro_ar.neural.per_dimension_mlp import PerDimensionMLP
from pyro_ar.neural.recurrent_ar import RecurrentAR
from pyro_ar.testing import CHECKS, NotApplicable

FAMILIES = {
    "fvsbn": FVSBN,
    "nade": lambda *args, **kwargs: NADE(*args, hidden=4, **kwargs),
    "relu nade": lambda *args, **kwargs: NADE(*args, hidden=4, activation="relu", **kwargs),
    "made": lambda *args, **kwargs: MADE(*args, hidden=(5, 4), activation="tanh", direct=True, **kwargs),
    "orderless": lambda *args, **kwargs: OrderlessNADE(*args, hidden=4, **kwargs),
    "deep orderless": lambda *args, **kwargs: OrderlessNADE(*args, hidden=(4, 3), **kwargs),
    "per dimension": lambda *args, **kwargs: PerDimensionMLP(*args, hidden=3, **kwargs),
    "gru": lambda *args, **kwargs: RecurrentAR(*args, hidden=4, **kwargs),
    "lstm": lambda *args, **kwargs: RecurrentAR(*args, hidden=3, cell="lstm", layers=2, **kwargs),
    "transformer": lambda *args, **kwargs: CausalTransformer(*args, width=4, layers=1, heads=2, **kwargs),
    "any-order transformer": lambda *args, **kwargs: AnyOrderTransformer(*args, width=4, layers=1, heads=2, **kwargs),
}
MIXED = outputs.PerVariable.of_states([2, 3, 1, 2], "one-hot")
OUTPUTS = {
    "bernoulli": outputs.Bernoulli(),
    "categorical": outputs.Categorical(3),
    "normal": outputs.Normal(),
    "mixture of normals": outputs.MixtureOfNormals(2),
    "logistic mixture": outputs.DiscretisedLogisticMixture(3, 2),
    "mixed": MIXED,
    "logistic": outputs.Logistic(),
    "mixture of logistics": outputs.MixtureOfLogistics(2),
    "restricted": outputs.RestrictedBernoulli(0.1, 0.7),
    "tied": outputs.TiedCategorical([[0, 2], [1]]),
}
LATER = ("logistic", "mixture of logistics", "restricted", "tied")  # by default with one family, as what a net does is the same for all


def for_shape(make):
    """`make` with outputs for as many variables as there are."""
    def made(shape, output, **options):
        n = shape if isinstance(shape, int) else math.prod(shape)
        return make(shape, output=outputs.PerVariable(output.outputs[:n]) if output is MIXED else output, **options)
    return made


def with_random_weights(family):
    # Weights of continuous outputs are smaller: the kit integrates on a grid, on which narrow conditionals are lost.
    scale = 0.7 if family.output.num_states else 0.2
    with torch.no_grad():
        for p in family.parameters():
            p.normal_().mul_(scale)
    return family


def with_draws(joint, *shape):
    size = 0.3 if joint.num_states else 0.1
    return joint.with_tensors({
        name: t if name == "context" else t + size * torch.randn(*shape, *t.shape) for name, t in joint.tensors.items()})


def vector(make, output):
    return with_random_weights(make(4 if output.num_states else 3, output=output, order="random"))()


def image(make, output):
    return with_random_weights(make((1, 2, 2), output=output))()


def context(make, output):
    return with_random_weights(make(3, output=output, context_dim=2, order=[2, 0, 1]))(torch.randn(3, 2))


def batch(make, output):
    return with_random_weights(make(3, output=output, context_dim=2))(torch.randn(2, 2, 2))


def weight_draws(make, output):
    return with_draws(with_random_weights(make(3, output=output, order=[1, 2, 0]))(), 2)


def draws_and_context(make, output):
    family = with_random_weights(make(3, output=output, context_dim=2))
    return with_draws(family(torch.randn(2, 2)), 2, 1)


def orders(make, output):
    # They share their first variable, so that one partly visible pattern at least is answered by all.
    return with_random_weights(make(3, output=output))(order=torch.tensor([[2, 0, 1], [2, 1, 0], [2, 0, 1]]))


def one_variable(make, output):
    return with_random_weights(make(1, output=output, context_dim=1))(torch.randn(1))


SETTINGS = [vector, image, context, batch, weight_draws, draws_and_context, orders, one_variable]


def cases():
    """Every check on every family with every output in every setting; by default each pair of these in one setting, taken in turn.

    Draws of real cells are compared with densities on grids, which takes minutes for nets that attend or remember: by default of one family only.
    """
    found = []
    for i, (name, make) in enumerate(FAMILIES.items()):
        for j, (kind, output) in enumerate(OUTPUTS.items()):
            for k, setting in enumerate(SETTINGS):
                if output is MIXED and setting is orders and "order" not in name:  # refused: each variable has an output of its own
                    continue
                # Of families that share a net, one stands for both.
                usual = k == (3 * i + j) % len(SETTINGS) and name not in ("lstm", "deep orderless") and (kind not in LATER or name == "fvsbn")
                for check in CHECKS:
                    real = output.num_states is None and output is not MIXED
                    drawn = check.__name__.endswith("samples_follow_log_prob") and real and (name, kind) != ("fvsbn", "normal")
                    slow = [] if usual and not drawn else [pytest.mark.slow]
                    found.append(pytest.param(check, setting, for_shape(make), output, id=f"{check.__name__}-{name}, {kind}, {setting.__name__}", marks=slow))
    return found


@pytest.mark.parametrize(("check", "setting", "make", "output"), cases())
def test_conforms(check, setting, make, output, float64):
    try:
        check(setting(make, output))
    except NotApplicable as reason:
        pytest.skip(str(reason))
