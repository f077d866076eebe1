r"""Families: modules that own weights, and give a joint when they are called."""

import functools
import inspect
import math

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch

from torch import Generator, Tensor, nn

from pyro_ar.autoregressive import Autoregressive
from pyro_ar.checks import counted, one_line, require
from pyro_ar.mixture import Averaged, Mixture
from pyro_ar.nets.base import Net, as_event_shape
from pyro_ar.nets.draws import skeleton
from pyro_ar.nets.linear import LinearNet
from pyro_ar.nets.made import MADENet
from pyro_ar.nets.nade import NADENet
from pyro_ar.nets.orderless import OrderlessNADENet
from pyro_ar.order import make_order, random_orders
from pyro_ar.outputs import Bernoulli, Output

__all__ = ["FVSBN", "MADE", "NADE", "Family", "OrderlessNADE", "OverOrders"]


class Family(nn.Module):
    r"""A module around a net; calling it reads the net's weights, buffers and mode, and binds them in an `Autoregressive`.

    Priors on the weights work as in any Pyro module: `pyro.nn.module.to_pyro_module_(family)`, then set
    entries of `family.net` to `PyroSample`. Weights are read once per call, so a draw is recorded once, and drawn
    weights with extra left dimensions are batch dimensions.

    A family of your own derives from this class and passes `net`, `output` and `order` on. The arguments of its own constructor are recorded
    as `arguments`, which is what `par.save` writes.

    Args:
        net: A `Net`.
        output: The output that the net was made for; entry i of a `PerVariable` answers for position i of the flattened event.
        order: None (raster scan, or the net's own order), a permutation of the flattened event, or 'random'.
        generator: For a random order.

    Raises:
        ValueError: No net, or an order that is no permutation of the variables.

    Example:
        >>> family = FVSBN(event_shape=(2, 2), context_dim=3)
        >>> family(torch.eye(3)).batch_shape
        torch.Size([3])
    """

    net: Net
    order: Tensor | None

    def __init__(self, net: Net, output: Output, *, order: Tensor | Sequence[int] | str | None = None,
                 generator: Generator | None = None) -> None:
        super().__init__()
        require(isinstance(net, Net), "Family wants a net that derives from par.Net", type(net).__name__)
        self.net = net
        self.output = output
        self.register_buffer("order", None if order is None else make_order(order, net.num_variables, generator))
        self._names = tuple(name for name, _ in net.named_parameters())
        # In a tuple, so that it is no submodule: a structure to bind weights to, which outlives changes of `net`.
        self._structure: tuple[Net] = (skeleton(net),)
        self._in_mode: dict[tuple[bool, ...], Net] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        """Let the constructor record its arguments."""
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]

    def forward(self, context: Tensor | None = None, order: Tensor | None = None) -> Autoregressive:
        """The joint of the present weights, buffers and mode.

        Args:
            context: `(*B, context_dim)`.
            order: Instead of the family's own; one per row, `(*B, n)`, suits any-order families.
        """
        # By getattr, so that Pyro's random weights are sampled, and recorded, here.
        weights = {name: attrgetter(name)(self.net) for name in self._names}
        return Autoregressive(self._net_in_mode(), weights, self.output, self.order if order is None else order, context,
                              dict(self.net.named_buffers()))

    def _net_in_mode(self) -> Net:
        """A structure without weights in the present mode, which stays as it is when the mode of the family changes."""
        mode = tuple(module.training for module in self.net.modules())
        if mode not in self._in_mode:
            made = skeleton(self._structure[0])
            for module, training in zip(made.modules(), mode, strict=True):
                module.training = training
            self._in_mode[mode] = made
        return self._in_mode[mode]

    def training_log_prob(self, x: Tensor, context: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        r"""What `par.fit` maximises, one number per row `(N,)`, in nats.

        log p(x | context), or log p(x_visible | context) for incomplete rows. An any-order family is scored in an
        order drawn for each row.

        Args:
            x: `(N, *event)`; what is stored under a hidden cell is never read.
            context: `(N, context_dim)`.
            visible: bool `(N, *event)`, True = seen.
        """
        order = None
        if self.any_order:
            order = random_orders(len(x), math.prod(self.event_shape)).to(x.device)
        joint = self(context, order)
        return joint.log_prob(x) if visible is None else joint.marginal(visible).log_prob(x)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the constructor of a class of families, by name; of a plain `Family`, none."""
        return dict(self.__dict__.get("_arguments", {}))

    def __repr__(self) -> str:
        """What it is over and made with, in one line; `net` shows its modules."""
        told = ("event_shape", "context_dim", "output", "order")
        settings = [f"{name}={value!r}" for name, value in self.arguments.items() if name not in told and value is not None]
        shape = f" ({'x'.join(map(str, self.event_shape))})" if len(self.event_shape) > 1 else ""
        return one_line(type(self).__name__, counted(math.prod(self.event_shape), "variable") + shape, f"{self.output!r}",
                        f"context {self.context_dim}" if self.context_dim else "", *settings, "" if self.order is None else "own order",
                        counted(self.num_parameters, "parameter"))

    def extra_repr(self) -> str:
        """The arguments that are no tensors, which `par.fit` holds a checkpoint against."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items() if not isinstance(value, Tensor))

    def condition(self, context: Tensor) -> Autoregressive:
        """The same as calling the family."""
        return self(context)

    @property
    def any_order(self) -> bool:
        """Whether it gives a joint for each order."""
        return self._structure[0].any_order

    @property
    def event_shape(self) -> torch.Size:
        return self._structure[0].event_shape

    @property
    def context_dim(self) -> int:
        return self._structure[0].context_dim

    @property
    def num_parameters(self) -> int:
        """Free parameters; weights that are always zero are not counted."""
        return self._structure[0].num_parameters

    def _make(self, net: type[Net], event_shape: int | Sequence[int], output: Output | None, context_dim: int,
              order: Tensor | Sequence[int] | str | None, generator: Generator | None, **options: Any) -> None:
        """Construct the family of a net of this class; the outputs of a chain's variables stand in its order."""
        output = Bernoulli() if output is None else output
        n = math.prod(as_event_shape(event_shape))
        made = None if order is None else make_order(order, n, generator)
        along = output if made is None or net.any_order or not isinstance(output, Output) else output.in_order(made.tolist())
        Family.__init__(self, net(event_shape, along, context_dim, **options), output, order=made)


def _recording(construct: Callable[..., None]) -> Callable[..., None]:
    """A constructor that leaves its arguments, defaults included, in `_arguments`; that of the most derived class counts."""
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def recorded(self: Any, *args: Any, **options: Any) -> None:
        if "_arguments" not in self.__dict__:
            bound = signature.bind(self, *args, **options)
            bound.apply_defaults()
            found = dict(bound.arguments)
            found.pop(next(iter(signature.parameters)))
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    found.update(found.pop(name))
            self.__dict__["_arguments"] = {name: value for name, value in found.items() if name != "generator"}
        construct(self, *args, **options)

    return recorded


class FVSBN(Family):
    r"""Fully visible sigmoid belief network: each variable is a (multinomial) logistic regression on those before it.

    Binary variables: n(n+1)/2 parameters and `log_prob` in one masked product.

    Source:
        Frey, Hinton, Dayan (1996), *Does the wake-sleep algorithm produce good density estimators?*, NIPS 8.

    Example:
        >>> FVSBN(784).num_parameters
        307720
    """

    def __init__(self, event_shape: int | Sequence[int], output: Output | None = None, context_dim: int = 0,
                 order: Tensor | Sequence[int] | str | None = None, *, generator: Generator | None = None) -> None:
        self._make(LinearNet, event_shape, output, context_dim, order, generator)

    @classmethod
    def count_parameters(cls, event_shape: int | Sequence[int], output: Output | None = None,
                         context_dim: int = 0) -> int:
        """Free parameters of such a family, allocating nothing."""
        return LinearNet.count(event_shape, output or Bernoulli(), context_dim)


class NADE(Family):
    r"""Neural autoregressive density estimator: one hidden layer, shared by all conditionals.

    Args:
        event_shape: An int or a tuple.
        hidden: Hidden units.
        output: `Bernoulli()` unless given.
        context_dim: Width of the context, 0 for none.
        order: None (raster scan), a permutation of the flattened event, or 'random'.
        activation: 'sigmoid' or 'relu'.
        generator: For a random order.

    Source:
        Larochelle, Murray (2011), *The neural autoregressive distribution estimator*, AISTATS.

    Example:
        >>> nade = NADE(event_shape=784, hidden=500)
        >>> nade.num_parameters
        784784
    """

    def __init__(self, event_shape: int | Sequence[int], hidden: int = 100, output: Output | None = None,
                 context_dim: int = 0, order: Tensor | Sequence[int] | str | None = None, *,
                 activation: str = "sigmoid", generator: Generator | None = None) -> None:
        self._make(NADENet, event_shape, output, context_dim, order, generator, hidden=hidden, activation=activation)

    @classmethod
    def count_parameters(cls, event_shape: int | Sequence[int], hidden: int = 100, output: Output | None = None,
                         context_dim: int = 0) -> int:
        """Free parameters of such a family, allocating nothing."""
        return NADENet.count(event_shape, output or Bernoulli(), context_dim, hidden=hidden)


class MADE(Family):
    r"""Masked autoencoder for distribution estimation: a feed-forward net of any depth, one pass for all conditionals.

    Args:
        event_shape: An int or a tuple.
        hidden: Hidden units of each layer.
        output: `Bernoulli()` unless given.
        context_dim: Width of the context, 0 for none.
        order: None (raster scan), a permutation of the flattened event, or 'random'.
        activation: 'relu', 'sigmoid' or 'tanh'.
        generator: For a random order.

    Source:
        Germain, Gregor, Murray, Larochelle (2015), *MADE: masked autoencoder for distribution estimation*, ICML.

    Example:
        >>> MADE(event_shape=(1, 4, 4), hidden=(32, 32))().event_shape
        torch.Size([1, 4, 4])
    """

    def __init__(self, event_shape: int | Sequence[int], hidden: Sequence[int] | int = (100,),
                 output: Output | None = None, context_dim: int = 0,
                 order: Tensor | Sequence[int] | str | None = None, *, activation: str = "relu",
                 generator: Generator | None = None) -> None:
        self._make(MADENet, event_shape, output, context_dim, order, generator, hidden=hidden, activation=activation)

    @classmethod
    def count_parameters(cls, event_shape: int | Sequence[int], hidden: Sequence[int] | int = (100,),
                         output: Output | None = None, context_dim: int = 0) -> int:
        """Free parameters of such a family: wires that do not exist are not counted, and no weights are allocated."""
        return MADENet.count(event_shape, output or Bernoulli(), context_dim, hidden=hidden)


class OrderlessNADE(Family):
    r"""Order-agnostic NADE: one net that answers in any order, a joint for each order.

    Its joints are not `coherent`: `marginal` and `given` are exact for the chain that puts the visible variables
    first, row by row, in one pass. Train it on random orders: `family(context, order=par.order.random_orders(len(x), n))`.

    Args:
        event_shape: An int or a tuple.
        hidden: Hidden units.
        output: `Bernoulli()` unless given.
        context_dim: Width of the context, 0 for none.
        order: Order of `log_prob` where none is asked for: None (raster scan), a permutation, or 'random'.
        activation: 'sigmoid' or 'relu'.
        generator: For a random order.

    Source:
        Uria, Murray, Larochelle (2014), *A deep and tractable density estimator*, ICML.

    Example:
        >>> joint = OrderlessNADE(event_shape=16, hidden=8)()
        >>> joint.marginal(torch.rand(5, 16) < 0.5).log_prob(torch.zeros(16)).shape
        torch.Size([5])
    """

    def __init__(self, event_shape: int | Sequence[int], hidden: int = 100, output: Output | None = None,
                 context_dim: int = 0, order: Tensor | Sequence[int] | str | None = None, *,
                 activation: str = "sigmoid", generator: Generator | None = None) -> None:
        self._make(OrderlessNADENet, event_shape, output, context_dim, order, generator, hidden=hidden, activation=activation)

    def training_log_prob(self, x: Tensor, context: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        r"""In training an unbiased estimate of log p(x_visible | context) averaged over all orders, `(N,)`, in nats.

        Of the m visible variables of a row, d < m drawn ones are shown, and the others scored at once,
        times m / (m - d): one matrix product, where the chain takes n steps. In evaluation
        (`family.eval()`), the chain in an order drawn for each row.

        Source:
            Uria, Murray, Larochelle (2014), *A deep and tractable density estimator*, ICML, eq. 11.
        """
        if not self.training:
            return super().training_log_prob(x, context, visible)
        joint = self(context)  # checks context and weights
        seen = torch.ones_like(x, dtype=torch.bool) if visible is None else visible
        x = joint._check_value(x, seen).to(joint.dtype)
        context = joint.context
        many = seen.flatten(1).sum(-1, keepdim=True)
        shown = (torch.rand(many.shape, device=x.device) * many).floor()
        places = torch.rand(len(x), x[0].numel(), device=x.device).masked_fill(~seen.flatten(1), 2.0).argsort(-1).argsort(-1)
        known, x = places < shown, x.flatten(1)
        net: Any = self.net
        log_p = self.output.log_prob(net.given_known(x, known, context), x)
        scale = (many / (many - shown).clamp(min=1)).squeeze(-1)
        return torch.where(seen.flatten(1) & ~known, log_p, 0.0).sum(-1) * scale

    @classmethod
    def count_parameters(cls, event_shape: int | Sequence[int], hidden: int = 100, output: Output | None = None,
                         context_dim: int = 0) -> int:
        """Free parameters of such a family, allocating nothing."""
        return OrderlessNADENet.count(event_shape, output or Bernoulli(), context_dim, hidden=hidden)


class OverOrders(nn.Module):
    r"""An any-order family as the equal mixture of its joints in several orders, again something to call for a joint.

    The average over orders is a better density than most single ones, and hidden cells are answered by the mixture
    of the visible-first chains of all the orders.

    Args:
        family: An any-order family; its weights are shared by all components.
        num_orders: How many, drawn uniformly.
        generator: For the orders.

    Raises:
        ValueError: The family has one fixed order, or `num_orders` is not positive.

    Source:
        Uria, Murray, Larochelle (2014), *A deep and tractable density estimator*, ICML, section 3.2 (EoNADE).

    Example:
        >>> OverOrders(OrderlessNADE(event_shape=16, hidden=8), 4)().component_log_joint(torch.zeros(16)).shape
        torch.Size([4])
    """

    orders: Tensor

    def __init__(self, family: Family, num_orders: int, *, generator: Generator | None = None) -> None:
        super().__init__()
        require(isinstance(family, Family) and family.any_order,
                "a mixture over orders wants an any-order family", type(family).__name__)
        require(isinstance(num_orders, int) and num_orders >= 1, "num_orders must be 1 or more", num_orders)
        self.family = family
        orders = random_orders(num_orders, math.prod(family.event_shape), generator=generator)
        self.register_buffer("orders", orders)

    def forward(self, context: Tensor | None = None) -> Mixture:
        """The mixture of the present weights, of the batch shape of the context."""
        joint = self.family(None if context is None else context.unsqueeze(-2), self.orders)
        return Averaged(torch.zeros(len(self.orders), dtype=joint.dtype, device=joint.device), joint)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the constructor, by name."""
        return {"family": self.family, "num_orders": len(self.orders)}

    def __repr__(self) -> str:
        return one_line(type(self).__name__, counted(len(self.orders), "order"), f"of {self.family!r}")

    def condition(self, context: Tensor) -> Mixture:
        """The same as calling it."""
        return self(context)

    def training_log_prob(self, x: Tensor, context: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """That of the family: all its orders are trained."""
        return self.family.training_log_prob(x, context, visible)

    @property
    def event_shape(self) -> torch.Size:
        return self.family.event_shape

    @property
    def context_dim(self) -> int:
        return self.family.context_dim

    @property
    def num_parameters(self) -> int:
        """Those of the family: its orders share them."""
        return self.family.num_parameters
