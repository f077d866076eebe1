r"""Files of trained families: numbers as safetensors, the rest as JSON. Loading one runs no code of the file's.

A thing is written as the arguments of its constructor and its tensors, and read by calling that constructor again, so that what a file
says is checked as any other arguments are.
"""

import dataclasses
import json
import os

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torch import Tensor

from pyro_ar import outputs
from pyro_ar.checks import require
from pyro_ar.neural.family import Family
from pyro_ar.neural.over_orders import OverOrders
from pyro_ar.neural.registry import FAMILIES
from pyro_ar.outputs import Output

__all__ = ["load", "save"]

FORMAT = "pyro_ar-2"


def save(model: Family | OverOrders, path: str | os.PathLike[str]) -> None:
    """Write arguments, weights and buffers to one safetensors file, at once or not at all.

    It covers every family of the library, families of your own that derive from `Family` with a constructor that can be called with numbers,
    words, tensors and outputs (pass your class to `load`), and `OverOrders`. Not covered: a plain `Family` around a net, which does
    not say how the net was made, and the state of an optimiser (see `folder` of `par.fit`).

    Raises:
        ValueError: Some weight is NaN, the arguments are not of these kinds, or there is no such folder.
    """
    from safetensors.torch import save as to_bytes

    require(not Path(path).is_dir() and Path(path).absolute().parent.is_dir(), "save wants the path of a file in a folder that exists", str(path))
    written = _Writer()
    head = written.of(model, "model")
    for name, t in written.tensors.items():
        require(not t.is_floating_point() or not bool(t.isnan().any()), f"{name} holds NaN; it will not be saved", t)
    target = Path(path)
    part = target.with_name(target.name + ".part")
    part.write_bytes(to_bytes(written.tensors, {"format": FORMAT, "pyro_ar": json.dumps(head)}))
    os.replace(part, target)


def load(path: str | os.PathLike[str], known: Mapping[str, type] | None = None) -> Any:
    """Read what `save` wrote. Nothing in the file is executed.

    Args:
        path: The file.
        known: Families and outputs of your own by class name, besides those of this library.

    Raises:
        ValueError: Not such a file, torn, of another version, of an unknown class, or tensors that do not fit the arguments.
    """
    from safetensors import SafetensorError, safe_open

    require(Path(path).is_file(), "load wants a file written by save", str(path))
    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or is torn: {error}") from None
    require(about.get("format") != "pyro_ar-1", f"{path} was written by an earlier pyro_ar, which lost some options of a family; train and save it again")
    require(about.get("format") == FORMAT, f"{path} was not written by pyro_ar.save (format {FORMAT})", about.get("format"))
    try:
        head = json.loads(about["pyro_ar"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} has no readable configuration") from None
    try:
        return _Reader(tensors, known or {}).of(head)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path}: the configuration and the tensors do not fit: {error}") from None


class _Writer:
    """Values as JSON; their tensors are kept aside by name."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def of(self, value: Any, name: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            self.tensors[name] = value.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"dict": {str(k): self.of(v, f"{name}.{k}") for k, v in value.items()}}
        if isinstance(value, list | tuple | range):
            return {"tuple": [self.of(v, f"{name}.{i}") for i, v in enumerate(value)]}
        if isinstance(value, Output) and dataclasses.is_dataclass(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
            return {"class": type(value).__name__, "arguments": self.of(fields, name)}
        if isinstance(value, Family | OverOrders):
            return self._module(value, name)
        require(False, f"save does not know how to write {name}; see its documentation for what it covers", type(value).__name__)
        return None

    def _module(self, model: Family | OverOrders, name: str) -> dict[str, Any]:
        arguments = model.arguments
        require(bool(arguments), "save wants a family whose constructor says how it was made; derive a class of your own from Family", type(model).__name__)
        if isinstance(model, Family) and "order" in arguments:  # 'random' was drawn once
            arguments["order"] = None if model.order is None else model.order.tolist()
        state = {key: self.of(t, f"{name}.state.{key}") for key, t in model.state_dict().items()}
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        return {"class": type(model).__name__, "arguments": self.of(arguments, f"{name}.arguments"), "state": state, "dtype": dtype}


class _Reader:
    """The way back, through constructors of known classes only."""

    def __init__(self, tensors: Mapping[str, Tensor], known: Mapping[str, type]) -> None:
        families = {entry.family.__name__: entry.family for entry in FAMILIES.values()}
        found: dict[str, type] = {name: getattr(outputs, name) for name in outputs.__all__}
        self.tensors, self.classes = tensors, {**found, **families, "OverOrders": OverOrders, **known}

    def of(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "tensor" in value:
            return self.tensors[value["tensor"]]
        if "dict" in value:
            return {k: self.of(v) for k, v in value["dict"].items()}
        if "tuple" in value:
            return tuple(self.of(v) for v in value["tuple"])
        kind = self.classes.get(value["class"])
        usable = isinstance(kind, type) and issubclass(kind, Family | OverOrders | Output)
        require(usable, "the file holds an unknown class; give it as `known`", value["class"])
        made: Any = kind(**self.of(value["arguments"]))  # type: ignore[misc]
        if "state" in value:
            made = made.to(getattr(torch, value["dtype"]))
            made.load_state_dict({key: self.of(t) for key, t in value["state"].items()})
        return made
