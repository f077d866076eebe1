"""The same joint made of other tensors: leaves, neighbours, one per class."""

from collections.abc import Iterator
from typing import Any

import torch

from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import transform_to

__all__ = ["aligned_tensors", "constraint_of", "gradients", "nearby", "rebuilt", "with_floating"]


def constraint_of(joint: Any, name: str) -> constraints.Constraint:
    """The constraint of one of `joint.tensors`; a name such as `joints.0.loc` is followed along the attributes."""
    if name in joint.arg_constraints:
        return joint.arg_constraints[name]
    head, _, rest = name.partition(".")
    part = getattr(joint, head, None)
    if rest and isinstance(part, list | tuple):
        number, _, rest = rest.partition(".")
        part = part[int(number)] if number.isdigit() and int(number) < len(part) else None
    return constraint_of(part, rest) if rest and hasattr(part, "arg_constraints") else constraints.real


def rebuilt(joint: Any, *, leaves: bool = False) -> Any:
    """The joint made anew of detached tensors (leaves that require gradients)."""
    tensors = {name: t.detach().clone() for name, t in joint.tensors.items()}
    for t in tensors.values() if leaves else ():
        t.requires_grad_(t.is_floating_point())
    return joint.with_tensors(tensors)


def aligned_tensors(joint: Any) -> dict[str, Tensor]:
    """The floating tensors, each with all batch dimensions written out (size 1 where absent), so that they stack.

    How many batch dimensions a tensor has shows when more are put left of it alone.
    """
    many, tensors = len(joint.batch_shape), joint.tensors
    floating = {name: t.detach() for name, t in tensors.items() if t.is_floating_point()}
    if many == 0:
        return floating
    aligned = {}
    for name, t in floating.items():
        taller = joint.with_tensors({**tensors, name: t[(None,) * (many + 1)]})
        own = len(taller.batch_shape) - many - 1
        aligned[name] = t[(None,) * (many - own)]
    return aligned


def nearby(joint: Any, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Perturbed tensors that are legal parameters, with `shape` left of the batch."""
    found = {}
    for name, t in aligned_tensors(joint).items():
        transform = transform_to(constraint_of(joint, name))
        free = transform.inv(t)
        found[name] = transform(free + 0.5 * torch.randn(*shape, *free.shape, dtype=t.dtype, device=t.device))
    return found


def with_floating(joint: Any, tensors: dict[str, Tensor]) -> Any:
    """`joint.with_tensors`, its other tensors as they are."""
    return joint.with_tensors({name: tensors.get(name, t) for name, t in joint.tensors.items()})


def gradients(joint: Any, total: Tensor, *more: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Gradients of `total` with respect to the joint's tensors, then `more`; zeros where it does not depend on one."""
    named = [(name, t) for name, t in joint.tensors.items() if t.requires_grad]
    named += [(f"value {i}", t) for i, t in enumerate(more)]
    if not total.requires_grad:
        raise AssertionError("the log probability does not depend on the joint's tensors: no gradient")
    grads = torch.autograd.grad(total, [t for _, t in named], allow_unused=True)
    for (name, t), g in zip(named, grads, strict=True):
        yield name, torch.zeros_like(t) if g is None else g
