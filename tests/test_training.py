"""Training, its files, and what it must reach on real digits."""

import itertools
import math
import os
import pickle

import numpy as np
import pyro
import pytest
import torch

from pyro.infer import SVI, Trace_ELBO
from safetensors.torch import save_file

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


def test_an_interrupted_run_goes_on(binary, tmp_path):
    train, _ = binary
    torch.manual_seed(0)
    first = par.FVSBN(64)
    second, whole = par.FVSBN(64), par.FVSBN(64)
    second.load_state_dict(first.state_dict())
    whole.load_state_dict(first.state_dict())
    stops = _StopAfter(second, 2 * math.ceil(1260 / 128) + 3)
    with pytest.raises(KeyboardInterrupt):
        par.fit(stops, train, epochs=4, folder=tmp_path, **QUICK)
    assert (tmp_path / "last.ckpt").exists()
    stops.left = 10**9
    resumed = par.fit(stops, train, epochs=4, folder=tmp_path, **QUICK)
    straight = par.fit(whole, train, epochs=4, **QUICK)
    assert resumed.epochs == straight.epochs == 4
    assert resumed.best_nats == pytest.approx(straight.best_nats, rel=0.02)  # the order of the batches is another


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


@pytest.mark.parametrize("make", [
    lambda: par.FVSBN(6, context_dim=2), lambda: par.NADE((2, 3), 4, par.outputs.Categorical(5, "one-hot"), order="random"),
    lambda: par.MADE(6, (5, 7), par.outputs.MixtureOfNormals(3), activation="tanh"),
    lambda: par.OrderlessNADE(6, 4, LEVELS, activation="relu"),
], ids=["FVSBN", "NADE", "MADE", "OrderlessNADE"])
def test_files_hold_everything(make, tmp_path):
    family = make()
    path = tmp_path / "family.safetensors"
    par.save(family, path)
    again = par.load(path)
    assert type(again) is type(family)
    assert again.config == family.config
    context = torch.eye(family.context_dim)[:1] if family.context_dim else None
    x = family(context).sample((3,))
    assert torch.equal(again(context).log_prob(x), family(context).log_prob(x))
    assert [p.name for p in tmp_path.iterdir()] == ["family.safetensors"]  # no half-written file beside it


def test_a_file_from_a_stranger_runs_no_code(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (ran.touch, ())

    (tmp_path / "evil").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="no safetensors file"):
        par.load(tmp_path / "evil")
    assert not ran.exists()


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(ValueError, match="written by save"):
        par.load(path)
    par.save(par.FVSBN(4), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="torn"):
        par.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"not written by pyro_ar\.save"):
        par.load(path)
    for family, match in (('{"family": "os", "config": {}}', "unknown family"), ("{", "no readable configuration"),
                          ('{"family": "FVSBN", "config": {"event_shape": [3]}}', "do not fit")):
        save_file({"a": torch.zeros(1)}, path, {"format": "pyro_ar-1", "pyro_ar": family})
        with pytest.raises(ValueError, match=match):
            par.load(path)


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    recipe = par.comparison.NeuralModel(lambda: par.FVSBN(3, par.outputs.Categorical(4)), num_states=(2, 4, 3))
    with pytest.raises(ValueError, match="numbers of states of their own"):
        par.save(recipe.family(), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
    par.save(recipe.make(), tmp_path / "a.safetensors")


def test_nan_weights_are_not_saved(tmp_path):
    family = par.FVSBN(4)
    with torch.no_grad():
        next(family.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        par.save(family, tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("data", "options", "match"), [
    ((torch.zeros(5, 3),), {}, r"rows of shape \(N, \(4,\)\)"),
    ((torch.zeros(5, 4), torch.zeros(5, 2)), {}, "context_dim=0"),
    ((torch.zeros(5, 4), None, torch.ones(5, 3).bool()), {}, "visible must be bool"),
    ((torch.zeros(1, 4),), {}, "at least 2 rows"),
    ((torch.zeros(5, 4),), {"held_out": 1.5}, "share between 0 and 1"),
    ((torch.zeros(5, 4),), {"lr": -1.0}, "lr must be positive"),
    ((torch.zeros(5, 4),), {"epochs": 0}, "at least 1"),
    ((torch.full((5, 4), 7.0),), {"epochs": 1, "progress": False}, "states 0 to 1"),
    ((torch.full((5, 4), math.nan),), {"epochs": 1, "progress": False}, "no NaN"),
])
def test_bad_input_is_named(data, options, match):
    with pytest.raises(ValueError, match=match):
        par.fit(par.FVSBN(4), *data, **options)


def test_double_precision_survives_the_file(tmp_path):
    family = par.NADE(5, 4, context_dim=2).double()
    par.save(family, tmp_path / "file")
    context = torch.eye(2)
    x = family(context).sample()
    again = par.load(tmp_path / "file")
    assert again(context).dtype == torch.float64
    assert torch.equal(again(context).log_prob(x), family(context).log_prob(x))


@pytest.mark.parametrize("make", [lambda: par.OrderlessNADE(6, 4, context_dim=2), lambda: par.NADE(6, 4, context_dim=2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.uint8])
def test_data_of_any_type_train(make, dtype):
    x = torch.randint(0, 2, (40, 6)).to(dtype)
    par.fit(make(), x, torch.eye(2).double()[torch.arange(40) % 2], epochs=1, **QUICK)


def test_a_torn_checkpoint_or_one_of_another_model_is_named(tmp_path):
    x = torch.randint(0, 2, (40, 6)).float()
    par.fit(par.FVSBN(6), x, epochs=1, folder=tmp_path, **QUICK)
    with pytest.raises(ValueError, match="of another model"):
        par.fit(par.NADE(6, 4), x, epochs=1, folder=tmp_path, **QUICK)
    (tmp_path / "last.ckpt").write_bytes(b"abc")
    with pytest.raises(ValueError, match="is torn"):
        par.fit(par.FVSBN(6), x, epochs=1, folder=tmp_path, **QUICK)


@pytest.mark.parametrize(("call", "match"), [
    (lambda x, path: par.fit(3, x), "wants a family"),
    (lambda x, path: par.fit(par.FVSBN(6), x, held_out=1), "share of the rows"),
    (lambda x, path: par.fit(par.FVSBN(6), x, epochs=1.5), "whole numbers"),
    (lambda x, path: par.fit(par.FVSBN(6), x, visible=[[True] * 6] * 40), "visible must be bool"),
    (lambda x, path: par.save(par.OverOrders(par.OrderlessNADE(6, 4), 2), path / "file"), "wants a family"),
    (lambda x, path: par.save(par.FVSBN(6), path), "path of a file"),
    (lambda x, path: par.save(par.FVSBN(6), path / "none" / "file"), "folder that exists"),
])
def test_wrong_kinds_of_arguments_are_named(call, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        call(torch.zeros(40, 6), tmp_path)
