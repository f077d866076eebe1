r"""Maximum likelihood for neural families on Lightning.

The same families train with Pyro's own `SVI`; `fit` is the short way: progress bar, early stopping on
held-out nats, the best weights kept, and resumption of a run that was killed.
"""

import contextlib
import hashlib
import logging
import math
import os
import warnings

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch

from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, nn

from pyro_ar.arrays import Array, as_tensor
from pyro_ar.checks import require
from pyro_ar.inference.checkpoint import WEIGHTS, Run, atomic_io, described, weights_digest
from pyro_ar.provenance import digest_of
from pyro_ar.visible import read_rows

__all__ = ["Fit", "fit"]


@dataclass
class Fit:
    """What `fit` saw.

    Attributes:
        best_nats: Lowest held-out negative log-probability per row.
        best_epoch: When it was seen, from 0.
        epochs: How many were run.
        history: Per epoch `(training nats, held-out nats)`.
        stopped_early: Patience ran out before the last epoch.
    """

    best_nats: float
    best_epoch: int
    epochs: int
    stopped_early: bool
    history: list[tuple[float, float]] = field(default_factory=list, repr=False)


def fit(model: Any, x: Array, context: Array | None = None, visible: Array | None = None, *,
        held_out: float | tuple[Array | None, ...] = 0.1, epochs: int = 200, batch_size: int = 128, lr: float = 1e-3,
        weight_decay: float = 0.0, patience: int = 20, seed: int = 0, progress: bool = True,
        folder: str | os.PathLike[str] | None = None, keep_old_results: bool = False, accelerator: str = "auto", devices: Any = 1) -> Fit:
    r"""Train a family by maximum likelihood, in place; the best weights are kept.

    The objective of a row is `model.training_log_prob`: log p(x | context) for a fixed order, the
    order-agnostic objective for any-order families, log p(x_visible | context) where cells are hidden.

    With a `folder`, the whole state of the run is written there after every epoch. Interrupted at any moment (killed, too) and called again
    with a model of the same starting weights, the run goes on from its last whole epoch to the very same weights as undisturbed: bit for bit
    on one thread, since every epoch draws from a seed of its own. A finished run is not trained again; its answer is read. A call that is
    interrupted by an exception leaves the model with its starting weights.

    Args:
        model: The family to train (or an `OverOrders` around one).
        x: `(N, *event)`, a tensor, an array or a data frame; what is stored under a hidden cell is never read.
        context: `(N, context_dim)`, if the family has one.
        visible: bool, `(N, *event)`, True = seen: training on incomplete rows. None: NaN hides a cell.
        held_out: The share of rows to hold out for early stopping, or held-out `(x[, context[, visible]])`.
        epochs: At most so many.
        batch_size: Rows per step.
        lr: Adam's step size, decayed along a cosine to zero.
        weight_decay: Decoupled, as in AdamW.
        patience: Epochs without a better held-out figure before it stops.
        seed: Of the split, the batches and the orders, whatever was seeded outside; the generators outside are left as they were.
        progress: Show a progress bar.
        folder: Keep the run there, in one file; the same call again goes on with it. `progress`, `accelerator` and `devices` may change.
        keep_old_results: Go on in a folder that other code of this library has written, with a warning.
        accelerator: As in Lightning.
        devices: As in Lightning.

    Raises:
        ValueError: Shapes that do not fit, no rows, a loss that went NaN, or a folder with a torn file or with a run of other rows, settings,
            model, starting weights or code: it says which.
        IntractableError: A fixed-order family cannot score these incomplete rows.
    """
    require(hasattr(model, "training_log_prob"), "par.fit wants a family, such as par.NADE(...)", type(model).__name__)
    rows = _rows(model, x, context, visible)
    require(isinstance(held_out, float | tuple), "held_out must be a share of the rows or a tuple of tensors", held_out)
    train, val = _split(rows, held_out, seed) if isinstance(held_out, float) else (rows, _rows(model, *held_out))
    whole = all(isinstance(k, int) for k in (epochs, batch_size, patience))
    require(whole, "epochs, batch_size and patience must be whole numbers", epochs, batch_size, patience)
    require(min(epochs, batch_size, patience) >= 1, "epochs, batch_size and patience must be at least 1",
            epochs, batch_size, patience)
    require(lr > 0 and math.isfinite(lr), "lr must be positive", lr)
    settings = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "patience": patience, "seed": seed}
    run = None
    if folder is not None:
        held = held_out if isinstance(held_out, float) else digest_of(*_seen(val).values())
        about = {"held_out": held, "model": described(model), WEIGHTS: weights_digest(model)}
        run = Run.open(folder, settings | {name: digest_of(t) for name, t in _seen(rows).items()} | about, keep_old_results=keep_old_results)
    steps = epochs * math.ceil(len(train["x"]) / batch_size)
    task = _task(model, lr, weight_decay, steps, seed, run)
    if run is not None and run.done:
        task.on_load_checkpoint(run.found)
    else:
        with _undisturbed(model, accelerator, restored=run is not None):
            _train(task, train, val, run, epochs=epochs, batch_size=batch_size, patience=patience, seed=seed, progress=progress,
                   accelerator=accelerator, devices=devices)
    return _kept(task, epochs, lr)


def _rows(model: Any, x: Array | None, context: Array | None = None, visible: Array | None = None) -> dict[str, Tensor]:
    """The columns of the data, checked to have the same rows."""
    event = tuple(model.event_shape)
    (x, visible), context = read_rows(x, visible), as_tensor(context)
    require(isinstance(x, Tensor) and tuple(x.shape[1:]) == event and len(x) > 0, f"data must be rows of shape (N, {event})", x)
    dtype = next(model.parameters()).dtype
    rows = {"x": x.to(dtype)}
    require((context is not None) == (model.context_dim > 0),
            f"the family has context_dim={model.context_dim}; give context exactly if that is positive", context)
    if context is not None:
        require(tuple(context.shape) == (len(x), model.context_dim), f"context must have shape ({len(x)}, {model.context_dim})", context)
        rows["context"] = context.to(dtype)
    if visible is not None:
        require(isinstance(visible, Tensor) and visible.dtype == torch.bool and visible.shape == x.shape,
                f"visible must be bool of shape {tuple(x.shape)}", visible)
        require(bool(visible.any()), "some cell of the data must be visible; all are hidden or NaN", x)
        rows["visible"] = visible
    return rows


def _split(rows: dict[str, Tensor], share: float, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    n = len(rows["x"])
    require(0 < share < 1 and n >= 2, "held_out must be a share between 0 and 1 of at least 2 rows", share)
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    cut = min(max(round(n * share), 1), n - 1)
    return ({k: t[shuffled[cut:]] for k, t in rows.items()}, {k: t[shuffled[:cut]] for k, t in rows.items()})


def _seen(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows without what is stored under hidden cells, which is never read."""
    x = rows["x"].where(rows["visible"], 0) if "visible" in rows else rows["x"]
    return {"rows": x, **{name: t for name, t in rows.items() if name != "x"}}


@contextlib.contextmanager
def _undisturbed(model: nn.Module, accelerator: str, *, restored: bool) -> Iterator[None]:
    """Training mode inside; outside all is as it was: modes, generators, warnings, and where `restored` the weights of an interrupted model."""
    modes = {part: part.training for part in model.modules()}
    weights = {name: t.clone() for name, t in model.state_dict().items()} if restored else {}
    devices = range(torch.cuda.device_count()) if accelerator != "cpu" else []
    with _quiet(), torch.random.fork_rng(devices=devices), contextlib.ExitStack() as stack:
        stack.callback(set_rng_state, get_rng_state())
        try:
            model.train()
            yield
        except BaseException:
            if restored:
                model.load_state_dict(weights)
            raise
        finally:
            for part, mode in modes.items():
                part.training = mode


def _train(task: Any, train: dict[str, Tensor], val: dict[str, Tensor], run: Run | None, *, epochs: int, batch_size: int, patience: int, seed: int,
           progress: bool, accelerator: str, devices: Any) -> None:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar

    stop = EarlyStopping("held_out_nats", patience=patience, check_finite=True)
    callbacks: list[Any] = [stop, *([TQDMProgressBar()] if progress else [])]
    if run is not None:
        callbacks.append(ModelCheckpoint(run.path.parent, filename=run.path.stem, save_on_train_epoch_end=True, enable_version_counter=False))
    trainer = Trainer(accelerator=accelerator, devices=devices, max_epochs=epochs, callbacks=callbacks, logger=False, enable_model_summary=False,
                      enable_checkpointing=run is not None, enable_progress_bar=progress, num_sanity_val_steps=0, plugins=atomic_io())

    def order() -> Tensor:
        return torch.randperm(len(train["x"]), generator=torch.Generator().manual_seed(_seed_of(seed, task.epoch, "batches")))

    loaders = _batches(train, batch_size, order), _batches(val, 4 * batch_size, lambda: torch.arange(len(val["x"])))
    try:
        trainer.fit(task, *loaders, ckpt_path=str(run.path) if run is not None and run.found is not None else None, weights_only=True)
    except SystemExit:
        if trainer.interrupted:  # Lightning turns Ctrl-C into an exit; whether to leave is our caller's choice
            raise KeyboardInterrupt from None
        raise


def _kept(task: Any, epochs: int, lr: float) -> Fit:
    """Give the model its best weights."""
    history: list[tuple[float, float]] = task.history
    require(len(history) > 0, "training ended before its first epoch")
    require(all(math.isfinite(v) for pair in history for v in pair), "training diverged: a loss became NaN or infinite; use a smaller lr", lr)
    task.family.load_state_dict(task.best)
    held = [v for _, v in history]
    return Fit(min(held), held.index(min(held)), len(history), len(history) < epochs, history)


def _seed_of(seed: int, epoch: int, what: str) -> int:
    """A seed for each epoch, so that a run that goes on draws what it would have drawn; no two runs of other seeds share one."""
    return int.from_bytes(hashlib.sha256(f"{seed} {epoch} {what}".encode()).digest()[:4], "big")


def _batches(rows: dict[str, Tensor], batch_size: int, order: Callable[[], Tensor]) -> Any:
    from torch.utils.data import DataLoader, Dataset, Sampler

    class Rows(Dataset):
        """Batches are gathered at once: rows one by one would cost more than a step."""

        def __len__(self) -> int:
            return len(rows["x"])

        def __getitem__(self, index: Any) -> dict[str, Tensor]:
            return {k: t[index] for k, t in rows.items()}

    class Order(Sampler):
        def __len__(self) -> int:
            return math.ceil(len(rows["x"]) / batch_size)

        def __iter__(self) -> Iterator[Tensor]:
            yield from order().split(batch_size)

    return DataLoader(Rows(), sampler=Order(), batch_size=None, generator=torch.Generator())


def _task(model: Any, lr: float, weight_decay: float, steps: int, seed: int, run: Run | None) -> Any:
    from lightning.pytorch import LightningModule

    class MaximumLikelihood(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.family = model
            self.history: list[tuple[float, float]] = []
            self.best: dict[str, Tensor] = {}
            self.sums: dict[str, list[float]] = {"train": [0.0, 0.0], "held": [0.0, 0.0]}

        @property
        def epoch(self) -> int:
            """Whole epochs so far: Lightning's own count differs between hooks, and after a resumption."""
            return len(self.history)

        def nats(self, batch: Mapping[str, Tensor], part: str) -> Tensor:
            loss = -self.family.training_log_prob(batch["x"], batch.get("context"), batch.get("visible")).mean()
            self.sums[part][0] += float(loss.detach()) * len(batch["x"])
            self.sums[part][1] += len(batch["x"])
            return loss

        def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
            if batch_idx == 0:
                pyro.set_rng_seed(_seed_of(seed, self.epoch, "orders"))
            loss = self.nats(batch, "train")
            self.log("nats", loss.detach(), prog_bar=True, logger=False)
            return loss

        def validation_step(self, batch: Mapping[str, Tensor]) -> None:
            # The same orders every time, so that epochs differ in their weights only.
            pyro.set_rng_seed(_seed_of(seed, 0, "held out"))
            self.nats(batch, "held")

        def on_validation_epoch_end(self) -> None:
            train, held = (total / max(count, 1) for total, count in self.sums.values())
            self.log("held_out_nats", held, prog_bar=True, logger=False)
            if held < min((v for _, v in self.history), default=math.inf):
                self.best = {name: t.detach().clone() for name, t in self.family.state_dict().items()}
            self.history.append((train, held))
            self.sums = {"train": [0.0, 0.0], "held": [0.0, 0.0]}

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            _remember(run, self, checkpoint)

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.history = [(a, b) for a, b in checkpoint["history"]]
            self.best = checkpoint["run"]["best"]

        def configure_optimizers(self) -> Any:
            adam = torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=weight_decay)
            decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
            return {"optimizer": adam, "lr_scheduler": {"scheduler": decay, "interval": "step"}}

    return MaximumLikelihood()


def _remember(run: Run | None, task: Any, checkpoint: dict[str, Any]) -> None:
    """Add what Lightning does not keep."""
    if run is not None:
        checkpoint["history"] = [list(pair) for pair in task.history]
        checkpoint["run"] = run.note(task.best, done=task.trainer.should_stop or task.epoch >= run.settings["epochs"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice about workers, loggers and devices does not concern our callers."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in (".*does not have many workers", ".*LeafSpec.*", ".*exists and is not empty", ".*GPU available",
                            ".*isinstance.treespec", ".*log_every_n_steps", ".*lr_scheduler.step.*", ".*tensorboardX.*"):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        log.setLevel(level)
