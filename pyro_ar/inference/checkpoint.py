r"""The folder of `par.fit`: one file that says how far a run is, and what it is a run of.

The file is Lightning's checkpoint of the last whole epoch (weights, optimiser, schedule, loops, early stopping) with what Lightning does not
know: the best weights so far, the settings of the run, and digests of its rows, its starting weights and the code. All in one file, so that
no two can disagree after a kill.
"""

import os
import pickle
import re
import warnings

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torch import Tensor, nn

from pyro_ar.checks import require
from pyro_ar.provenance import code_digest, digest_of, other_code

__all__ = ["Run", "atomic_io", "described", "weights_digest"]

FORMAT = 2
WEIGHTS = "starting weights"
UNREADABLE = (AttributeError, EOFError, IndexError, KeyError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError)


@dataclass
class Run:
    """A run in a folder.

    Attributes:
        path: Of the checkpoint.
        settings: What must be the same for a run to go on.
        codes: Digests of the code that trained it, this one last.
        found: The checkpoint that was there, None at a start.
    """

    path: Path
    settings: dict[str, Any]
    codes: list[str]
    found: dict[str, Any] | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike[str], settings: Mapping[str, Any], *, keep_old_results: bool = False) -> "Run":
        """Read what is there, and make sure that it is of this run.

        Args:
            folder: It is made.
            settings: Of this run; one of them is the digest of the model's weights.
            keep_old_results: Go on with what other code has trained.

        Raises:
            ValueError: A torn file, a run of other settings, or one of other code that was not asked to be kept.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        path, settings = Path(folder) / "last.ckpt", dict(settings)
        if not path.exists():
            return cls(path, settings, [code_digest()])
        found = _read(path)
        there, done = found["run"]["settings"], found["run"]["done"]
        if done and settings[WEIGHTS] == digest_of(*found["run"]["best"].values()):
            settings[WEIGHTS] = there[WEIGHTS]  # the model that this very run has trained
        differ = [name for name in dict.fromkeys([*settings, *there]) if settings.get(name) != there.get(name)]
        require(not differ, f"{path} is of another run, which differs in {', '.join(_difference(n, there.get(n), settings.get(n)) for n in differ)}; "
                "use another folder, or remove it to start over")
        others = other_code(found["run"]["codes"])
        require(not others or keep_old_results, f"{path} was trained by other code of this library ({', '.join(others)}; this is {code_digest()}); use another "
                "folder, remove it to start over, or go on with keep_old_results=True")
        if others:
            warnings.warn(f"{path} was trained by other code of this library ({', '.join(others)}), and is kept", stacklevel=3)
        return cls(path, settings, [*others, code_digest()], found)

    @property
    def done(self) -> bool:
        """Nothing is left to train."""
        return self.found is not None and self.found["run"]["done"]

    def note(self, best: Mapping[str, Tensor], *, done: bool) -> dict[str, Any]:
        """What the checkpoint says beside Lightning's own."""
        return {"format": FORMAT, "settings": self.settings, "codes": self.codes, "best": dict(best), "done": done}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        right = found["run"]["format"] == FORMAT
    except UNREADABLE as error:
        raise ValueError(f"{path} is no checkpoint of par.fit, or is torn ({type(error).__name__}); remove it to start over") from None
    require(right, f"{path} is a checkpoint of another version of par.fit; remove it to start over", found["run"]["format"])
    return found


def _difference(name: str, there: Any, here: Any) -> str:
    """Numbers are shown, digests and descriptions only named."""
    return f"{name} ({there} there, {here} here)" if all(isinstance(v, int | float) for v in (there, here)) else name


def described(model: nn.Module) -> str:
    """A model's parts and configuration in words, the same in every process; the weights apart."""
    parts = [f"{name}: {type(part).__qualname__}({part.extra_repr()})" for name, part in model.named_modules()]
    tensors = [f"{name}: {t.dtype} {tuple(t.shape)}" for name, t in model.state_dict().items()]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    return re.sub(r" at 0x[0-9a-f]+", "", "\n".join([*parts, *tensors, *frozen]))


def weights_digest(model: nn.Module) -> str:
    """Of all tensors of the model's state."""
    return digest_of(*model.state_dict().values())


def atomic_io() -> Any:
    """Lightning's writer of checkpoints, but at once or not at all.

    Its own goes through the system's folder for temporary files, from which a file is copied where that is another disk: a kill in the
    middle of it leaves a torn one.
    """
    from lightning.pytorch.plugins.io import TorchCheckpointIO

    class Atomic(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
            part = f"{path}.part"
            torch.save(checkpoint, part)
            os.replace(part, path)

    return Atomic()
