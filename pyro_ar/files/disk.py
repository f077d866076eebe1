r"""Saving and loading: one safetensors file for whatever was fitted, written at once or not at all.

A thing is written as the arguments of its constructor, its tensors and what was set or learnt later, and read by calling that
constructor again, so that what a file says is checked as any other arguments are.
"""

import json
import os

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pyro_ar.checks import require

__all__ = ["load", "save"]

FORMAT = "pyro_ar-3"
EARLIER = {
    "pyro_ar-1": "which lost some options of a family; train and save it again",
    "pyro_ar-2": "which knew families alone; train and save it again",
}


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a family, joint, classifier or posterior to one safetensors file, at once or not at all.

    What comes back answers as before, bit by bit where the machine computes the same: `log_prob`, `marginal`, `given`, draws of equal seeds,
    `predict_proba`. It covers

    * every **joint**: tables, Gaussians and Student-t, mixtures, `Transformed` and `RankNormal`, joints of bound families with their context and
      order, all in any batch shape, expanded or not; `Marginal`, `Given` and `Latent` of them; `TablePosterior`;
    * every **family**, `OverOrders`, and families of your own that derive from `Family` with a constructor that can be called with
      numbers, words, tensors and outputs (pass your classes to `load`), with their mode (training or eval);
    * every **classifier**, `Plausibility` too, fitted or not, with its parameters and whatever `fit` left in it;
    * `JointImputer`, fitted or not, with its columns and its joint, where that is none or a name;
    * `Bayesian`, and the `Posterior` of its `fit`, with rows, draws and what `refit` needs;
    * inside these, the transforms of torch that act on cells (affine, exp, power, sigmoid, softplus, tanh, Pyro's leaky ReLU, their
      inverses and compositions), and Pyro's scalar priors over the reals.

    **Not covered**, and refused: a plain `Family` around a net, which does not say how the net was made; weights that Pyro draws (`PyroSample`;
    save the `Posterior`); functions, such as `train` of a `GenerativeClassifier`, and random generators as
    `random_state`; transforms, priors and estimators of other kinds. Not kept: gradients, and which tensors of a joint required them; devices
    (tensors come back on the CPU); the state of an optimiser (see `folder` of `par.fit`).

    Raises:
        ValueError: Something in it is not of these kinds, some weight is NaN, or there is no such folder.

    Example:
        >>> import tempfile
        >>> from pyro_ar.tables import FullyIndependent
        >>> joint = FullyIndependent(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(joint, f"{folder}/joint.safetensors")
        ...     load(f"{folder}/joint.safetensors")
        FullyIndependent(2 variables of 2 states, 0 edges, 2 parameters)
    """
    from safetensors.torch import save as to_bytes

    from pyro_ar.files.values import Writer

    require(not Path(path).is_dir() and Path(path).absolute().parent.is_dir(), "save wants the path of a file in a folder that exists", str(path))
    written = Writer()
    head = written.whole(model)
    data = to_bytes(written.tensors, {"format": FORMAT, "pyro_ar": json.dumps(head)})
    target = Path(path)
    part = target.with_name(target.name + ".part")
    try:
        part.write_bytes(data)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], known: Mapping[str, type] | None = None) -> Any:
    """Read what `save` wrote. Nothing in the file is executed, and no class is found by its name but those of this library and `known`.

    The state of the random generators is left as it was. A file of a stranger can still be large, or hold a model that answers what the stranger
    likes.

    Args:
        path: The file.
        known: Families, nets, outputs, joints and classifiers of your own by class name, besides those of this library.

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
    form = about.get("format")
    require(form not in EARLIER, f"{path} was written by an earlier pyro_ar (format {form}), {EARLIER.get(form or '')}")
    require(form == FORMAT, f"{path} was not written by pyro_ar.save (format {FORMAT})", form)
    try:
        head = json.loads(about["pyro_ar"])
    except (KeyError, RecursionError, TypeError, ValueError):
        raise ValueError(f"{path} has no readable configuration") from None
    from pyro_ar.files.values import Reader

    try:
        with torch.random.fork_rng(devices=[]):  # modules draw weights before they get theirs
            return Reader(tensors, known or {}).whole(head)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path}: the configuration and the tensors do not fit: {error}") from None
