"""Values as JSON beside named tensors, and back."""

import hashlib

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from torch import Size, Tensor

from pyro_ar.checks import require
from pyro_ar.files.classes import CLASSES, FOREIGN, name_of
from pyro_ar.files.kinds import kind_of
from pyro_ar.neural.net import Net

__all__ = ["Reader", "Writer"]

DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
ARRAYS = "biufSU"  # kinds of numpy arrays that are bytes and no objects


class Writer:
    """Values as JSON; tensors are kept aside by name, equal ones once. What occurs twice comes back as one thing."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._stored: dict[Any, str] = {}
        self._things: dict[int, tuple[int, Any]] = {}  # the thing too, lest its id be used again

    def whole(self, model: Any) -> dict[str, Any]:
        """All of a model."""
        require(not isinstance(model, Net), "a net is saved with its family, or with a joint of it", type(model).__name__)
        head = self.of(model, "model")
        require(isinstance(head, dict) and "class" in head, "save wants a family, a joint, a classifier or a posterior", model)
        return head

    def of(self, value: Any, name: str) -> Any:
        """A value as JSON, its tensors under names that begin with this one."""
        if isinstance(value, np.ndarray | np.generic):
            return self._array(value, name)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return self._tensor(value.detach(), name)
        if isinstance(value, torch.dtype):
            return {"dtype": str(value)}
        if isinstance(value, Mapping):
            return {"dict": [[self.of(key, name), self.of(part, f"{name}.{key}")] for key, part in value.items()]}
        if type(value) in (list, tuple, Size, range):
            return {"list" if isinstance(value, list) else "tuple": [self.of(part, f"{name}.{i}") for i, part in enumerate(value)]}
        if isinstance(value, type):
            return {"type": name_of(value, name)}
        return self._thing(value, name)

    def _thing(self, thing: Any, name: str) -> dict[str, Any]:
        if id(thing) in self._things:
            return {"same": self._things[id(thing)][0]}
        cls = name_of(type(thing), name)
        number = len(self._things)
        self._things[id(thing)] = number, thing
        try:
            if cls in FOREIGN:
                parts = {"arguments": {argument: getattr(thing, attribute) for argument, attribute in FOREIGN[cls][1].items()}}
            else:
                parts = kind_of(type(thing)).parts(thing)
        except AttributeError as error:
            require(False, f"save wants {name} to hold the arguments of its constructor as attributes of the same names, or to give them as "
                    "`arguments`", str(error))
        return {"class": cls, "number": number, "parts": {part: self.of(value, f"{name}.{part}") for part, value in parts.items()}}

    def _tensor(self, t: Tensor, name: str) -> dict[str, Any]:
        """By its numbers, and how they lay in memory: products of matrices that lie otherwise may round otherwise."""
        require(str(t.dtype) in DTYPES and not t.is_complex() and not t.is_sparse, f"save wants dense real tensors in {name}", t)
        expanded = [d for d in range(t.ndim) if t.stride(d) == 0 and t.shape[d] > 1]
        whole, t = t, t[tuple(slice(0, 1) if d in expanded else slice(None) for d in range(t.ndim))]
        strides: tuple[int, ...] = t.stride()
        order = sorted(range(t.ndim), key=lambda d: -strides[d])
        stored = t.permute(order).cpu().contiguous()
        key = stored.dtype, stored.shape, hashlib.blake2b(stored.reshape(-1).view(torch.uint8).numpy().tobytes()).digest()
        if key not in self._stored:
            name = name if name not in self.tensors else f"{name}#{len(self.tensors)}"
            self._stored[key], self.tensors[name] = name, stored.clone()
        entry = {"tensor": self._stored[key], "of": str(t.dtype), "stored": list(stored.shape)}
        entry |= {"order": order} if order != list(range(t.ndim)) else {}
        return entry | ({"shape": list(whole.shape)} if expanded else {})

    def _array(self, value: np.ndarray | np.generic, name: str) -> dict[str, Any]:
        array = np.asarray(value)
        if array.dtype.kind == "O":
            return {"objects": [self.of(part, name) for part in array.ravel().tolist()], "shape": list(array.shape)}
        require(array.dtype.kind in ARRAYS, f"save does not know how to write {name}", str(array.dtype))
        across = array.flags.f_contiguous and not array.flags.c_contiguous
        data = torch.from_numpy(np.frombuffer((array.T if across else array).tobytes(), np.uint8).copy())
        return {"array": array.dtype.str, "data": self._tensor(data, name), "shape": list(array.shape), "across": across,
                "scalar": isinstance(value, np.generic)}


class Reader:
    """The way back, through constructors of known classes only."""

    def __init__(self, tensors: Mapping[str, Tensor], known: Mapping[str, type]) -> None:
        self.tensors, self.classes = tensors, {**CLASSES, **known}
        self._things: dict[int, Any] = {}

    def whole(self, head: Any) -> Any:
        """A model from what `Writer.whole` gave."""
        require(isinstance(head, dict) and "class" in head, "the file holds no model")
        return self.of(head)

    def of(self, value: Any) -> Any:
        """A value from JSON."""
        if not isinstance(value, dict):
            require(not isinstance(value, list), "the file holds a list without its kind")
            return value
        found = [kind for kind in READ if kind in value]
        require(len(found) == 1, "the file holds a value of unknown kind", sorted(value))
        return READ[found[0]](self, value)

    def _thing(self, value: dict[str, Any]) -> Any:
        cls = self._class(value["class"])
        parts = {part: self.of(held) for part, held in value["parts"].items()}
        made = self._things[value["number"]] = cls(**parts["arguments"]) if value["class"] in FOREIGN else kind_of(cls).make(cls, parts)
        return made

    def _class(self, name: Any) -> Any:
        cls = self.classes.get(name)
        require(isinstance(cls, type), "the file holds an unknown class; give it as `known`", name)
        return cls

    def _tensor(self, value: dict[str, Any]) -> Tensor:
        t = self.tensors[value["tensor"]]
        fits = list(t.shape) == value["stored"] and str(t.dtype) == value["of"]
        require(fits, f"tensor {value['tensor']} must be {value['of']} of shape {value['stored']}", t)
        t = t.clone()
        if "order" in value:
            back = sorted(range(t.ndim), key=value["order"].__getitem__)
            t = t.permute(back)
        return t.expand(value["shape"]) if "shape" in value else t

    def _array(self, value: dict[str, Any]) -> Any:
        dtype, shape = np.dtype(value["array"]), tuple(value["shape"])
        require(dtype.kind in ARRAYS, "the file holds an array of objects", str(dtype))
        flat = np.frombuffer(self._tensor(value["data"]).numpy().tobytes(), dtype).copy()
        array = flat.reshape(shape[::-1]).T if value["across"] else flat.reshape(shape)
        return array[()] if value["scalar"] else array

    def _objects(self, value: dict[str, Any]) -> np.ndarray:
        array = np.empty(len(value["objects"]), dtype=object)
        array[:] = [self.of(part) for part in value["objects"]]
        return array.reshape(value["shape"])


READ: dict[str, Any] = {
    "class": Reader._thing,
    "same": lambda reader, value: reader._things[value["same"]],
    "tensor": Reader._tensor,
    "array": Reader._array,
    "objects": Reader._objects,
    "dtype": lambda reader, value: DTYPES[value["dtype"]],
    "dict": lambda reader, value: {reader.of(key): reader.of(part) for key, part in value["dict"]},
    "list": lambda reader, value: [reader.of(part) for part in value["list"]],
    "tuple": lambda reader, value: tuple(reader.of(part) for part in value["tuple"]),
    "type": lambda reader, value: reader._class(value["type"]),
}
