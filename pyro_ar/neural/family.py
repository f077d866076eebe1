r"""Families: modules that own weights, and give a joint when they are called."""

import inspect
import math

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, ClassVar

import torch

from torch import Generator, Tensor, nn

from pyro_ar.arrays import Array
from pyro_ar.checks import counted, one_line, require
from pyro_ar.neural.autoregressive import Autoregressive
from pyro_ar.neural.draws import skeleton
from pyro_ar.neural.net import Net, as_event_shape
from pyro_ar.order import make_order, random_orders
from pyro_ar.outputs import Bernoulli, Output
from pyro_ar.recorded import Recorded

__all__ = ["Family"]


class Family(Recorded, nn.Module, record=False):
    r"""A module around a net; calling it reads the net's weights, buffers and mode, and binds them in an `Autoregressive`.

    Priors on the weights work as in any Pyro module: `pyro.nn.module.to_pyro_module_(family)`, then set
    entries of `family.net` to `PyroSample`. Weights are read once per call, so a draw is recorded once, and drawn
    weights with extra left dimensions are batch dimensions.

    A family of your own derives from this class and passes `net`, `output` and `order` on. The arguments of its own constructor are recorded
    as `arguments`, which is what `par.save` writes.

    Args:
        net: A `Net`. A class of families names its kind of net as `net_type`.
        output: The output that the net was made for; entry i of a `PerVariable` answers for position i of the flattened event.
        order: None (raster scan, or the net's own order), a permutation of the flattened event, or 'random'.
        generator: For a random order.

    Raises:
        ValueError: No net, or an order that is no permutation of the variables.

    Example:
        >>> from pyro_ar.neural import FVSBN
        >>> family = FVSBN(event_shape=(2, 2), context_dim=3)
        >>> family(torch.eye(3)).batch_shape
        torch.Size([3])
    """

    net_type: ClassVar[type[Net]]
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

    def features(self, x: Array, context: Tensor | None = None) -> Tensor:
        """A representation of complete rows, for other models to read: what the net holds of them, `(N, features)`, differentiable.

        ====================================  ====================================================================================
        `NADE`, `OrderlessNADE`               the (last) hidden layer when every variable has been read
        `MADE`                                the last hidden layer; of several masks under each
        `RecurrentAR`                         the mean over variables of the last layer's state
        `CausalTransformer`,                  the mean over variables of the stream in the middle of the blocks
        `AnyOrderTransformer`
        `WaveNet`                             the mean over variables of the skips
        `PixelCNN`, `RowLSTM`,                what the head reads, averaged within the fields of a 4 x 4 grid
        `DiagonalBiLSTM`
        `FVSBN`, `PerDimensionMLP`, others    the raw parameters of all conditionals
        ====================================  ====================================================================================

        Nets with one order never read the last variable, but for `NADE`. The mode of the net is the present one: call `eval()` where it drops out.

        Args:
            x: `(N, *event)`.
            context: `(N, context_dim)` or `(context_dim,)`.

        Raises:
            ValueError: Values that are not in the support, or hidden.

        Example:
            >>> from pyro_ar.neural import NADE
            >>> NADE(6, hidden=4).features(torch.zeros(5, 6)).shape
            torch.Size([5, 4])
        """
        return self(context).features(x)

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

    @classmethod
    def count_parameters(cls, *args: Any, **options: Any) -> int:
        """Free parameters of a family made with the same arguments, allocating nothing.

        Raises:
            NotImplementedError: The class does not say which net it makes.
        """
        if not hasattr(cls, "net_type"):
            raise NotImplementedError(f"{cls.__name__} counts its parameters once it is made: see num_parameters")
        bound = inspect.signature(cls.__init__).bind(None, *args, **options)
        bound.apply_defaults()
        asked = {**bound.arguments, "output": bound.arguments["output"] or Bernoulli()}
        own = cls.net_type.order_of(as_event_shape(asked["event_shape"]))
        if own is not None:
            asked["output"] = asked["output"].in_order(own.tolist())
        return cls.net_type.count(**cls.options_of_net(asked))

    @classmethod
    def options_of_net(cls, asked: dict[str, Any]) -> dict[str, Any]:
        """What the net is made with, of the arguments of the family's constructor."""
        return {name: value for name, value in asked.items() if name not in ("self", "order", "generator")}

    def _make(self, event_shape: int | Sequence[int], output: Output | None, context_dim: int,
              order: Tensor | Sequence[int] | str | None, generator: Generator | None, **options: Any) -> None:
        """Construct the family of a net of `net_type`; the outputs of a chain's variables stand in its order."""
        net = self.net_type
        output = Bernoulli() if output is None else output
        n = math.prod(as_event_shape(event_shape))
        made = None if order is None else make_order(order, n, generator)
        if net.layout == "event":
            own = net.order_of(as_event_shape(event_shape))
            require(made is None or torch.equal(made, make_order(own, n)), f"{type(self).__name__} takes no order but its own", order)
            made = own
        along = output if made is None or net.any_order or not isinstance(output, Output) else output.in_order(made.tolist())
        Family.__init__(self, net(event_shape, along, context_dim, **options), output, order=made)
