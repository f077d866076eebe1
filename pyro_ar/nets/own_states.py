r"""Variables with numbers of states of their own under one output: what a variable cannot be has probability zero."""

import math

from collections.abc import Sequence
from typing import Any

import torch

from torch import Tensor

from pyro_ar.checks import require
from pyro_ar.nets.base import Net
from pyro_ar.order import random_orders
from pyro_ar.outputs import Categorical

__all__ = ["OwnStates"]

DRAWS = 10  # of the weights, in counting: a rectified unit that is dead in all of them is one in 10^5


class OwnStates(Net):
    r"""A net whose variable i has K_i states, of the K that its output has room for.

    The logits of the states beyond are minus infinity, so each conditional is that of the net given that its variable is in a possible
    state: exact, normalised, and of finite gradient. A variable of one state is certain.

    Args:
        net: Of a `Categorical` output. Variable i of the event must stand i-th in the chain, unless it is an any-order net.
        num_states: K_i of each variable of the flattened event, from 1 to the output's.

    Raises:
        ValueError: Another output, or numbers of states that do not fit it.

    Attributes:
        own_states: K_i of each variable; a joint takes its `num_states` and its support from it.

    Example:
        >>> from pyro_ar.nets.linear import LinearNet
        >>> net = OwnStates(LinearNet(3, Categorical(4)), [2, 4, 1])
        >>> net(torch.zeros(1, 3))[0]  # logits against state 0
        tensor([[0., -inf, -inf],
                [0., 0., 0.],
                [-inf, -inf, -inf]], grad_fn=<SelectBackward0>)
        >>> net.num_parameters  # 1 + 3 + 0 biases, and 3 weights of the second variable
        7
    """

    impossible: Tensor

    def __init__(self, net: Net, num_states: Sequence[int]) -> None:
        require(isinstance(net, Net) and isinstance(net.output, Categorical), "own numbers of states want a net of a Categorical output", net)
        super().__init__(net.event_shape, net.output, net.context_dim)
        sizes = tuple(int(k) for k in num_states)
        most = net.output.raw + 1
        require(len(sizes) == self.num_variables and all(1 <= k <= most for k in sizes),
                f"num_states must be {self.num_variables} numbers from 1 to the output's {most}", num_states)
        self.net, self.own_states = net, sizes
        self.any_order, self.broadcasts = net.any_order, net.broadcasts
        beyond = torch.arange(1, most) >= torch.tensor(sizes)[:, None]
        self.register_buffer("impossible", beyond, persistent=False)

    @property
    def num_parameters(self) -> int:
        """Weights that some conditional depends on: those of impossible states are not counted."""
        n, raw = self.impossible.shape
        live = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in self.named_parameters()}
        # In these rows every state of every variable occurs, in many combinations.
        steps = torch.arange(3 * (raw + 1))[:, None] * torch.arange(1, n + 1) + torch.arange(n)
        x = torch.cat([torch.arange(raw + 1)[:, None].expand(-1, n), steps]) % torch.tensor(self.own_states)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            for _ in range(DRAWS):
                # The net may be a skeleton without storage: weights are handed over.
                weights = {name: (0.5 * torch.randn(p.shape, dtype=p.dtype)).requires_grad_() for name, p in self.named_parameters()}
                known = {"context": torch.randn(len(x), self.context_dim)} if self.context_dim else {}
                known |= {"order": random_orders(len(x), n)} if self.any_order else {}
                value = x.gather(1, known["order"]) if self.any_order else x
                answer = torch.func.functional_call(self, weights, (value.float().unflatten(1, self.event_shape),), known)
                answer = answer[answer.isfinite()]
                found = torch.autograd.grad((answer * torch.randn_like(answer)).sum(), list(weights.values()), allow_unused=True)
                for seen, g in zip(live.values(), found, strict=True):
                    if g is not None:
                        seen |= g != 0
        return sum(int(some.sum()) for some in live.values())

    def forward(self, x: Tensor, context: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        known = {name: t for name, t in (("context", context), ("order", order)) if t is not None}
        beyond = self.impossible if order is None else self.impossible[order]
        return _without(self.net(x, **known), beyond.unflatten(-2, self.event_shape))

    def given_known(self, x: Tensor, known: Tensor, context: Tensor | None = None) -> Tensor:
        """As of the net, where it has such a thing."""
        net: Any = self.net
        return _without(net.given_known(x, known, context), self.impossible.unflatten(0, self.event_shape))

    def start(self, rows: int, context: Tensor | None = None, order: Tensor | None = None) -> Any:
        return {"inner": self.net.start(rows, context, order), "order": order, "i": -1}

    def advance(self, state: Any, value: Tensor | None) -> Tensor:
        raw = self.net.advance(state["inner"], value)
        state["i"] += 1
        place = state["i"] if state["order"] is None else state["order"][:, state["i"]]
        return _without(raw, self.impossible[place])


def _without(raw: Tensor, impossible: Tensor) -> Tensor:
    return raw.masked_fill(impossible, -math.inf)
