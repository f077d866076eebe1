"""Networks trained on random parts, against plain formulas."""

import math

import numpy as np
import pytest
import torch

from torch import Generator, nn

from pyro_ar import data
from pyro_ar.classify import PatternNet
from pyro_ar.classify.images import random_parts


@pytest.fixture(scope="module")
def digits():
    """Training rows, their labels, test rows and theirs, and a pattern of the test rows."""
    few = data.digits().head(500)
    seen = torch.rand(100, 64, generator=Generator().manual_seed(0)) < 0.4
    return few.x[:400].double(), few.y[:400].numpy(), few.x[400:].double(), few.y[400:].numpy(), seen


def test_pattern_net_learns_what_parts_say(digits):
    x, y, test, true, seen = digits
    net = PatternNet(hidden=64, members=2, steps=400, batch_size=64, dropout=0.1).fit(x, y)
    assert net.score(test, true) > 0.75  # by chance 0.1 +- 0.03
    assert net.score(test, true, visible=seen) > 0.5
    torn = torch.where(seen, test, math.nan)
    assert net.predict_log_proba(torn, seen) == pytest.approx(net.predict_log_proba(test, seen))
    assert net.predict_proba(test, seen).sum(1) == pytest.approx(np.ones(100), abs=1e-5)
    assert net.num_parameters == 2 * (128 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10)
    mean = np.mean([torch.softmax(one(torch.cat([torch.where(seen, net.transform_.inv(test.float()), 0), seen.float()], 1)), 1).numpy()
                    for one in net.nets_], axis=0)
    assert net.predict_proba(test, seen) == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("ranks", [True, False])
def test_pattern_net_draws_its_own_numbers(digits, ranks):
    x, y, test, _, _ = digits
    before = torch.random.get_rng_state()
    first, second = (PatternNet(hidden=8, members=1, steps=5, ranks=ranks).fit(x, y).predict_log_proba(test) for _ in range(2))
    assert (first == second).all()
    assert torch.random.get_rng_state().equal(before)
    other = PatternNet(hidden=8, members=1, steps=5, ranks=ranks, seed=1).fit(x, y).predict_log_proba(test)
    assert np.abs(other - first).max() > 1e-3


def test_convolutions_learn_what_parts_say(digits):
    x, y, test, true, seen = digits
    net = PatternNet(hidden=32, members=1, steps=300, batch_size=64, dropout=0.1, image_shape=(8, 8), channels=8).fit(x, y)
    assert net.score(test, true) > 0.75  # by chance 0.1 +- 0.03
    assert net.score(test, true, visible=seen) > 0.4
    torn = torch.where(seen, test, math.nan)
    assert net.predict_log_proba(torn, seen) == pytest.approx(net.predict_log_proba(test, seen))
    layers = [2 * 9 * 8 + 8, 8 * 9 * 16 + 16, 16 * 9 * 16 + 16, 16 * 9 * 32 + 32, 2 * (8 + 16 + 16 + 32), 128 * 32 + 32, 320 + 10]
    assert net.num_parameters == sum(layers)
    one = test[:1].float()
    images = torch.stack([torch.where(seen[:1], net.transform_.inv(one), 0), seen[:1].float()], 1).reshape(1, 2, 8, 8)
    assert net.predict_log_proba(test[:1], seen[:1]) == pytest.approx(net.nets_[0](images).log_softmax(1).numpy(), abs=1e-4)


def test_a_colour_is_the_same_everywhere_in_an_image(digits):
    x, y, test, _, seen = digits
    image = PatternNet(hidden=8, members=1, steps=5, ranks=False, image_shape=(8, 8), channels=2).fit(x, y)
    scores = torch.where(seen, (test - x.mean()) / x.std(correction=0), 0).float()
    both = torch.stack([scores, seen.float()], 1).reshape(-1, 2, 8, 8)
    assert image.predict_log_proba(test, seen) == pytest.approx(image.nets_[0](both).log_softmax(1).numpy(), abs=1e-4)
    flat = PatternNet(hidden=8, members=1, steps=5, ranks=False).fit(x, y)
    spread = x.std(0, correction=0)
    scores = torch.where(seen, (test - x.mean(0)) / torch.where(spread > 0, spread, 1), 0).float()
    assert flat.predict_log_proba(test, seen) == pytest.approx(flat.nets_[0](torch.cat([scores, seen.float()], 1)).log_softmax(1).numpy(), abs=1e-4)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_layers_compute_in_bfloat16_in_training_alone(digits, bfloat16):
    x, y, test, _, seen = digits
    formats = set()

    def note(layer, _, out):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            formats.add((layer.training, layer.weight.dtype, out.dtype))

    hook = nn.modules.module.register_module_forward_hook(note)
    try:
        net = PatternNet(hidden=8, members=1, steps=20, image_shape=(8, 8), channels=2, bfloat16=bfloat16).fit(x, y)
        assert formats == {(True, torch.float32, torch.bfloat16 if bfloat16 else torch.float32)}
        formats.clear()
        net.predict_proba(test, seen)
        assert formats == {(False, torch.float32, torch.float32)}
    finally:
        hook.remove()


def test_the_loss_of_bfloat16_is_summed_in_single_precision(digits, monkeypatch):
    found = []
    monkeypatch.setattr("pyro_ar.classify.pattern_net.descend", lambda parameters, loss, steps, **_: found.append(loss(0)))
    PatternNet(hidden=8, members=1, image_shape=(8, 8), channels=2, bfloat16=True).fit(digits[0], digits[1])
    assert found[0].dtype == torch.float32


def test_bfloat16_comes_near_to_single_precision(digits):
    x, y, test, _, seen = digits
    fine, coarse = (PatternNet(hidden=16, members=1, steps=40, batch_size=64, image_shape=(8, 8), channels=4, bfloat16=b).fit(x, y).predict_proba(test, seen)
                    for b in (False, True))
    assert 0 < np.abs(fine - coarse).max()
    assert np.abs(fine - coarse).mean() < 0.02


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5)])
def test_convolutions_of_any_shape(shape):
    x = torch.rand(30, math.prod(shape), generator=Generator().manual_seed(0))
    y = (x.mean(1) > 0.5).long()
    net = PatternNet(hidden=8, members=1, steps=3, batch_size=8, image_shape=shape, channels=2).fit(x.reshape(-1, *shape), y)
    assert net.predict_proba(x.reshape(-1, *shape)).sum(1) == pytest.approx(np.ones(30), abs=1e-5)
    convolutions = [layer for layer in net.nets_[0] if isinstance(layer, nn.Conv2d)]
    assert convolutions[0].in_channels == 2 * (shape[0] if len(shape) == 3 else 1)


def test_rows_in_the_shape_of_images_are_images(digits):
    x, y, _, _, _ = digits
    made = {shape: PatternNet(hidden=4, members=1, steps=2, channels=2, image_shape=shape).fit(x.reshape(-1, 8, 8), y) for shape in (None, (), (8, 8))}
    assert [isinstance(net.nets_[0][0], nn.Conv2d) for net in made.values()] == [True, False, True]
    assert made[None].predict_log_proba(x.reshape(-1, 8, 8)) == pytest.approx(made[8, 8].predict_log_proba(x))


@pytest.mark.parametrize("change", [lambda x: 60 * x + 1.7e9, lambda x: 1e50 * x, lambda x: x + 1e9], ids=["times", "huge", "far"])
@pytest.mark.parametrize("ranks", [True, False])
def test_the_unit_and_the_origin_do_not_matter(digits, change, ranks):
    x, y, test, _, seen = digits
    first, second = (PatternNet(hidden=16, members=1, steps=30, ranks=ranks).fit(f(x), y).predict_proba(f(test), seen) for f in (change, lambda x: x))
    assert first == pytest.approx(second, abs=1e-3)


def test_values_far_out_are_answered(digits):
    x, y, test, _, _ = digits
    for ranks in (True, False):
        net = PatternNet(hidden=8, members=1, steps=5, ranks=ranks).fit(x, y)
        assert np.isfinite(net.predict_log_proba(torch.where(torch.arange(64) == 3, 1e39, test))).all()


@pytest.mark.parametrize(("settings", "message"), [
    ({"hidden": 0}, "hidden must be"), ({"members": 0}, "members must be"), ({"steps": 0}, "steps must be"), ({"batch_size": 1}, "batch_size must be"),
    ({"channels": 0}, "channels must be"), ({"dropout": 1.0}, "dropout must be"), ({"lr": 0.0}, "lr must be"), ({"weight_decay": -1.0}, "weight_decay"),
    ({"steps": 2.5}, "steps must be a whole number"),
])
def test_bad_settings_are_refused(digits, settings, message):
    with pytest.raises(ValueError, match=message):
        PatternNet(**settings).fit(digits[0], digits[1])


@pytest.mark.parametrize("steps", [1, 9, 10, 11, 20])
def test_any_number_of_steps(digits, steps):
    assert PatternNet(hidden=4, members=1, steps=steps).fit(digits[0], digits[1]).num_parameters > 0


def test_values_that_do_not_differ_are_refused():
    for x in (np.zeros((4, 2)), np.zeros((1, 1))):
        with pytest.raises(ValueError, match="values that differ"):
            PatternNet(steps=1).fit(x, np.arange(len(x)))


@pytest.mark.parametrize("shape", [(8, 9), (64,), (1, 1, 8, 8), (-8, -8), 64])
def test_image_shapes_that_do_not_fit_are_refused(digits, shape):
    with pytest.raises(ValueError, match=r"image_shape must be \(height, width\) or \(channels, height, width\) of 64 cells"):
        PatternNet(steps=1, image_shape=shape).fit(digits[0], digits[1])


def test_hidden_training_cells_are_refused(digits):
    with pytest.raises(ValueError, match="complete training rows"):
        PatternNet(steps=1).fit(digits[2], digits[3], digits[4])


# Random parts.


def is_box(pattern):
    """Whether the visible pixels fill a rectangle: by its corners."""
    at = [(i, j) for i, row in enumerate(pattern) for j, v in enumerate(row) if v]
    if not at:
        return True
    high, wide = ([place[k] for place in at] for k in (0, 1))
    return len(at) == (max(high) - min(high) + 1) * (max(wide) - min(wide) + 1)


def test_random_parts_are_scattered_pixels_and_boxes():
    # Of 2000 rows three quarters are scattered, an eighth each are boxes shown and hidden: counts within 5 standard errors (binomial),
    # false alarm below 1e-5. A scattered row of 20 x 24 pixels hides a box by chance where hardly any is hidden: below .3 % of them.
    parts = random_parts((20, 24), 2000, generator=Generator().manual_seed(1))
    assert parts.shape == (2000, 20, 24)
    assert parts.dtype == torch.bool
    shown, hidden = ([is_box(rows) for rows in (parts if kind else ~parts).tolist()] for kind in (True, False))
    for found in (np.mean(shown), np.mean(hidden)):
        assert 0.125 - 5 * 0.0074 < found < 0.125 + 5 * 0.0074 + 0.003
    scattered = parts[~(np.array(shown) | np.array(hidden))].float().mean((1, 2))
    assert float(scattered.mean()) == pytest.approx(0.03 + 0.97 / 3, abs=5 * 0.0075)  # of .03 + .97 u^2, a standard deviation of .29 over 1500 rows
    assert float((scattered < 0.1).float().mean()) == pytest.approx((0.07 / 0.97)**0.5, abs=5 * 0.0115)  # uniform shares would give .07
    assert float(scattered.min()) > 0.005  # of 480 pixels at least .03 are shown on average: fewer than 3 with a probability below 1e-4 each


def test_random_parts_of_channels_go_together():
    parts = random_parts((3, 6, 5), 50, generator=Generator().manual_seed(2))
    assert parts.shape == (50, 3, 6, 5)
    assert (parts == parts[:, :1]).all()
    again = random_parts((3, 6, 5), 50, generator=Generator().manual_seed(2))
    assert (parts == again).all()
