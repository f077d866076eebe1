r"""The conformance kit of nets: what `pyro_ar.neural.Net` promises, each promise a function of one net.

As the checks of joints, a check returns nothing, raises `AssertionError` with what is wrong, or `NotApplicable`. The net should be small (a
dozen variables at most) and is left as it was; its weights are made larger in a copy, so that what is wrong shows.
"""

import copy
import io

from typing import Any

import torch

from torch import Tensor
from torch.func import functional_call, stack_module_state

from pyro_ar.checks import require
from pyro_ar.neural.net import Net
from pyro_ar.order import random_orders
from pyro_ar.testing.oracles import NotApplicable

__all__ = [
    "NET_CHECKS", "net_draws_weights", "net_is_causal", "net_is_repeatable", "net_prefills", "net_reloads",
    "net_rows_are_apart", "net_sees_known_variables", "net_steps", "net_stops_early", "net_takes_rows",
]

ROWS = 5


def net_stops_early(net: Net) -> None:
    """The first m variables alone give the same raw parameters as all of them, and of the promised shape."""
    net, x, known = _prepared(net)
    whole = _chain(net, x, known)
    _same(torch.tensor(whole.shape), torch.tensor((*x.shape, net.output.raw)), "the shape of raw parameters (rows, n, raw)")
    for m in range(1, net.num_variables + 1):
        _same(_chain(net, x[:, :m], known), whole[:, :m], f"raw parameters of the first {m} variables alone")


def net_is_causal(net: Net) -> None:
    """What variable i is changes no raw parameters up to its own, and is read by some later one."""
    net, x, known = _prepared(net)
    whole, other = _chain(net, x, known), _values(net, 7)
    read = False
    for i in range(net.num_variables):
        moved = x.clone()
        moved[:, i:] = other[:, i:]
        answer = _chain(net, moved, known)
        _same(answer[:, :i + 1], whole[:, :i + 1], f"raw parameters up to variable {i}, when that and later variables change,")
        read = read or not torch.allclose(answer, whole)
    if net.num_variables > 1:
        _ensure(read, "some raw parameters depend on earlier variables")


def net_rows_are_apart(net: Net) -> None:
    """A row alone is answered as it is among others."""
    net, x, known = _prepared(net)
    whole = _chain(net, x, known)
    for r in range(ROWS):
        alone = _chain(net, x[r:r + 1], {name: t[r:r + 1] for name, t in known.items()})
        _same(alone, whole[r:r + 1], "raw parameters of a row alone")


def net_steps(net: Net) -> None:
    """`start` and `advance` give what one pass gives."""
    net, x, known = _prepared(net)
    _same(_stepped(net, x, known), _chain(net, x, known), "raw parameters step by step")


@torch.no_grad()
def net_prefills(net: Net) -> None:
    """Runs of known variables taken at once, at the start, between steps and one after another, leave the same state as steps do."""
    net, x, known = _prepared(net)
    n, whole = net.num_variables, _chain(net, x, known)
    for first in range(n):
        for end in range(first + 1, n):
            for cut in {end, (first + end) // 2} - {first}:  # one run, and two
                state, last = net.start(ROWS, **known), None
                for i in range(first):
                    net.advance(state, last)
                    last = x[:, i]
                net.prefill(state, x[:, first:cut] if last is None else x[:, first - 1:cut])
                if cut < end:
                    net.prefill(state, x[:, cut:end])
                for i in range(end, n):
                    raw = net.advance(state, None if i == end else x[:, i - 1])
                    _same(raw, whole[:, i], f"raw parameters of variable {i} after a prefill of variables {first} to {end - 1}, in two where {cut} < {end},")


@torch.no_grad()
def net_takes_rows(net: Net) -> None:
    """Rows of a state that are taken go on as rows of their own, and the state they were taken from goes on undisturbed."""
    net, x, known = _prepared(net)
    n, index = net.num_variables, torch.tensor([3, 0, 0, 4, 2, 2, 1])
    whole, other = _chain(net, x, known), _values(net, 11)
    for cut in range(n):
        state = net.start(ROWS, **known)
        for i in range(cut):
            net.advance(state, x[:, i - 1] if i else None)
        taken = net.take(state, index)
        mixed = x[index].clone()
        mixed[:, cut:] = torch.cat([other, other])[:len(index), cut:]
        expected = _chain(net, mixed, {name: t[index] for name, t in known.items()})
        for i in range(cut, n):  # in turn, so that shared memory would show
            _same(net.advance(taken, mixed[:, i - 1] if i else None), expected[:, i], f"raw parameters of taken rows at variable {i}")
            _same(net.advance(state, x[:, i - 1] if i else None), whole[:, i], f"raw parameters at variable {i} of the rows left behind")


def net_is_repeatable(net: Net) -> None:
    """In eval mode the same input gives the same answer."""
    net, x, known = _prepared(net)
    _ensure(torch.equal(_chain(net, x, known), _chain(net, x, known)), "a net in eval mode answers the same twice")


def net_reloads(net: Net) -> None:
    """A state dict, written and read, makes another copy of the net answer the same."""
    net, x, known = _prepared(net)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for t in other.state_dict().values():
            if t.is_floating_point():
                t.normal_()
    _chain(other, x, known)  # so that what is remembered of the old weights shows
    other.load_state_dict(torch.load(file, weights_only=True))
    _same(_chain(other, x, known), _chain(net, x, known), "raw parameters after loading a state dict")


def net_draws_weights(net: Net) -> None:
    """Under vmap over draws of the weights it passes and steps as it does with each draw by itself."""
    net, x, known = _prepared(net)
    others = [copy.deepcopy(net) for _ in range(3)]
    with torch.no_grad():
        for k, other in enumerate(others):
            for p in other.parameters():
                p.mul_(1 + 0.3 * k)
    weights, _ = stack_module_state(others)

    class Both(torch.nn.Module):
        """A pass and all the steps of the net, so that its weights are replaced in both."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self) -> tuple[Tensor, Tensor]:
            inner: Any = self.net
            return inner.in_chain(x, **known), _stepped(inner, x, known)

    def run(weights: dict[str, Tensor]) -> Any:
        return functional_call(Both(), {f"net.{k}": t for k, t in weights.items()}, ())

    with torch.no_grad():
        passed, stepped = torch.vmap(run, randomness="different")(weights)
    for k, other in enumerate(others):
        _same(passed[k], _chain(other, x, known), "a pass under vmap over weights")
        _same(stepped[k], _chain(other, x, known), "steps under vmap over weights")


def net_sees_known_variables(net: Net) -> None:
    """`given_known` of an any-order net is what a pass gives the variable that stands right behind the known ones, which stand in their own order."""
    net, x, known = _prepared(net)
    if not net.any_order:
        raise NotApplicable("the net has one order")
    any_order: Any = net
    n, order = net.num_variables, known.pop("order")
    flat = x.gather(1, order.argsort(-1))
    for m in range(n):
        seen = torch.zeros(ROWS, n, dtype=torch.bool).scatter(1, order[:, :m], True)
        with torch.no_grad():
            raw = any_order.given_known(torch.where(seen, flat, torch.nan), seen, known.get("context"))
        here = order[:, m].reshape(-1, 1, 1).expand(-1, 1, raw.shape[-1])
        read = torch.cat((order[:, :m].sort(-1).values, order[:, m:]), 1)
        _same(raw.gather(1, here), _chain(net, flat.gather(1, read), {**known, "order": read})[:, m:m + 1], f"raw parameters given {m} known variables")


NET_CHECKS = (
    net_stops_early,
    net_is_causal,
    net_rows_are_apart,
    net_is_repeatable,
    net_steps,
    net_prefills,
    net_takes_rows,
    net_reloads,
    net_draws_weights,
    net_sees_known_variables,
)
"""All checks of nets."""


def _prepared(net: Net) -> tuple[Net, Tensor, dict[str, Tensor]]:
    """A copy in eval mode and double precision with larger weights, values in chain order, and what else it is told."""
    require(isinstance(net, Net), "the kit of nets wants a net that derives from par.Net", type(net).__name__)
    net = copy.deepcopy(net).double().eval()
    generator = torch.Generator().manual_seed(20260101)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    known = {}
    if net.context_dim:
        known["context"] = torch.randn(ROWS, net.context_dim, generator=generator, dtype=torch.float64)
    if net.any_order:
        known["order"] = random_orders(ROWS, net.num_variables, generator=generator)
    x = _values(net, 3)
    return net, x.gather(1, known["order"]) if net.any_order else x, known


def _values(net: Net, seed: int) -> Tensor:
    """Values that the outputs allow, `(rows, n)`."""
    generator = torch.Generator().manual_seed(seed)
    columns = []
    for output in net.output.variables(net.num_variables):
        k = output.num_states
        columns.append(torch.randn(ROWS, generator=generator, dtype=torch.float64) if k is None
                       else torch.randint(k, (ROWS,), generator=generator).double())
    return torch.stack(columns, -1)


def _chain(net: Net, x: Tensor, known: dict[str, Tensor]) -> Tensor:
    known = {name: t[:, :x.shape[1]] if name == "order" else t for name, t in known.items()}
    with torch.no_grad():
        return net.in_chain(x, **known)


def _stepped(net: Net, x: Tensor, known: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        state = net.start(len(x), **known)
        return torch.stack([net.advance(state, x[:, i - 1] if i else None) for i in range(x.shape[1])], 1)


def _same(found: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9, msg=lambda text: f"{what} must be the same: {text}")


def _ensure(ok: bool, what: str) -> None:
    if not ok:
        raise AssertionError(f"it must hold that {what}")
