"""Are `marginal` and `given` what the joint itself says?"""

import math

from functools import partial
from typing import Any

import torch

from torch import Tensor

from pyro_ar.checks import IntractableError
from pyro_ar.testing.goodness import FALSE_ALARM, fits, p_value, ranks, uniform_p_value
from pyro_ar.testing.oracles import (
    agree,
    all_completions,
    can_answer,
    cells,
    check,
    first_order_of,
    holds,
    in_total,
    own_values,
    per_row,
    shaped,
    values_and_patterns,
)

__all__ = ["given_is_right", "given_samples_follow_log_prob", "marginal_is_right", "patterns_have_any_shape"]


@check
def marginal_is_right(joint: Any, *, count: int = 12) -> None:
    """`marginal(visible).log_prob` under random patterns, one per row, is what the joint says.

    All hidden gives 0 and all visible `log_prob`. Where the joint is coherent, it equals the sum of
    `log_prob` over the hidden cells (continuous: each cell in turn integrated out); where it is not, it is
    normalised over the visible cells. `IntractableError` is an honest refusal, but some pattern must be answered.

    Options: `count`, how many random patterns to try.
    """
    x, patterns = values_and_patterns(joint, count)
    answers = joint.marginal(per_row(patterns, joint)).log_prob(x)
    holds(answers.shape == x.shape[:1] + joint.batch_shape, "marginal must give one number per row and batch entry")
    for v, value, answer in zip(patterns, x, answers, strict=True):
        seen = v.nonzero().squeeze(-1).tolist()
        if not v.any():
            agree(answer, torch.zeros_like(answer), "marginal with all hidden")
        elif v.all():
            agree(answer, joint.log_prob(value), "marginal with all visible")
        elif joint.num_states is None:
            _check_continuous(joint, value, v, answer)
        elif joint.coherent:
            completions = all_completions(joint, value, v)
            if completions is not None:
                agree(answer, joint.log_prob(completions).logsumexp(0), f"marginal of {seen} against enumeration")
        else:
            values = all_completions(joint, torch.zeros_like(value), ~v)
            if values is not None:
                total = joint.marginal(shaped(v, joint)).log_prob(values).logsumexp(0)
                agree(total, torch.zeros_like(total), f"log of the sum of the marginal of {seen}")


def _check_continuous(joint: Any, value: Tensor, v: Tensor, answer: Tensor) -> None:
    """Coherent: integrating one more cell into view gives the answer. Otherwise: one visible cell integrates to one."""
    hidden, seen = (~v).nonzero().squeeze(-1).tolist(), v.nonzero().squeeze(-1).tolist()
    for i in hidden if joint.coherent else []:
        more = v.clone()
        more[i] = True
        if can_answer(joint, more, value):
            values, log_weight = own_values(joint, value, i)
            total = in_total(joint.marginal(shaped(more, joint)).log_prob(values), log_weight)
            agree(total, answer, f"marginal of {seen} against quadrature over {i}", loosely=100)
    if len(seen) == 1:
        values, log_weight = own_values(joint, value, seen[0])
        total = in_total(joint.marginal(shaped(v, joint)).log_prob(values), log_weight)
        agree(total, torch.zeros_like(total), f"log of the integral of the marginal of {seen}", loosely=100)


@check
def patterns_have_any_shape(joint: Any) -> None:
    """A pattern broadcasts to `sample + batch + event`: one for all, one per row, one per batch entry, a grid of them."""
    x, patterns = values_and_patterns(joint, 6)
    batch, many = joint.batch_shape, len(patterns)
    grid = joint.marginal(per_row(patterns, joint).unsqueeze(1))
    holds(grid.batch_shape == (many, 1, *batch), f"marginal has batch shape {tuple(grid.batch_shape)}")
    holds(grid.event_shape == joint.event_shape, "marginal must keep the event shape")
    holds(not grid.has_enumerate_support, "a marginal does not enumerate")
    holds(tuple(getattr(grid.method, "shape", ())) [:1] == (many,), "method must name how each pattern was answered")
    answers = grid.log_prob(x)  # (patterns, values, *batch)
    holds(answers.shape == (many, many, *batch), f"marginal of {many} patterns and {many} rows: {tuple(answers.shape)}")
    for k, v in enumerate(patterns):
        agree(joint.marginal(shaped(v, joint)).log_prob(x), answers[k], "one pattern for all rows")
        given = joint.given(x, shaped(v, joint))
        holds(given.batch_shape == (many, *batch), f"given has batch shape {tuple(given.batch_shape)}")
        holds(given.sample((2, 3)).shape == (2, 3, *x.shape), "given.sample has a wrong shape")
        holds(joint.given(x[0], shaped(v, joint)).log_prob(x).shape == (many, *batch), "given.log_prob has a wrong shape")
    pick = torch.randint(many, (many, *batch), device=x.device)
    each = shaped(patterns[pick], joint)
    found = joint.marginal(each).log_prob(x)
    agree(found, answers.gather(0, pick.unsqueeze(0)).squeeze(0), "one pattern per row and batch entry")
    sample = joint.marginal(each).sample((5,))
    holds(sample.shape == (5, *x.shape), f"marginal.sample has shape {tuple(sample.shape)}")
    agree(sample.isnan(), ~each.expand(sample.shape), "marginal.sample: NaN exactly where hidden", exactly=True)
    agree(joint.marginal(each).log_prob(sample), joint.marginal(each).log_prob(sample.nan_to_num(0.0)), "marginal of its sample")
    wide = joint.marginal(per_row(patterns, joint)).expand([3, many, *batch])
    agree(wide.log_prob(x), joint.marginal(per_row(patterns, joint)).log_prob(x).expand(3, many, *batch), "expanded marginal")
    given = joint.given(x, per_row(patterns, joint))
    agree(given.expand([3, many, *batch]).log_prob(x), given.log_prob(x).expand(3, many, *batch), "expanded given")
    holds(given.expand([3, many, *batch]).sample().shape == (3, *x.shape), "sample of the expanded given has a wrong shape")


@check
def given_is_right(joint: Any, *, count: int = 12) -> None:
    """`given(x, visible).log_prob` is normalised over the completions, minus infinity elsewhere, and consistent.

    Where the joint is coherent, given + marginal = log_prob; where it is not, both are normalised, which is the same
    law in the order it answered in. `mode`, where there is one, is the most likely completion.

    Options: `count`, how many random patterns to try.
    """
    x, patterns = values_and_patterns(joint, count)
    visible = per_row(patterns, joint)
    given, marginal = joint.given(x, visible), joint.marginal(visible)
    answers = given.log_prob(x)
    agree(given.log_evidence, marginal.log_prob(x), "log_evidence of given")
    if joint.coherent:
        agree(answers + marginal.log_prob(x), joint.log_prob(x), "given + marginal against log_prob")
    for v, value, answer in zip(patterns, x, answers, strict=True):
        hidden = (~v).nonzero().squeeze(-1).tolist()
        one = joint.given(value, shaped(v, joint))
        agree(one.log_prob(value), answer, "given of one row and of many")
        if joint.num_states is not None:
            completions = all_completions(joint, value, v)
            if completions is None:
                continue
            log_p = one.log_prob(completions)
            agree(log_p.logsumexp(0), torch.zeros_like(answer), f"log of the sum of given over {hidden}")
            if joint.coherent:
                expected = joint.log_prob(completions)
                agree(log_p, expected - expected.logsumexp(0), f"given over {hidden} against enumeration")
            _check_mode(one, log_p.amax(0), v, value, joint)
        elif len(hidden) == 1:
            values, log_weight = own_values(joint, value, hidden[0])
            total = in_total(one.log_prob(values), log_weight)
            agree(total, torch.zeros_like(total), f"log of the integral of given over {hidden}", loosely=100)
            _check_mode(one, one.log_prob(values).amax(0), v, value, joint)
        _check_differing(joint, one, value, v)


def _check_mode(given: Any, best: Tensor, v: Tensor, value: Tensor, joint: Any) -> None:
    try:
        mode = given.mode
    except IntractableError:
        return
    agree(cells(mode, joint)[..., v], cells(value, joint)[..., v], "visible cells of given.mode", exactly=True)
    # On a grid the best value is a little below the mode; nothing may lie above it.
    found = given.log_prob(mode)
    agree(torch.minimum(found, best), best, "probability of given.mode against the best completion")


def _check_differing(joint: Any, given: Any, value: Tensor, v: Tensor) -> None:
    for i in v.nonzero().squeeze(-1).tolist()[:2]:
        other = cells(value, joint).clone()
        if joint.num_states is None:
            draws = cells(joint.sample(), joint)[..., i]
            if bool((draws == other[..., i]).any()):
                continue
            other[..., i] = draws
        elif joint.num_states[i] < 2:
            continue
        else:
            other[..., i] = (other[..., i] + 1) % joint.num_states[i]
        log_p = given.log_prob(shaped(other, joint))
        holds(bool((log_p == -math.inf).all()), f"given.log_prob must be minus infinity where visible cell {i} differs")


@check
def given_samples_follow_log_prob(joint: Any, *, num_samples: int = 2000, false_alarm: float = FALSE_ALARM) -> None:
    """Completions leave visible cells unchanged, bit for bit, and fit `given.log_prob` by Pearson's test.

    Continuous joints: the ranks of each hidden cell under the chain of marginals are uniform.

    Options: `num_samples`; `false_alarm`, the chance that a right sampler fails (over all tests together).
    """
    x, patterns = values_and_patterns(joint, 5)
    if joint.num_states is None:
        x, patterns, num_samples = x[:4], patterns[:4], min(num_samples, 400)
    draws = joint.given(x, per_row(patterns, joint)).sample((num_samples,))
    holds(draws.shape == (num_samples, *x.shape), f"given.sample has shape {tuple(draws.shape)}")
    visible = per_row(patterns, joint).expand(x.shape)
    agree(torch.where(visible, draws, 0), torch.where(visible, x, 0).expand(draws.shape), "visible cells of given.sample",
          exactly=True)
    holds(not draws.isnan().any(), "given.sample must not hold NaN")
    test = _continuous_p_values if joint.num_states is None else _discrete_p_values
    p_values = [p for row, v in enumerate(patterns) if not v.all() for p in test(joint, x[row], v, draws[:, row])]
    fits(p_values, "given.sample against given.log_prob", false_alarm)


def _discrete_p_values(joint: Any, value: Tensor, v: Tensor, draws: Tensor) -> list[float]:
    completions = all_completions(joint, value, v)
    if completions is None:
        return []
    hidden = (~v).nonzero().squeeze(-1).tolist()
    probs = joint.given(value, shaped(v, joint)).log_prob(completions).exp().reshape(len(completions), -1)
    strides = [math.prod(joint.num_states[j] for j in hidden[k + 1:]) for k in range(len(hidden))]
    codes = (cells(draws, joint)[..., hidden].long() * torch.tensor(strides, device=draws.device)).sum(-1)
    columns = zip(probs.detach().cpu().T, codes.reshape(len(draws), -1).cpu().T, strict=True)
    return [p_value(p, torch.bincount(c, minlength=len(p))) for p, c in columns]


def _continuous_p_values(joint: Any, value: Tensor, v: Tensor, draws: Tensor) -> list[float]:
    """Ranks of one hidden cell after another: its density is the marginal with it over the marginal without it."""
    seen, p_values = v.clone(), []
    for i in first_order_of(joint):
        if seen[i]:
            continue
        more = seen.clone()
        more[i] = True
        if not (can_answer(joint, seen, value) and can_answer(joint, more, value)):
            break
        longer, before = joint.marginal(shaped(more, joint)), joint.marginal(shaped(seen, joint)).log_prob(draws)
        found = ranks(joint, draws, i, partial(_difference, longer, before))
        p_values += [uniform_p_value(u) for u in found.reshape(len(draws), -1).T]
        seen = more
    return p_values


def _difference(longer: Any, before: Tensor, values: Tensor) -> Tensor:
    return longer.log_prob(values) - before
