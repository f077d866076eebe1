"""All families by name: what reads files, counts parameters, fits line-ups and tests them asks here, so that a family joins by one entry."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyro_ar.neural.any_order_transformer import AnyOrderTransformer
from pyro_ar.neural.causal_transformer import CausalTransformer
from pyro_ar.neural.family import Family
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.neural.made import MADE
from pyro_ar.neural.mixture_chain import MixtureChain
from pyro_ar.neural.nade import NADE
from pyro_ar.neural.orderless_nade import OrderlessNADE
from pyro_ar.neural.per_dimension_mlp import PerDimensionMLP
from pyro_ar.neural.pixel_cnn import PixelCNN
from pyro_ar.neural.pixel_rnn import DiagonalBiLSTM, RowLSTM
from pyro_ar.neural.recurrent_ar import RecurrentAR
from pyro_ar.neural.wavenet import WaveNet
from pyro_ar.outputs import DiscretisedLogisticMixture

__all__ = ["FAMILIES", "Registered", "Trained"]

LINEAR = {"linear": {"channels": "linear", "output": DiscretisedLogisticMixture(2, 2)}}
UNITS = 500  # of the families in a table of parameter counts


@dataclass(frozen=True)
class Trained:
    """How a line-up makes and trains a family.

    Attributes:
        options: Arguments of its constructor besides event shape, output, context and order.
        fit: Arguments of `par.fit`.
        name: In the line-up; None: that of the registry.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None


@dataclass(frozen=True)
class Registered:
    """A family.

    Attributes:
        family: The class.
        small: Options of a small one, for tests.
        variants: Other options of small ones, for tests, by a word that tells them apart.
        free: It takes any event shape, output and context; otherwise the tests make theirs by hand.
        counted: Options of the one whose parameters `pyro-ar parameters` counts; None: it is left out.
        formula: Of the count, for two states and for K.
        remark: Behind its name there.
        most_counted: n (K - 1) beyond which counting takes too much memory.
        compared: In `pyro-ar compare`; None: it is left out.
        classifies: In `pyro-ar occlusion`, with the class as context; None: it is left out.
        shown: In `pyro-ar families`; None: it is left out.
        images: It takes images only, `(channels, height, width)`.
    """

    family: type[Family]
    small: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    free: bool = True
    counted: Mapping[str, Any] | None = None
    formula: tuple[str, str] = ("", "")
    remark: str = ""
    most_counted: float = float("inf")
    compared: Trained | None = None
    classifies: Trained | None = None
    shown: Trained | None = None
    images: bool = False


FAMILIES: dict[str, Registered] = {
    "FVSBN": Registered(
        FVSBN, counted={}, formula=("n (n+1)/2", "n (K-1) + (K-1)^2 n (n-1)/2"), remark=" (linear logits)", compared=Trained(fit={"lr": 1e-2}),
        classifies=Trained(fit={"epochs": 40, "batch_size": 128, "lr": 3e-2}), shown=Trained(fit={"lr": 1e-2})),
    "NADE": Registered(
        NADE, {"hidden": 5}, {"relu": {"activation": "relu"}},
        counted={"hidden": UNITS}, formula=("2 n h + n", "((2n-1) h + n) (K-1) + h"), remark=f", h = {UNITS}",
        compared=Trained({"hidden": 64}, {"lr": 5e-3}),
        classifies=Trained({"hidden": 64}, {"epochs": 60, "batch_size": 256, "lr": 3e-2, "weight_decay": 0.3}),
        shown=Trained({"hidden": 100}, {"lr": 1e-2})),
    "MADE": Registered(
        MADE, {"hidden": (5, 4), "activation": "tanh"}, {"direct": {"hidden": (20, 3, 9), "direct": True}},
        counted={"hidden": UNITS}, formula=("about n h + n + h", "about (n h + n) (K-1) + h"),
        remark=f", h = {UNITS}", most_counted=10**7, shown=Trained({"hidden": (200,)})),
    "OrderlessNADE": Registered(
        OrderlessNADE, {"hidden": 5}, {"deep": {"hidden": (6, 3, 5), "activation": "relu"}},
        counted={"hidden": UNITS}, formula=("3 n h + n + h", "(2n h + n) (K-1) + (n+1) h"), remark=f", h = {UNITS}",
        compared=Trained({"hidden": 64}, {"lr": 5e-3}, "any-order NADE"),
        classifies=Trained({"hidden": 64}, {"epochs": 40, "batch_size": 64, "lr": 2e-2}), shown=Trained({"hidden": 100}, {"lr": 1e-2})),
    "PerDimensionMLP": Registered(
        PerDimensionMLP, {"hidden": 4}, {"deep": {"hidden": (4, 3, 5), "activation": "relu"}},
        counted={"hidden": 16}, formula=("h n (n-1)/2 + 2 n h + n", "h (K-1) n (n-1)/2 + n h + n (h+1) (K-1)"),
        remark=", h = 16", shown=Trained({"hidden": 8}, {"lr": 5e-3})),
    "RecurrentAR": Registered(
        RecurrentAR, {"hidden": 5}, {"lstm": {"hidden": 4, "cell": "lstm", "layers": 2, "width": 3}},
        shown=Trained({"hidden": 64}, {"epochs": 48, "lr": 5e-3})),
    "CausalTransformer": Registered(
        CausalTransformer, {"width": 4, "layers": 1, "heads": 2}, {"deep": {"width": 8, "layers": 2, "heads": 4, "key_heads": 2}},
        shown=Trained({"width": 32, "layers": 2}, {"epochs": 50, "lr": 5e-3})),
    "AnyOrderTransformer": Registered(
        AnyOrderTransformer, {"width": 4, "layers": 1, "heads": 2}, {"deep": {"width": 8, "layers": 2, "heads": 4, "key_heads": 2}},
        shown=Trained({"width": 32, "layers": 2}, {"epochs": 60, "lr": 5e-3})),
    "MixtureChain": Registered(MixtureChain, free=False),
    "PixelCNN": Registered(
        PixelCNN, {"hidden": 6, "blocks": 1, "kernel": 3}, LINEAR, free=False, images=True, shown=Trained({"hidden": 16, "blocks": 2, "places": True})),
    "gated PixelCNN": Registered(
        PixelCNN, {"hidden": 6, "blocks": 1, "kernel": 3, "gated": True}, LINEAR, free=False, images=True,
        shown=Trained({"hidden": 16, "blocks": 2, "gated": True, "places": True}, {"epochs": 48})),
    "RowLSTM": Registered(
        RowLSTM, {"hidden": 6, "layers": 1, "kernel": 3}, LINEAR, free=False, images=True,
        shown=Trained({"hidden": 16, "layers": 2, "places": True}, {"epochs": 30, "lr": 6e-3})),
    "DiagonalBiLSTM": Registered(
        DiagonalBiLSTM, {"hidden": 6, "layers": 1, "kernel": 3}, LINEAR, free=False, images=True,
        shown=Trained({"hidden": 16, "layers": 2, "places": True}, {"epochs": 30, "lr": 6e-3})),
    "WaveNet": Registered(WaveNet, {"hidden": 4, "skip": 5}, shown=Trained({"hidden": 16, "skip": 32}, {"epochs": 48})),
}
