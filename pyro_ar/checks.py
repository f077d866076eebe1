"""One way to refuse: errors that say what was wanted and what came."""

from torch import Tensor

__all__ = ["IntractableError", "require"]


class IntractableError(RuntimeError):
    """The joint has no exact answer to this question; the message names what would work."""


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


def describe(value: object) -> str:
    """A tensor by its shape and dtype, anything else by itself."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
