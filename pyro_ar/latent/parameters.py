r"""What a latent tree is made of, without a batch: what a fit reads and gives."""

from typing import NamedTuple

import torch

from torch import Tensor

from pyro_ar.latent.tree import Tree
from pyro_ar.outputs import Output

__all__ = ["Parameters"]


class Parameters(NamedTuple):
    """The arguments of one `LatentTree`; the transitions `(H - 1, K, K)`, also where there are none."""

    tree: Tree
    output: Output
    root_logits: Tensor
    transition_logits: Tensor
    emission: Tensor

    def to(self, dtype: torch.dtype) -> "Parameters":
        """The same in another precision."""
        return Parameters(*self[:2], *(t.detach().to(dtype) for t in self[2:]))
