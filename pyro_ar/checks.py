"""One way to refuse: errors that say what was wanted and what came."""

from collections.abc import Iterable, Sequence

import torch

from torch import Size, Tensor

__all__ = ["EntryError", "IntractableError", "broadcast", "counted", "one_line", "require", "require_exact_states"]


class IntractableError(RuntimeError):
    """The joint has no exact answer to this question; the message names what would work."""


class EntryError(ValueError):
    """Wrong data of some entries of a batch.

    Attributes:
        entries: Their positions, one index for each batch dimension.
    """

    def __init__(self, message: str = "", entries: Iterable[tuple[int, ...]] = ()) -> None:
        super().__init__(message)
        self.entries = list(entries)


def require(ok: bool, wanted: str, *came: object) -> None:
    """Raise `ValueError` unless `ok`, saying what was wanted and what came.

    Args:
        ok: The condition.
        wanted: What was wanted, as a sentence without a full stop.
        came: What came; tensors are reported by their shape.

    Raises:
        ValueError: The condition does not hold.

    Example:
        >>> require(2 > 3, "the first must exceed the second", 2, 3)
        Traceback (most recent call last):
            ...
        ValueError: the first must exceed the second; got 2, 3
    """
    if not ok:
        got = ", ".join(describe(value) for value in came)
        raise ValueError(f"{wanted}; got {got}" if came else wanted)


def broadcast(wanted: str, *shapes: Sequence[int], came: Sequence[object] | None = None) -> Size:
    """The broadcast of all shapes.

    Args:
        wanted: What was wanted, as for `require`.
        shapes: Any number.
        came: What to say came; None: the shapes.

    Raises:
        ValueError: They do not broadcast.

    Example:
        >>> broadcast("rows and weights must broadcast", (2, 1), (3,))
        torch.Size([2, 3])
        >>> broadcast("rows and weights must broadcast", (2,), (3,))
        Traceback (most recent call last):
            ...
        ValueError: rows and weights must broadcast; got (2,), (3,)
    """
    try:
        return torch.broadcast_shapes(*(tuple(shape) for shape in shapes))
    except RuntimeError:
        got = [tuple(shape) for shape in shapes] if came is None else came
        raise ValueError(f"{wanted}; got {', '.join(describe(value) for value in got)}") from None


def one_line(name: str, *parts: str, most: int = 150) -> str:
    """`name(part, part, ...)` for a `repr`: empty parts left out, and cut where it is longer than a line.

    Example:
        >>> one_line("Chain", "3 variables", "", "order 2")
        'Chain(3 variables, order 2)'
    """
    text = ", ".join(" ".join(part.split()) for part in parts if part)
    room = most - len(name) - 2
    return f"{name}({text if len(text) <= room else text[:room - 3] + '...'})"


def counted(count: int, what: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "variable"), counted(1234, "edge"), counted(2**100, "parameter")
        ('1 variable', '1,234 edges', '1.27e+30 parameters')
    """
    number = f"{count:,}" if count < 10**15 else f"{count:.3g}" if count < 10**300 else f"2^{count.bit_length() - 1} or more"
    return f"{number} {what}{'' if count == 1 else 's'}"


def require_exact_states(num_states: int | None, dtype: torch.dtype, who: str) -> None:
    """Raise `ValueError` where rounding to `dtype` would turn one of the states 0 to `num_states` - 1 into another (None: no states).

    Example:
        >>> require_exact_states(300, torch.bfloat16, "FullTable")
        Traceback (most recent call last):
            ...
        ValueError: FullTable wants a dtype that holds its states 0 to 299 exactly; got bfloat16, which rounds whole numbers above 256
    """
    if num_states is None or num_states <= 256 or not dtype.is_floating_point:  # all floating dtypes of 16 bits or more hold these
        return
    most = int(2 / torch.finfo(dtype).eps)
    if num_states - 1 > most:
        raise ValueError(f"{who} wants a dtype that holds its states 0 to {num_states - 1} exactly; got "
                         f"{str(dtype).removeprefix('torch.')}, which rounds whole numbers above {most}")


def describe(value: object) -> str:
    """A tensor by its shape and dtype, anything else by itself."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
