"""Training, its files, and what it must reach on real digits."""

import contextlib
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pyro
import pytest
import torch

from pyro.infer import SVI, Trace_ELBO
from recording import Ledger, RecordingFamily, numbered

import pyro_ar as par

from pyro_ar.data import digits

QUICK = {"progress": False, "batch_size": 128}


@pytest.fixture(scope="module")
def grey():
    x = digits().x.float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:1400]], x[order[1400:]]


@pytest.fixture(scope="module")
def binary(grey):
    return tuple((x >= 8).float() for x in grey)


def nats(joint, x):
    return -joint.log_prob(x).mean().item()


LEVELS = par.outputs.DiscretisedLogisticMixture(17, 5)


@pytest.mark.parametrize(("make", "lr"), [
    (lambda: par.FVSBN(64, LEVELS), 1e-2),
    (lambda: par.NADE(64, 60, LEVELS, activation="relu"), 5e-3),
    (lambda: par.MADE(64, (100,), LEVELS), 5e-3),
    (lambda: par.OrderlessNADE(64, 100, LEVELS, activation="relu"), 5e-3),
], ids=["FVSBN", "NADE", "MADE", "OrderlessNADE"])
def test_every_family_beats_the_markov_chain_on_digits(make, lr, grey):
    train, test = grey
    chain = min(nats(par.MarkovChain.from_data(train, num_states=17, pseudocount=a), test) for a in (0.1, 0.3, 1.0))
    family = make()
    par.fit(family, train, epochs=15, lr=lr, **QUICK)
    assert nats(family(), test) < chain


@pytest.mark.parametrize(("make", "lr"), [
    (lambda n: par.FVSBN(n), 1e-2), (lambda n: par.NADE(n, 60), 1e-2), (lambda n: par.MADE(n, (100,)), 5e-3),
], ids=["FVSBN", "NADE", "MADE"])
def test_fixed_order_families_beat_the_chow_liu_tree_on_binary_data(make, lr, binary):
    """On nltcs where PYRO_AR_DATA has it, else on the binarised digits."""
    train, test, options = *binary, {"epochs": 40}
    folder = os.environ.get("PYRO_AR_DATA")
    if folder:
        with np.load(f"{folder}/debd/nltcs.npz") as z:
            train, held, test = (torch.from_numpy(z[part]).float() for part in ("train", "valid", "test"))
        options = {"epochs": 8, "held_out": (held,)}
    tree = min(nats(par.ChowLiuTree.from_data(train, num_states=2, pseudocount=a), test) for a in (0.1, 1.0))
    family = make(train.shape[1])
    par.fit(family, train, lr=lr, **QUICK, **options)
    assert nats(family(), test) < tree


def test_the_best_weights_are_kept_and_patience_stops(binary):
    train, test = binary
    family = par.NADE(64, 200)
    done = par.fit(family, train[:100], held_out=(test,), epochs=400, lr=3e-2, patience=3, **QUICK)
    assert done.stopped_early
    assert done.epochs == len(done.history) < 400
    held = [value for _, value in done.history]
    assert done.best_nats == pytest.approx(min(held), rel=1e-5)
    assert done.best_epoch == held.index(min(held))
    assert nats(family(), test) == pytest.approx(done.best_nats, rel=1e-4)


class _StopAfter(torch.nn.Module):
    """A family that is interrupted, as by Ctrl-C, after so many training steps."""

    def __init__(self, family, steps):
        super().__init__()
        self.family, self.left = family, steps
        self.event_shape, self.context_dim = family.event_shape, family.context_dim

    def training_log_prob(self, *data):
        self.left -= self.training
        if self.left < 0:
            raise KeyboardInterrupt
        return self.family.training_log_prob(*data)


def test_hidden_training_cells_are_never_read_and_do_teach(binary):
    train, test = binary
    visible = torch.rand(train.shape) > 0.3
    family, untrained = par.OrderlessNADE(64, 50), par.OrderlessNADE(64, 50)
    par.fit(family, train.masked_fill(~visible, math.nan), visible=visible, epochs=10, lr=1e-2, **QUICK)
    assert nats(family(), test) < 0.7 * nats(untrained(), test)


def test_incomplete_rows_of_a_fixed_order_are_refused_by_name(binary):
    with pytest.raises(par.IntractableError, match="OrderlessNADE"):
        par.fit(par.FVSBN(64), binary[0], visible=torch.rand(1400, 64) > 0.5, epochs=1, **QUICK)


@pytest.mark.parametrize("output", [par.outputs.Bernoulli(), par.outputs.Categorical(3)])
@pytest.mark.parametrize("incomplete", [False, True])
def test_the_order_agnostic_objective_is_unbiased(output, incomplete):
    family = par.OrderlessNADE(5, 4, output)
    with torch.no_grad():
        for p in family.parameters():
            p.normal_()
    x = torch.randint(0, output.num_states, (5,)).float()
    visible = torch.tensor([True, False, True, True, False]) if incomplete else torch.ones(5, dtype=torch.bool)
    joints = [family(order=torch.tensor(order)) for order in itertools.permutations(range(5))]
    exact = torch.stack([joint.marginal(visible).log_prob(x) for joint in joints]).mean().item()
    n = 50000
    seen = visible.expand(n, 5) if incomplete else None
    for mode in (True, False):
        draws = family.train(mode).training_log_prob(x.expand(n, 5), None, seen)
        # 5 standard errors: 6e-7 false alarms each, seed fixed
        assert abs(draws.mean().item() - exact) < 5 * draws.std().item() / math.sqrt(n) + 1e-5


def test_the_same_family_trains_with_svi(binary):
    family = par.NADE(64, 30)
    before = nats(family(), binary[1])

    def model(x):
        pyro.module("nade", family)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", family(), obs=x)

    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(30):
        svi.step(binary[0])
    assert nats(family(), binary[1]) < before - 5


@pytest.mark.parametrize(("data", "options", "match"), [
    ((torch.zeros(5, 3),), {}, r"rows of shape \(N, \(4,\)\)"),
    ((torch.zeros(5, 4), torch.zeros(5, 2)), {}, "context_dim=0"),
    ((torch.zeros(5, 4), None, torch.ones(5, 3).bool()), {}, "visible must be bool"),
    ((torch.zeros(1, 4),), {}, "at least 2 rows"),
    ((torch.zeros(5, 4),), {"held_out": 1.5}, "share between 0 and 1"),
    ((torch.zeros(5, 4),), {"lr": -1.0}, "lr must be positive"),
    ((torch.zeros(5, 4),), {"epochs": 0}, "at least 1"),
    ((torch.full((5, 4), 7.0),), {"epochs": 1, "progress": False}, "states 0 to 1"),
    ((torch.full((5, 4), math.nan),), {"epochs": 1, "progress": False}, "some cell of the data must be visible"),
])
def test_bad_input_is_named(data, options, match):
    with pytest.raises(ValueError, match=match):
        par.fit(par.FVSBN(4), *data, **options)


@pytest.mark.parametrize("make", [lambda: par.OrderlessNADE(6, 4, context_dim=2), lambda: par.NADE(6, 4, context_dim=2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.uint8])
def test_data_of_any_type_train(make, dtype):
    x = torch.randint(0, 2, (40, 6)).to(dtype)
    par.fit(make(), x, torch.eye(2).double()[torch.arange(40) % 2], epochs=1, **QUICK)


def test_a_torn_checkpoint_or_one_of_another_model_is_named(tmp_path):
    x = torch.randint(0, 2, (40, 6)).float()
    par.fit(par.FVSBN(6), x, epochs=1, folder=tmp_path, **QUICK)
    with pytest.raises(ValueError, match="another run, which differs in model, starting weights;"):
        par.fit(par.NADE(6, 4), x, epochs=1, folder=tmp_path, **QUICK)
    (tmp_path / "last.ckpt").write_bytes(b"abc")
    with pytest.raises(ValueError, match="is torn"):
        par.fit(par.FVSBN(6), x, epochs=1, folder=tmp_path, **QUICK)


@pytest.mark.parametrize(("call", "match"), [
    (lambda x, path: par.fit(3, x), "wants a family"),
    (lambda x, path: par.fit(par.FVSBN(6), x, held_out=1), "share of the rows"),
    (lambda x, path: par.fit(par.FVSBN(6), x, epochs=1.5), "whole numbers"),
    (lambda x, path: par.fit(par.FVSBN(6), x, visible=[[True] * 6] * 40), "visible must be bool"),
])
def test_wrong_kinds_of_arguments_are_named(call, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        call(torch.zeros(40, 6), tmp_path)


# A run in a folder.


SMALL = {"progress": False, "batch_size": 32, "epochs": 6, "lr": 0.01}


def small_model(seed=3, hidden=6):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return par.OrderlessNADE(8, hidden)  # draws orders in training


@pytest.fixture(scope="module")
def small():
    return (torch.rand(150, 8, generator=torch.Generator().manual_seed(1)) > torch.linspace(0.1, 0.9, 8)).float()


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def undisturbed(small):
    model = small_model()
    done = par.fit(model, small, **SMALL)
    assert done.best_epoch >= 4  # else what comes after the interruptions would not matter
    return done, state(model)


@pytest.mark.parametrize("steps", [(0, 7), (2, 12), (5, 5), (17, 3), (27, 4)])
def test_an_interrupted_run_ends_in_the_very_same_weights(steps, small, undisturbed, tmp_path):
    """Interrupted twice, at any step, and called again with other global seeds and generators."""
    done, weights = undisturbed
    for left in steps:
        family = _StopAfter(small_model(), left)
        start = state(family)
        torch.manual_seed(left)
        with contextlib.suppress(KeyboardInterrupt):
            par.fit(family, small, folder=tmp_path, **SMALL)
            pytest.fail("it should have been interrupted")
        assert same(state(family), start)  # so that the very same call goes on
    family = _StopAfter(small_model(), 10**9)
    again = par.fit(family, small, folder=tmp_path, **SMALL)
    assert same(state(family.family), weights)
    assert again == done
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_patience_goes_on_where_it_was(small, tmp_path):
    """The early-stopping state is the last one, not that of the best epoch."""
    options = SMALL | {"epochs": 60, "patience": 3, "lr": 0.3}
    whole = small_model()
    done = par.fit(whole, small[:60], **options)
    assert done.stopped_early
    family = _StopAfter(small_model(), 2 * (done.best_epoch + 2) + 1)  # one epoch of patience is spent
    with contextlib.suppress(KeyboardInterrupt):
        par.fit(family, small[:60], folder=tmp_path, **options)
        pytest.fail("it should have been interrupted")
    family.left = 10**9
    assert par.fit(family, small[:60], folder=tmp_path, **options) == done
    assert same(state(family.family), state(whole))


def test_a_finished_run_is_only_read(small, undisturbed, tmp_path, monkeypatch):
    done, weights = undisturbed
    model = small_model()
    assert par.fit(model, small, folder=tmp_path, **SMALL) == done
    monkeypatch.setattr(par.OrderlessNADE, "training_log_prob", None)  # nothing may be trained
    assert par.fit(model, small, folder=tmp_path, **SMALL) == done  # the trained model, which holds the answer
    fresh = small_model()
    assert par.fit(fresh, small, folder=tmp_path, **SMALL) == done
    assert same(state(model), weights)
    assert same(state(fresh), weights)


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    """Folders of a run that was interrupted, and of one that is finished."""
    folder = tmp_path_factory.mktemp("runs")
    for finished in (False, True):
        with contextlib.suppress(KeyboardInterrupt):
            par.fit(_StopAfter(small_model(), 10**9 if finished else 7), small, folder=folder / str(finished), **SMALL)
    return folder


@pytest.mark.parametrize(("change", "named"), [
    ({"x": lambda x: x.flip(0)}, "rows"), ({"visible": lambda x: torch.rand(x.shape) > 0.1}, "rows, visible"),
    ({"epochs": 7}, "epochs (6 there, 7 here)"), ({"batch_size": 31}, "batch_size (32 there, 31 here)"), ({"lr": 0.04}, "lr (0.01 there, 0.04 here)"),
    ({"weight_decay": 0.1}, "weight_decay (0.0 there, 0.1 here)"), ({"patience": 5}, "patience (20 there, 5 here)"),
    ({"seed": 1}, "seed (0 there, 1 here)"), ({"held_out": 0.2}, "held_out (0.1 there, 0.2 here)"), ({"held_out": lambda x: (x[:9],)}, "held_out"),
    ({"model": lambda: small_model(4)}, "starting weights"), ({"model": lambda: small_model(hidden=7)}, "model, starting weights"),
    ({"model": lambda: small_model().double()}, "rows, model, starting weights"),
])
@pytest.mark.parametrize("finished", [False, True])
def test_another_run_is_refused_by_what_differs(change, named, finished, small, runs):
    tmp_path = runs / str(finished)
    before = (tmp_path / "last.ckpt").read_bytes()
    made = {name: value(small) if callable(value) and name != "model" else value for name, value in change.items()}
    other = _StopAfter(made.pop("model", small_model)(), 10**9)
    start = state(other)
    with pytest.raises(ValueError, match=rf"another run, which differs in {re.escape(named)};"):
        par.fit(other, made.pop("x", small), folder=tmp_path, **SMALL | made)
    assert same(state(other), start)
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_context_and_held_out_rows_are_those_of_the_run(small, tmp_path):
    context, held = torch.eye(2)[torch.arange(150) % 2], (small[:20], torch.eye(2)[torch.arange(20) % 2])
    visible = torch.rand(150, 8) > 0.2

    def fit(folder, context=context, held=held, x=small):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = par.OrderlessNADE(8, 4, context_dim=2)
        return par.fit(model, x, context, visible, held_out=held, folder=folder, epochs=1, progress=False)

    done = fit(tmp_path)
    assert fit(tmp_path, x=small.masked_fill(~visible, math.nan)) == done  # what is hidden is no part of the rows
    with pytest.raises(ValueError, match="differs in context;"):
        fit(tmp_path, context.flip(1))
    for other in ((held[0].flip(0), held[1]), (held[0], held[1].flip(1))):
        with pytest.raises(ValueError, match="differs in held_out;"):
            fit(tmp_path, held=other)


def test_a_run_of_other_code_is_refused_unless_told(small, undisturbed, tmp_path, monkeypatch):
    stops = _StopAfter(small_model(), 12)
    with monkeypatch.context() as patch:
        patch.setattr("pyro_ar.inference.checkpoint.code_digest", lambda: "0123456789abcdef")
        with contextlib.suppress(KeyboardInterrupt):
            par.fit(stops, small, folder=tmp_path, **SMALL)
    stops.left = 10**9
    with pytest.raises(ValueError, match=r"other code of this library \(0123456789abcdef; this is .*keep_old_results=True"):
        par.fit(stops, small, folder=tmp_path, **SMALL)
    with pytest.warns(UserWarning, match="trained by other code of this library"):
        assert par.fit(stops, small, folder=tmp_path, keep_old_results=True, **SMALL) == undisturbed[0]
    with pytest.raises(ValueError, match="other code"):  # what other code has begun stays so
        par.fit(stops, small, folder=tmp_path, **SMALL)


PROGRAM = """
import sys, torch, pyro_ar as par
torch.set_num_threads(1)
torch.manual_seed(3)
model = par.OrderlessNADE(8, 6)
x = (torch.rand(150, 8, generator=torch.Generator().manual_seed(1)) > torch.linspace(0.1, 0.9, 8)).float()
print("starts", flush=True)
done = par.fit(model, x, folder=sys.argv[1], progress=False, batch_size=32, epochs={epochs}, lr=0.01)
torch.save([list(model.state_dict().values()), done.history], sys.argv[2])
"""


def killed_at_random(tmp_path, epochs, kills, seed):
    """Kill the program at random moments after its start, then let it end; its answer, and how often it was killed."""
    random, killed = np.random.default_rng(seed), 0
    command = [sys.executable, "-c", PROGRAM.format(epochs=epochs), str(tmp_path / "run"), str(tmp_path / "answer")]
    for turn in range(kills + 1):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            if turn < kills:
                # Between two files' times, so that a slow machine is killed at as many stages as a fast one.
                wanted, path = random.integers(1, 4), tmp_path / "run" / "last.ckpt"
                seen, last = 0, None
                while process.poll() is None and seen < wanted:
                    now = path.stat().st_mtime_ns if path.exists() else None
                    seen, last = seen + (now != last), now
                time.sleep(random.uniform(0, 0.05))
                process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
    return torch.load(tmp_path / "answer"), killed


@pytest.mark.parametrize(("epochs", "kills"), [pytest.param(8, 1, marks=pytest.mark.slow), pytest.param(60, 8, marks=pytest.mark.slow)])
def test_killed_runs_end_in_the_very_same_weights(epochs, kills, small, tmp_path):
    (weights, history), killed = killed_at_random(tmp_path, epochs, kills, seed=epochs)
    assert killed == kills
    model = small_model()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    done = par.fit(model, small, **SMALL | {"epochs": epochs})
    torch.set_num_threads(threads)
    assert history == done.history
    assert all(torch.equal(a, b) for a, b in zip(weights, model.state_dict().values(), strict=True))


def test_a_kill_while_the_file_is_written_leaves_the_one_before(small, tmp_path, monkeypatch):
    stops = _StopAfter(small_model(), 12)
    with contextlib.suppress(KeyboardInterrupt):
        par.fit(stops, small, folder=tmp_path, **SMALL)
    before = (tmp_path / "last.ckpt").read_bytes()
    whole = torch.save

    def torn(content, file):
        whole(content, file)
        with open(file, "r+b") as half:
            half.truncate(os.path.getsize(file) // 2)
        raise KeyboardInterrupt

    stops.left = 10**9
    monkeypatch.setattr("torch.save", torn)
    with pytest.raises(KeyboardInterrupt):
        par.fit(stops, small, folder=tmp_path, **SMALL)
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_it_is_seeded_and_leaves_the_generators_alone(small):
    """Whatever was seeded outside: the same weights; another seed, others."""
    def trained(outside, **options):
        pyro.set_rng_seed(outside)
        model, before = small_model(), pyro.util.get_rng_state()
        done = par.fit(model, small, **SMALL | options)
        after = pyro.util.get_rng_state()
        assert torch.equal(before["torch"], after["torch"])
        assert before["random"] == after["random"]
        assert all(np.array_equal(a, b) for a, b in zip(before["numpy"], after["numpy"], strict=True))
        return state(model), done

    first, done = trained(1)
    second, again = trained(2)
    assert same(first, second)
    assert done == again
    for options in ({"seed": 1}, {"seed": 1, "held_out": (small[:20],)}):
        other, _ = trained(1, **options)
        assert not same(first, other)
    assert not same(trained(1, seed=1, held_out=(small[:20],))[0], trained(1, held_out=(small[:20],))[0])  # batches and orders have it too


def test_every_epoch_is_judged_in_the_same_orders(small):
    """Weights that stand still have one held-out figure, while each epoch trains in orders of its own."""
    train, held = zip(*par.fit(small_model(), small, **SMALL | {"lr": 1e-12, "epochs": 3}).history, strict=True)
    assert held == pytest.approx([held[0]] * 3, rel=1e-6)
    assert max(train) - min(train) > 1e-4


def test_modes_come_back_and_training_is_in_training_mode(small):
    modes = set()

    class Watched(par.FVSBN):
        def training_log_prob(self, *data):
            modes.add((self.training, torch.is_grad_enabled()))
            return super().training_log_prob(*data)

    for mode in (True, False):
        modes.clear()
        model = Watched(8).train(mode)
        par.fit(model, small, **SMALL | {"epochs": 1})
        assert {part.training for part in model.modules()} == {mode}
        assert modes == {(True, True), (False, False)}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("folder", [False, True])
def test_held_out_rows_are_not_trained_on(given, folder, tmp_path):
    x = numbered(60, 3)
    ledger = Ledger(x)
    family = RecordingFamily(ledger, 3)
    rows, held = (x[:50], (x[50:].float(),)) if given else (x, 0.3)
    par.fit(family, rows.float(), held_out=held, epochs=3, batch_size=16, progress=False, folder=tmp_path if folder else None)
    ledger.assert_apart()
    known, asked = ledger.fits[0], set(ledger.scores[0])
    assert known | asked == set(range(60))
    assert len(asked) == (10 if given else 18)
    if not given:  # drawn, not the first or the last ones
        assert asked not in (set(range(18)), set(range(42, 60)))
