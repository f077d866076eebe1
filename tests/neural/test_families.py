"""Every family, with every output and many shapes, passes every check of the conformance kit."""

import itertools
import math

import pytest
import torch

from registered import ANY_SHAPE, IMAGE_VARIANTS, OF_IMAGES, VARIANTS

from pyro_ar import outputs
from pyro_ar.testing import CHECKS, NotApplicable

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


def on_images(make):
    """`make` with the smallest images that a kernel of 3 fits in, whatever shape is asked, and no order."""
    def made(shape, order=None, **options):
        return make({3: (2, 3), (1, 2, 2): (1, 2, 3)}.get(shape, shape), **options)
    return made


def on_colours(make):
    """`make` with the smallest images of two channels."""
    def made(shape, order=None, **options):
        return make((2, 2, 3), **options)
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


def colours(make, output):
    return with_random_weights(make((2, 2, 3), output=output))()


SETTINGS = [vector, image, context, batch, weight_draws, draws_and_context, orders, one_variable]
OF_PLACES = [image, context, batch, weight_draws, draws_and_context, colours]


def cases():
    """Every check on every family with every output in every setting; by default of FVSBN each output, of the others every
    fourth one, in one setting, taken in turn.

    Draws of real cells are compared with densities on grids, which takes minutes for nets that attend or remember: by default of one family only.
    Of families that share a net, and of variants, one stands for all. Images have six cells,
    too many real ones for grids; by default one output, in another setting for each. Their variants have twelve, and come in make test-all alone.
    """
    for i, (name, make) in enumerate({**ANY_SHAPE, **VARIANTS}.items()):
        for (j, (kind, output)), (k, setting) in itertools.product(enumerate(OUTPUTS.items()), enumerate(SETTINGS)):
            if output is MIXED and setting is orders and not make.func.net_type.any_order:  # refused: each variable has an output of its own
                continue
            usual = k == (3 * i + j) % len(SETTINGS) and name not in VARIANTS and (name == "FVSBN" or (kind not in LATER and (i + j) % 4 == 0))
            real = output.num_states is None and output is not MIXED
            for check in CHECKS:
                drawn = check.__name__.endswith("samples_follow_log_prob") and real and (name, kind) != ("FVSBN", "normal")
                yield case(check, setting, for_shape(make), output, f"{name}, {kind}", fast=usual and not drawn)
    discrete = [(kind, output) for kind, output in OUTPUTS.items() if output.num_states and output is not MIXED]
    for i, (name, make) in enumerate(OF_IMAGES.items()):
        for (kind, output), (k, setting) in itertools.product(discrete, enumerate(OF_PLACES)):
            usual = kind == "bernoulli" and k == i % len(OF_PLACES)
            for check in CHECKS:
                drawn = check.__name__.endswith("samples_follow_log_prob") and i > 0
                yield case(check, setting, on_images(make), output, f"{name}, {kind}", fast=usual and not drawn)
    for (name, make), setting, check in itertools.product(IMAGE_VARIANTS.items(), [batch, weight_draws], CHECKS):
        yield case(check, setting, on_colours(make), make.keywords["output"], name, fast=False)


def case(check, setting, make, output, name, *, fast):
    marks = [] if fast else [pytest.mark.slow]
    return pytest.param(check, setting, make, output, id=f"{check.__name__}-{name}, {setting.__name__}", marks=marks)


@pytest.mark.parametrize(("check", "setting", "make", "output"), list(cases()))
def test_conforms(check, setting, make, output, float64):
    try:
        check(setting(make, output))
    except NotApplicable as reason:
        pytest.skip(str(reason))


WIDE = {
    "PixelCNN": {"hidden": 96}, "gated PixelCNN": {"hidden": 96}, "RowLSTM": {"hidden": 96}, "DiagonalBiLSTM": {"hidden": 96}, "WaveNet": {"hidden": 96},
    "RecurrentAR": {"hidden": 96}, "CausalTransformer": {"width": 96}, "AnyOrderTransformer": {"width": 96},
}


def fan_in(name, p, net):
    """How many inputs each output of a weight adds up; None: it is no product's."""
    module = net.get_submodule(name.rpartition(".")[0])
    if hasattr(module, "mask"):
        return module.mask.flatten(1).sum(1).float().mean().item() if name.endswith("weight") else None
    last = name.rpartition(".")[2]
    if last == "out" or last in ("state_weight", "head_weight"):
        return p.shape[-2]
    if p.ndim < 2 or "place" in name or "context" in name or last == "label":
        return None
    return p[0].numel() if last not in ("value_weight", "enter") else p.shape[-2]


@pytest.mark.parametrize("name", WIDE)
def test_weights_begin_with_outputs_of_the_size_of_their_inputs(name):
    """Each output's sum of squared weights is about one, or a quarter where it is added to a stream or is an answer, however wide the net."""
    make = {**ANY_SHAPE, **OF_IMAGES}[name]
    net = make((1, 4, 5), **WIDE[name]).net
    asked = 0
    for key, p in net.named_parameters():
        inputs = fan_in(key, p, net)
        if inputs is not None and p.numel() > 90:
            used = p[net.get_submodule(key.rpartition(".")[0]).mask] if hasattr(net.get_submodule(key.rpartition(".")[0]), "mask") else p
            size = inputs * used.square().mean().item()
            assert 0.1 < size < 2, (key, size)
            asked += 1
    assert asked >= 4
