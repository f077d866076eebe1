"""What a thing was made with: the arguments of its constructor, recorded as it is called, or read from attributes of the same names."""

import functools
import inspect

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["Recorded", "arguments_read"]

NEVER = ("self", "validate_args", "generator", "cache_size")  # how a thing is made, not what it is


class Recorded:
    """A base of modules whose constructors leave their arguments, defaults included, in `arguments`.

    That of the most derived class counts. A `generator` has done its work and is left out; a tensor that became a buffer of the
    same name is read from there, so that nothing is held twice.

    Example:
        >>> from torch import nn
        >>> class Scaled(Recorded, nn.Module):
        ...     def __init__(self, size, by=1.0):
        ...         super().__init__()
        >>> Scaled(3).arguments
        {'size': 3, 'by': 1.0}
    """

    def __init_subclass__(cls, *, record: bool = True, **options: Any) -> None:
        """Let the constructor record its arguments; not where `record` is False."""
        super().__init_subclass__(**options)
        if record and "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the constructor, by name; none where the class does not record them."""
        return {name: getattr(self, name) if value is _Buffer else value for name, value in self.__dict__.get("_arguments", {}).items()}


class _Buffer:
    """Stands for a tensor that is a buffer by now."""


def _recording(construct: Callable[..., None]) -> Callable[..., None]:
    """A constructor that leaves its arguments in `_arguments`."""
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def recorded(self: Any, *args: Any, **options: Any) -> None:
        outermost = "_arguments" not in self.__dict__
        if outermost:
            bound = signature.bind(self, *args, **options)
            bound.apply_defaults()
            found = dict(bound.arguments)
            found.pop(next(iter(signature.parameters)))
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    found.update(found.pop(name))
            self.__dict__["_arguments"] = {name: value for name, value in found.items() if name not in NEVER}
        construct(self, *args, **options)
        if outermost:
            kept, held = self.__dict__["_arguments"], self.__dict__.get("_buffers", {})
            kept.update({name: _Buffer for name, value in kept.items() if isinstance(value, Tensor) and isinstance(held.get(name), Tensor)})

    return recorded


def arguments_read(thing: Any) -> dict[str, Any]:
    """The arguments of the constructor, from attributes of the same names.

    Raises:
        AttributeError: Some argument is no attribute.
    """
    return {name: getattr(thing, name) for name in inspect.signature(type(thing).__init__).parameters if name not in NEVER}
