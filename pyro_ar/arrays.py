"""NumPy arrays and data frames at the door: rows, weights and patterns become tensors, and missing values NaN."""

from typing import Any, Protocol

import numpy as np
import torch

from torch import Tensor

from pyro_ar.checks import require

__all__ = ["Array", "as_array", "as_tensor", "is_missing"]


class HasArray(Protocol):
    """A data frame or series: what NumPy can read."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any: ...


Array = Tensor | np.ndarray | HasArray
"""Rows, weights or patterns, as they come."""


def as_tensor(x: Any, device: torch.device | None = None) -> Tensor:
    r"""The tensor of the same numbers, from an array or data frame; a tensor is itself, at no cost.

    =================================  ==============================================
    what comes                         dtype
    =================================  ==============================================
    float32, float64                   its own; a joint is told the numbers themselves
    other floats                       float64
    integers                           int64
    bools                              bool
    nullable, object or mixed columns  float64; None, pd.NA and NaN are NaN
    =================================  ==============================================

    Args:
        x: Rows, weights or a pattern. What is neither tensor nor array (a list, say) comes back as it is, to be refused by who asked.
        device: Of a new tensor.

    Raises:
        ValueError: An array that holds no numbers, or integers beyond int64.

    Example:
        >>> as_tensor(np.array([[1, None], [0.5, 2]], dtype=object))
        tensor([[1.0000,    nan],
                [0.5000, 2.0000]], dtype=torch.float64)
    """
    if isinstance(x, Tensor) or not hasattr(x, "__array__"):
        return x
    array = as_array(x)
    if array.dtype.kind in "iu":
        least = array.dtype.kind == "i" or array.size == 0 or int(array.max()) <= np.iinfo(np.int64).max
        require(least, "integers must be at most 2^63 - 1", str(array.dtype))
        array = array.astype(np.int64)
    elif array.dtype.kind == "f" and array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    return torch.tensor(np.ascontiguousarray(array).reshape(array.shape), device=device)


def as_array(x: Any) -> np.ndarray:
    """Numbers or bools as NumPy's own; objects become bool where all are, else float64 with NaN where missing.

    Raises:
        ValueError: Something is no number; the message names it.
    """
    array = np.asarray(x)
    if array.dtype.kind != "O":
        require(array.dtype.kind in "biuf", "rows, weights and patterns must be numbers or bool", f"dtype {array.dtype}")
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.size and all(isinstance(v, bool | np.bool_) for v in array.flat):
        return array.astype(bool)
    answer = np.empty(array.shape)
    for index, value in np.ndenumerate(array):
        try:
            answer[index] = np.nan if is_missing(value) else value
        except (TypeError, ValueError):
            require(False, "rows, weights and patterns must be numbers or bool (None, pd.NA or NaN where missing)", value, f"at index {index}")
    return answer


def is_missing(value: Any) -> bool:
    """None, and the NA and NaT of pandas, which is not imported for it."""
    return value is None or type(value).__name__ in ("NAType", "NaTType")
