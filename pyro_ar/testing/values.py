"""What a value may be: refusals, kinds of numbers, and copies of the joint itself."""

import copy
import math
import pickle

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch

from pyro import poutine
from torch import Size, Tensor

from pyro_ar.checks import IntractableError
from pyro_ar.testing.oracles import (
    NotApplicable,
    agree,
    answered_patterns,
    cells,
    check,
    conditionals,
    has_conditionals,
    holds,
    left_of,
    per_row,
    refuses,
    shaped,
    states_of,
)
from pyro_ar.testing.rebuilding import gradients, rebuilt

__all__ = [
    "accepts_all_number_types", "differentiates_twice_in_turn", "precisions_agree", "refuses_bad_values",
    "refuses_bad_values_in_pyro", "refuses_wrong_shapes", "runs_on_cuda", "survives_deepcopy", "survives_pickle",
]


@check
def refuses_wrong_shapes(joint: Any) -> None:
    """Values and patterns of wrong shapes raise a `ValueError` that names the event or batch shape."""
    event, batch = joint.event_shape, joint.batch_shape
    x = joint.sample()
    wanted = str(tuple(event))
    visible = torch.ones(event, dtype=torch.bool, device=x.device)
    for bad in (x.new_zeros(()), torch.cat([x, x], -1), x[..., :0]):
        refuses(partial(joint.log_prob, bad), f"log_prob of shape {tuple(bad.shape)}", wanted)
        refuses(partial(joint.marginal(visible).log_prob, bad), f"marginal of shape {tuple(bad.shape)}", wanted)
        refuses(partial(joint.given, bad, visible), f"given of shape {tuple(bad.shape)}", wanted)
        if has_conditionals(joint, x):
            refuses(partial(joint.conditional_log_prob, bad), f"conditionals of shape {tuple(bad.shape)}", wanted)
    if any(k > 1 for k in batch):
        wide = x.new_zeros([k + 1 for k in batch] + list(event))
        refuses(partial(joint.log_prob, wide), "values of another batch shape", str(tuple(batch)))
        refuses(lambda: joint.marginal(visible).log_prob(wide), "marginal of another batch shape", str(tuple(batch)))
    for bad in (visible.float(), visible.long(), torch.cat([visible, visible, visible], -1)):
        refuses(partial(joint.marginal, bad), f"a pattern {bad.dtype} {tuple(bad.shape)}", wanted)
        refuses(partial(joint.given, x, bad), f"a pattern {bad.dtype} {tuple(bad.shape)}", wanted)


def _bad_values(joint: Any) -> list[tuple[str, float]]:
    if not joint._validate_args:
        raise NotApplicable("validation is off: values are not checked")
    if joint.num_states is None:
        return [("NaN", math.nan), ("infinity", math.inf)]
    return [("NaN", math.nan), ("a half", 0.5), ("minus one", -1.0), ("a state too many", float(max(joint.num_states)))]


def _words(joint: Any) -> tuple[str, ...]:
    if joint.num_states is None:
        return ("NaN", "support", "finite")
    return ("state", "support", str(max(joint.num_states) - 1))


@check
def refuses_bad_values(joint: Any) -> None:
    """Values outside the support, and NaN where visible, raise a `ValueError` that says what was wanted."""
    x = joint.sample((3,))
    for what, value in _bad_values(joint):
        for i in {0, cells(x, joint).shape[-1] - 1}:
            bad = cells(x, joint).clone()
            bad[(1, *[0] * len(joint.batch_shape), i)] = value
            bad = shaped(bad, joint)
            refuses(partial(joint.log_prob, bad), f"log_prob with {what}", *_words(joint))
            leaf = bad.clone().requires_grad_()
            refuses(partial(joint.log_prob, leaf), f"log_prob with {what} in a tensor that requires gradients", *_words(joint))
            refuses(partial(joint.expand([2, 3, *joint.batch_shape]).log_prob, bad),
                    f"log_prob after expand with {what}", *_words(joint))
            if has_conditionals(joint, x):
                refuses(partial(joint.conditional_log_prob, bad), f"conditionals with {what}", *_words(joint))
            visible = torch.zeros(cells(x, joint).shape[-1], dtype=torch.bool, device=x.device)
            visible[i] = True
            for seen in (visible, torch.ones_like(visible)):
                seen = shaped(seen, joint)
                try:
                    joint.marginal(seen)
                except IntractableError:
                    continue
                refuses(partial(joint.marginal(seen).log_prob, bad), f"marginal with {what} where visible",
                        *_words(joint))
                refuses(partial(joint.given, bad, seen), f"given with {what} where visible", *_words(joint))


def _score(model: Callable[[Tensor], None], value: Tensor) -> None:
    poutine.trace(model).get_trace(value).compute_log_prob()


@check
def refuses_bad_values_in_pyro(joint: Any) -> None:
    """The refusals pass through Pyro, inside plates, and gain the name of the site."""
    batch = joint.batch_shape

    def model(value: Tensor) -> None:
        with pyro.plate_stack("plates", (3, *batch)):
            pyro.sample("the_site", joint, obs=value)

    x = joint.sample((3,))
    _score(model, x)
    for what, value in _bad_values(joint):
        bad = cells(x, joint).clone()
        bad[(2, *[0] * len(batch), -1)] = value
        bad = shaped(bad, joint)
        refuses(partial(_score, model, bad), f"{what} at a site", "the_site")
        try:
            _score(model, bad)
        except ValueError as error:
            holds(any(word in str(error) for word in _words(joint)), f"Pyro's error for {what} lost what was wanted: {error}")


@check
def accepts_all_number_types(joint: Any) -> None:
    """Integer, bool and floating values of one number have one probability, here and in the queries."""
    x = joint.sample((6,))
    if joint.num_states is None:
        x = x.round()
        if not bool(joint.support.check(x).all()):
            raise NotApplicable("whole numbers are outside the support")
        kinds = [torch.int64, torch.int32, torch.float32, torch.float64]
    else:
        most = max(states_of(joint))
        kinds = [torch.int64, torch.int32, torch.float32, torch.float64]
        kinds += ([torch.uint8] if most <= 256 else []) + ([torch.bool] if most <= 2 else [])
    expected = joint.log_prob(x)
    patterns = answered_patterns(joint, x[0], count=3)
    visible = per_row(patterns[-1:], joint)
    for kind in kinds:
        same = x.to(kind)
        agree(joint.log_prob(same), expected, f"log_prob of {kind}")
        holds(joint.log_prob(same).dtype.is_floating_point, "log_prob must be floating")
        agree(joint.marginal(visible).log_prob(same), joint.marginal(visible).log_prob(x), f"marginal of {kind}")
        given = joint.given(same, visible)
        agree(given.log_prob(same), joint.given(x, visible).log_prob(x), f"given of {kind}")
        holds(given.sample().is_floating_point(), "completions must be floating")
        if has_conditionals(joint, x):
            agree(conditionals(joint, same), conditionals(joint, x), f"conditional_log_prob of {kind}")


@check
def survives_pickle(joint: Any) -> None:
    """A pickled joint, expanded or not, comes back with the same answers."""
    x = joint.sample((4,))
    fresh = rebuilt(joint, leaves=True)
    fresh.log_prob(x).sum().backward()
    for one in (joint, joint.expand(Size([2, *joint.batch_shape])), fresh):
        try:
            back = pickle.loads(pickle.dumps(one))
        except Exception as error:
            raise AssertionError(f"pickle failed: {error!r}") from error
        value = one.sample()
        agree(back.log_prob(value), one.log_prob(value), "log_prob after pickle", exactly=True)
        holds(back.batch_shape == one.batch_shape and back._validate_args == one._validate_args, "pickle changed the joint")


@check
def survives_deepcopy(joint: Any) -> None:
    """A joint of leaf tensors that require gradients can be deep-copied, also after use, and the copy is its own."""
    one = rebuilt(joint, leaves=True)
    x = one.sample((4,))
    visible = torch.ones(one.event_shape, dtype=torch.bool, device=x.device)
    for use in (lambda: None, lambda: one.log_prob(x).sum().backward(), lambda: one.marginal(visible).log_prob(x)):
        use()
        try:
            twin = copy.deepcopy(one)
        except Exception as error:
            raise AssertionError(f"deepcopy failed: {error!r}") from error
        agree(twin.log_prob(x), one.log_prob(x), "log_prob after deepcopy", exactly=True)
        for name, t in twin.tensors.items():
            holds(t is not one.tensors[name], f"deepcopy shares {name}")
        total = sum(float(g.abs().sum()) for _, g in gradients(twin, twin.log_prob(x).sum()))
        holds(math.isfinite(total), "gradients of the copy must be finite")


@check
def differentiates_twice_in_turn(joint: Any) -> None:
    """Two calls of `log_prob` on one joint can each be differentiated: no graph is kept in the joint."""
    one = rebuilt(joint, leaves=True)
    x = one.sample((4,))
    calls = {
        "log_prob": lambda: one.log_prob(x).sum(),
        "log_prob after expand": lambda: one.expand(Size([4, *one.batch_shape])).log_prob(x).sum(),
        "marginal": lambda: one.marginal(torch.ones(one.event_shape, dtype=torch.bool, device=x.device)).log_prob(x).sum(),
    }
    expected = None
    for what, call in calls.items():
        for _ in range(2):
            try:
                found = dict(gradients(one, call()))
            except RuntimeError as error:
                raise AssertionError(f"{what} could not be differentiated again: {error}") from error
            expected = found if expected is None else expected
            for name, g in found.items():
                holds(bool(g.isfinite().all()), f"the gradient of {what} by {name} must be finite")
                agree(g, expected[name], f"gradient of {what} by {name}")


@check
def precisions_agree(joint: Any) -> None:
    """float32 and float64 copies of the joint agree, each in its own dtype."""
    copies = {}
    for dtype in (torch.float32, torch.float64):
        tensors = {name: t.detach().to(dtype) if t.is_floating_point() else t for name, t in joint.tensors.items()}
        copies[dtype] = joint.with_tensors(tensors)
    x = copies[torch.float32].sample((8,))
    visible = per_row(answered_patterns(joint, joint.sample(), count=3)[-1:], joint)
    answers = []
    for dtype, one in copies.items():
        value = x.to(dtype)
        found = [one.log_prob(value), one.marginal(visible).log_prob(value), one.given(value, visible).log_prob(value)]
        holds(all(t.dtype == dtype for t in found), f"answers of a {dtype} joint must be {dtype}")
        holds(one.sample().dtype == dtype, f"samples of a {dtype} joint must be {dtype}")
        answers.append(found)
    for what, single, double in zip(("log_prob", "marginal", "given"), *answers, strict=True):
        agree(single.double(), double, f"{what} in float32 and float64", loosely=2e4)


@check
def runs_on_cuda(joint: Any) -> None:
    """On a CUDA device all answers are there, and equal those of the CPU."""
    if not torch.cuda.is_available():
        raise NotApplicable("no CUDA device here")
    far = joint.with_tensors({name: t.detach().cuda() for name, t in joint.tensors.items()})
    near = joint.with_tensors({name: t.detach().cpu() for name, t in joint.tensors.items()})
    x = near.sample((6,))
    patterns = answered_patterns(near, x[0], count=6)
    visible = per_row(patterns[torch.arange(6) % len(patterns)], near)
    for what, ask in {
        "log_prob": lambda p, x, v: p.log_prob(x),
        "marginal": lambda p, x, v: p.marginal(v).log_prob(x),
        "given": lambda p, x, v: p.given(x, v).log_prob(x),
        "conditional_log_prob": lambda p, x, v: conditionals(p, x),
        "order": lambda p, x, v: p.order,
    }.items():
        answer = ask(far, x.cuda(), visible.cuda())
        holds(answer.device.type == "cuda", f"{what} left the device")
        agree(answer.cpu(), ask(near, x, visible), f"{what} on CUDA and CPU", loosely=10)
    for what, draw in {"sample": far.sample((3,)), "given": far.given(x.cuda(), visible.cuda()).sample()}.items():
        holds(draw.device.type == "cuda", f"draws of {what} left the device")
        holds(left_of(draw, far)[1:] == far.batch_shape, f"draws of {what} have a wrong shape on CUDA")
