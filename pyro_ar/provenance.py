r"""What results were made of: digests of this package's source and of data, to be kept beside the results."""

import functools
import hashlib

from pathlib import Path

import torch

from torch import Tensor

__all__ = ["code_digest", "digest_of", "other_code"]


@functools.cache
def code_digest() -> str:
    """Of all modules of this package, as they lie on disk when it is first asked for."""
    package, found = Path(__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        text = path.read_bytes().replace(b"\r\n", b"\n")
        found.update(f"{path.relative_to(package).as_posix()} {len(text)}\n".encode() + text)
    return found.hexdigest()[:16]


def digest_of(*tensors: Tensor) -> str:
    """Of the shapes, types and bits of these tensors.

    Example:
        >>> digest_of(torch.zeros(2)) == digest_of(torch.zeros(2)), digest_of(torch.zeros(2)) == digest_of(torch.zeros(2, 1))
        (True, False)
    """
    found = hashlib.sha256()
    for tensor in tensors:
        bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(bits.tobytes())
    return found.hexdigest()[:16]


def other_code(codes: list[str]) -> list[str]:
    """Those of these digests that are not of the code that runs."""
    return [code for code in codes if code != code_digest()]
