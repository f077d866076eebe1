"""How things are taken apart, and made again: by the arguments of their constructors, and what came to them afterwards."""

import dataclasses
import inspect

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from pyro.nn import PyroModule
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from pyro_ar.checks import require
from pyro_ar.expandable import Expandable
from pyro_ar.joint import Joint
from pyro_ar.neural.draws import skeleton
from pyro_ar.neural.net import Net
from pyro_ar.recorded import arguments_read

__all__ = ["Kind", "kind_of"]

Parts = dict[str, Any]


class Kind(NamedTuple):
    """A way of taking things apart.

    Attributes:
        parts: From a thing to its parts, of which `arguments` are those of its constructor.
        make: From its class and its parts to the thing.
    """

    parts: Callable[[Any], Parts]
    make: Callable[[type, Parts], Any]


def kind_of(cls: type) -> Kind:
    """That of the first base in `KINDS`."""
    return next((kind for base, kind in KINDS.items() if issubclass(cls, base)), PLAIN)


# Things that are no more than their arguments: outputs, transforms, priors, records.


def _plain_parts(thing: Any) -> Parts:
    if hasattr(thing, "arguments"):
        return {"arguments": thing.arguments}
    if dataclasses.is_dataclass(thing):
        return {"arguments": {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing) if f.init}}
    return {"arguments": thing._asdict() if hasattr(thing, "_asdict") else arguments_read(thing)}


def _make_plain(cls: type, parts: Parts) -> Any:
    return cls(**parts["arguments"])


# Distributions: their arguments, and the batch shape that they were expanded to.


def _distribution_parts(thing: Expandable) -> Parts:
    if isinstance(thing, Joint):
        for name, t in thing.tensors.items():
            _require_numbers(name, t)
    later = {name: getattr(thing, name) for name in thing.set_later}
    return {"arguments": thing.arguments, "batch_shape": list(thing.batch_shape), "validate_args": bool(thing._validate_args), "later": later}


def _make_distribution(cls: Any, parts: Parts) -> Expandable:
    takes = "validate_args" in inspect.signature(cls.__init__).parameters
    made = cls(**parts["arguments"], **({"validate_args": parts["validate_args"]} if takes else {}))
    for name, value in parts["later"].items():
        require(name in cls.set_later, f"the file gives {cls.__name__} an attribute that it has not", name)
        setattr(made, name, value)
    batch = torch.Size(parts["batch_shape"])
    return made if made.batch_shape == batch else made.expand(batch)


# Modules: their arguments, weights and buffers, and the mode of each part.


def _module_parts(module: Any) -> Parts:
    own = not isinstance(module, PyroModule)
    require(own, "save wants a family with weights of its own, not with Pyro's random ones; see Posterior", type(module).__name__)
    found = getattr(module, "arguments", {})
    require(bool(found), "save wants a family whose constructor says how it was made; derive a class of your own from Family", type(module).__name__)
    buffers = dict(module.named_buffers(recurse=False))  # such as an order, drawn once where 'random' was asked for
    state = module.state_dict()
    for name, t in state.items():
        _require_numbers(name, t)
    floating = [t.dtype for t in state.values() if t.is_floating_point()]
    return {"arguments": {name: buffers.get(name, value) for name, value in found.items()}, "state": dict(state),
            "dtype": floating[0] if floating else torch.get_default_dtype(), "training": [part.training for part in module.modules()],
            "frozen": [name for name, p in module.named_parameters() if not p.requires_grad]}


def _make_module(cls: Any, parts: Parts) -> nn.Module:
    made = cls(**parts["arguments"]).to(parts["dtype"])
    own, state = made.state_dict(keep_vars=True), parts["state"]
    for name in own.keys() & state.keys():
        own[name].data = own[name].data.to(state[name].dtype)  # some may be of another dtype than the rest
    made.load_state_dict(state)
    for name, p in made.named_parameters():
        p.requires_grad_(name not in parts["frozen"])
    return _in_mode(made, parts["training"])


def _in_mode(module: Any, training: list[bool]) -> Any:
    for part, mode in zip(module.modules(), training, strict=True):
        part.training = mode
    return module


# Nets of bound families: structure alone, since weights and buffers belong to the joint.


def _net_parts(net: Net) -> Parts:
    return {"arguments": net.arguments, "training": [part.training for part in net.modules()]}


def _make_net(cls: Any, parts: Parts) -> Net:
    return skeleton(_in_mode(cls(**parts["arguments"]), parts["training"]))


# Estimators of scikit-learn: their parameters, and what `fit` left.


def _estimator_parts(estimator: BaseEstimator) -> Parts:
    arguments = estimator.get_params(deep=False)
    return {"arguments": arguments, "learnt": {name: value for name, value in vars(estimator).items() if name not in arguments}}


def _make_estimator(cls: type, parts: Parts) -> Any:
    made = cls(**parts["arguments"])
    for name, value in parts["learnt"].items():
        require(isinstance(name, str) and not hasattr(cls, name), f"the file gives {cls.__name__} an attribute that no fit leaves", name)
        setattr(made, name, value)
    return made


PLAIN = Kind(_plain_parts, _make_plain)
KINDS: Mapping[type, Kind] = {
    Net: Kind(_net_parts, _make_net),
    nn.Module: Kind(_module_parts, _make_module),
    Expandable: Kind(_distribution_parts, _make_distribution),
    BaseEstimator: Kind(_estimator_parts, _make_estimator),
}


def _require_numbers(name: str, t: Tensor) -> None:
    require(not t.is_floating_point() or not bool(t.isnan().any()), f"{name} holds NaN; it will not be saved", t)
