"""What `torch.func` does to tensors, for code that would look at their values."""

import numpy as np
import torch

from torch import Tensor

__all__ = ["as_array", "is_mapped", "transforms_active"]


def transforms_active() -> bool:
    """Whether a `torch.func` transform (vmap, grad, jvp) is running."""
    return torch._C._are_functorch_transforms_active()


def is_mapped(*tensors: Tensor | None) -> bool:
    """Whether a running `vmap` maps some of the tensors: then their values cannot be asked for.

    Example:
        >>> asked = []
        >>> torch.vmap(lambda t: asked.append(is_mapped(torch.zeros(()), t)) or t)(torch.zeros(3))
        tensor([0., 0., 0.])
        >>> asked, is_mapped(torch.zeros(3))
        ([True], False)
    """
    functorch = torch._C._functorch
    for t in tensors:
        while t is not None and functorch.is_functorch_wrapped_tensor(t):
            if functorch.is_batchedtensor(t):
                return True
            t = functorch.get_unwrapped(t)
    return False


def as_array(t: Tensor) -> np.ndarray:
    """The values of a tensor that no `vmap` maps; inside a transform tensors have no memory that NumPy could share."""
    if transforms_active():
        return np.array(t.tolist()).reshape(t.shape)
    return t.detach().cpu().numpy()
