r"""Several processes that do units of one plan, in their order; none outlives the run, however it ends."""

import contextlib
import multiprocessing
import os
import signal
import threading

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

import torch

from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from pyro_ar.experiments.store import Results

__all__ = ["do_units", "in_workers"]

Work = Callable[[Any, Any], dict[str, Any]]


def in_workers(work: Work, plan: Any, todo: Sequence[Any], workers: int, threads: int) -> Generator[dict[str, Any], None, None]:
    """`work(plan, key)` of each key, in their order.

    Args:
        work: A function of a module, so that a process can find it.
        plan: Sent once to each process: it may hold the data.
        todo: Keys.
        workers: Processes.
        threads: Of the computation in each.

    Raises:
        ChildProcessError: A worker was killed, by the system for lack of memory perhaps.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (work, plan, threads))
    try:
        with _without_ctrl_c():  # of the terminal, which all its processes get: this one alone is to answer it
            units = pool.map(_work_of_worker, todo)
        yield from units
    except BrokenProcessPool:
        raise ChildProcessError("a worker process was killed, for lack of memory perhaps; the same command goes on with what is to do, "
                                "and --workers 1 needs the least memory") from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()  # it may be minutes from the end of its unit
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def do_units(work: Work, plan: Any, results: "Results", keys: Sequence[Mapping[str, Any]], *, workers: int, threads: int) -> Iterator[dict[str, Any]]:
    """The unit of each key, in their order: as it was kept, or done by `work(plan, key)`, here or in several processes, and kept.

    Args:
        work: As in `in_workers`; a unit holds the entries of its key.
        plan: As there.
        results: Where units are kept.
        keys: Entries that tell a unit.
        workers: Processes at most; with 1 this one does the work.
        threads: As in `in_workers`.

    Raises:
        ChildProcessError: As `in_workers`.
    """
    todo = [key for key in keys if results.find(**key) is None]
    many = min(workers, len(todo))
    fresh = in_workers(work, plan, todo, many, threads) if many > 1 else (work(plan, key) for key in todo)
    with contextlib.closing(fresh):
        for key in keys:
            unit = results.find(**key)
            if unit is None:
                unit = next(fresh)
                results.add(unit)
            yield unit


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started here ignore it for good."""
    if threading.current_thread() is not threading.main_thread():  # where Python does not let us choose
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_of_worker: list[tuple[Work, Any]] = []


def _start_worker(work: Work, plan: Any, threads: int) -> None:
    _of_worker[:] = [(work, plan)]
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed could not end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work_of_worker(key: Any) -> dict[str, Any]:
    work, plan = _of_worker[0]
    return work(plan, key)
