r"""`MixtureChain`: a family on levels that starts as a fitted mixture of Student-t, and learns what the mixture misses."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch

from torch import Tensor, nn

from pyro_ar.autoregressive import Autoregressive
from pyro_ar.families import Family
from pyro_ar.nets.draws import skeleton
from pyro_ar.nets.mixture_chain import MixtureChainNet
from pyro_ar.order import random_orders
from pyro_ar.transforms import is_mapped

__all__ = ["MixtureChain", "MixtureChainJoint"]


class MixtureChainJoint(Autoregressive):
    """`Autoregressive` that stops at the last visible variable: most of its cost grows with the square of that."""

    def _score(self, net: nn.Module, values: dict[str, Tensor]) -> Tensor:
        x = values.pop("x")
        left = torch.broadcast_shapes(x.shape[:-1], *(t.shape[:-1] for t in values.values()))
        rows = {name: t.expand(left + t.shape[-1:]).reshape(-1, t.shape[-1]) for name, t in {**values, "x": x}.items()}
        raw = net.prefix(rows["x"], rows.get("context"), rows["order"])  # type: ignore[operator]
        return self.output.log_prob(raw.reshape(left + raw.shape[1:]), x)

    def _log_marginal(self, x: Tensor, visible: Tensor) -> Tensor:
        x, visible = self._in_chain(x), self._in_chain(visible)
        m = visible.shape[-1] if is_mapped(visible) else max(int(visible.sum(-1).max()), 1) if visible.numel() else 1
        values = {"x": x[..., :m].to(self.dtype), "context": self.context, "order": self.order[..., :m]}
        return torch.where(visible[..., :m], self._over_draws(self._score, values), 0).sum(-1)

    def with_tensors(self, tensors: Any) -> "MixtureChainJoint":
        weights = {name: t for name, t in tensors.items() if name != "context"}
        return MixtureChainJoint(self.net, weights, self.output, self._given_order, tensors.get("context"),
                                 validate_args=self._validate_args)


class MixtureChain(Family):
    r"""A chain over levels, in any order, whose conditionals are those of a mixture of Student-t per class, corrected by a net.

    A mixture of densities prices grey levels wrongly: a pixel that is always 0 in a class gives it a density without bound, where its
    probability is at most one. The chain takes the mixture's exact conditional at every level and normalises over
    the levels; the correction (`MixtureChainNet`) starts at zero. Like `OrderlessNADE` it is one joint per order, not `coherent`.

    A correction trained on the rows that the mixture was fitted to learns the wrong thing, because the mixture is too sure of them:
    `MixtureChainClassifier` trains it on cross-fitted conditionals. A pass costs a Cholesky factor per row and component.

    Shapes:
        As `MixtureChainNet`; the context is the one-hot class, absent for one class.

    Args:
        log_weights: `(C, M)`.
        df: Degrees of freedom.
        loc: `(C, M, n)`.
        scale_matrix: `(C, M, n, n)`.
        scores: Of the levels, `(n, K)`.
        event_shape: None: `(n,)`.
        hidden: Units of the correction.
        order: As in `OrderlessNADE`.

    Raises:
        ValueError: Shapes that do not fit.

    Example:
        >>> scores = torch.tensor([[-1.0, 0.0, 1.0]]).expand(2, 3)
        >>> joint = MixtureChain(torch.zeros(1, 1), 5.0, torch.zeros(1, 1, 2), torch.eye(2).expand(1, 1, 2, 2), scores)()
        >>> joint.marginal(torch.tensor([True, False])).log_prob(torch.tensor([1.0, 0.0])).exp().detach()
        tensor(0.4635)
    """

    def __init__(self, log_weights: Tensor, df: Tensor | float, loc: Tensor, scale_matrix: Tensor, scores: Tensor, *,
                 event_shape: int | Sequence[int] | None = None, hidden: int = 48,
                 order: Tensor | Sequence[int] | str | None = None) -> None:
        net = MixtureChainNet(log_weights, df, loc, scale_matrix, scores, event_shape=event_shape, hidden=hidden)
        super().__init__(net, net.output, order=order)
        self.register_load_state_dict_post_hook(_renew)

    def forward(self, context: Tensor | None = None, order: Tensor | None = None) -> MixtureChainJoint:
        weights = {name: attrgetter(name)(self.net) for name in self._names}  # read once, so that a draw is recorded once
        return MixtureChainJoint(self._skeleton[0], weights, self.output, self.order if order is None else order, context)

    def training_log_prob(self, x: Tensor, context: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        order = random_orders(len(x), x[0].numel()).to(x.device)
        joint = self(context, order)
        return joint.log_prob(x) if visible is None else joint.marginal(visible).log_prob(x)

    @property
    def config(self) -> dict[str, Any]:
        """What `par.save` writes beside the weights and the mixture."""
        net: Any = self._skeleton[0]
        return {"sizes": [*net.log_weights.shape, *net.scores.shape], "event_shape": list(self.event_shape),
                "hidden": net.hidden, "ordered": self.order is not None}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MixtureChain":
        C, M, n, K = config["sizes"]
        scores = torch.arange(float(K)).expand(n, K)
        return cls(torch.zeros(C, M), 1.0, torch.zeros(C, M, n), torch.eye(n).expand(C, M, n, n), scores, hidden=config["hidden"],
                   event_shape=tuple(config["event_shape"]), order=range(n) if config["ordered"] else None)


def _renew(family: MixtureChain, _: object) -> None:
    """The joints take the mixture from the skeleton, which loading does not reach."""
    family._skeleton = (skeleton(family.net),)
