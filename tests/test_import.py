"""Importing changes no global state and loads no slow library; the top level holds few names, each where the stub says."""

import ast
import importlib.util
import inspect
import pickle
import subprocess
import sys

from pathlib import Path

import pytest
import torch

import pyro_ar as par

SLOW = ("sklearn", "matplotlib", "pandas", "rich", "typer", "arviz", "lightning", "safetensors", "scipy")
NEED_SKLEARN = {"DiscriminantAnalysis", "GenerativeClassifier", "JointImputer", "LogisticRegression", "MixtureDiscriminantAnalysis"}

STATE = """
import sys, torch, pyro
def state():
    return (torch.get_default_dtype(), torch.distributions.Distribution._validate_args, torch.random.get_rng_state().tolist(), torch.is_grad_enabled())
before = state()
import pyro_ar
assert before == state()
for name in pyro_ar.__all__:
    getattr(pyro_ar, name)
assert before == state()
"""


SERVER = """
import os, sys, torch, pyro
for line in sys.stdin:
    if not (child := os.fork()):
        exec(eval(line), {})
        sys.exit()
    failed = os.waitpid(child, 0)[1] != 0
    sys.stdout.write(f"\\0{failed:d}")
    sys.stdout.flush()
"""


@pytest.fixture(scope="module", autouse=True)
def server():
    """A process that has imported torch and Pyro, which take seconds, and nothing else: each `run` forks it."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        run.server = process
        yield
        process.stdin.close()


def run(code):
    """Standard output of `code` in a process of its own."""
    print(repr(code), file=run.server.stdin, flush=True)
    out = "".join(iter(lambda: run.server.stdout.read(1), "\0"))
    assert run.server.stdout.read(1) == "0", f"this failed, as standard error says:\n{code}"
    return out


def slow_after(code):
    return run(f"import sys, torch\n{code}\nprint(*[name for name in {SLOW} if name in sys.modules])").split()


def stub():
    return ast.parse(Path(par.__file__).with_suffix(".pyi").read_text())


def test_import_changes_no_global_state():
    run(STATE)


@pytest.mark.parametrize("code", [
    "import pyro_ar",
    f"import pyro_ar\nfor name in sorted(set(pyro_ar.__all__) - {NEED_SKLEARN}): getattr(pyro_ar, name)",
    "from pyro_ar import comparison, data, order, outputs, testing, visible",
    "import pyro_ar as par\npar.ChowLiuTree.from_data(torch.tensor([[0, 0], [1, 1]])).sample((3,))\npar.MADE(3, hidden=4)().sample((2,))",
], ids=["import", "every name but the classifiers", "namespaces", "two joints"])
def test_what_needs_no_slow_library_loads_none(code):
    assert slow_after(code) == []


def test_a_classifier_loads_scikit_learn_on_first_use():
    assert "sklearn" in slow_after("import pyro_ar as par\npar.GenerativeClassifier")


def test_top_level_is_small_and_holds_no_modules():
    names = dir(par)
    assert names == sorted(par.__all__)
    assert 30 < len(names) <= 45
    assert all(inspect.isclass(getattr(par, name)) or inspect.isfunction(getattr(par, name)) for name in names)


def test_names_do_not_depend_on_what_was_loaded():
    fresh = run("import pyro_ar\nprint(*dir(pyro_ar))")
    full = run("import pyro_ar, pyro_ar.cli.app\nfor name in pyro_ar.__all__: getattr(pyro_ar, name)\nprint(*dir(pyro_ar))")
    assert fresh == full == " ".join(dir(par)) + "\n"


def test_stub_lists_the_names_of_run_time():
    listed, = (node.value for node in stub().body if isinstance(node, ast.Assign))
    assert ast.literal_eval(listed) == par.__all__
    for node in stub().body:
        if isinstance(node, ast.ImportFrom) and node.module is None:
            assert all(inspect.ismodule(getattr(par, alias.name)) for alias in node.names)


def test_every_name_is_public_where_it_comes_from():
    for node in stub().body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            module = getattr(par, node.module)
            for alias in node.names:
                assert getattr(par, alias.name) is getattr(module, alias.name)
                assert alias.name in module.__all__


def test_star_import_brings_the_names_and_nothing_else():
    brought = run("from pyro_ar import *\nprint(*sorted(name for name in dir() if not name.startswith('__')))").split()
    assert brought == dir(par)


def test_namespaces_come_on_first_use():
    assert run("""
import pyro_ar as par
print(par.outputs.Bernoulli.__name__, par.visible.random.__name__, par.order.check_order.__name__, par.comparison.loo.__name__,
      par.classify.reveal.__name__, par.data.digits.__name__, par.plots.curves.__name__, par.inference.fit.__name__)
""").split() == ["Bernoulli", "random", "check_order", "loo", "reveal", "digits", "curves", "fit"]


MOVED = [(namespace, name) for namespace, names in par._MOVED.items() for name in sorted(names)]


@pytest.mark.parametrize(("namespace", "name"), MOVED)
def test_moved_names_say_where_they_went(namespace, name):
    assert name in getattr(par, namespace).__all__
    with pytest.raises(AttributeError, match=rf"pyro_ar\.{name} has moved: it is pyro_ar\.{namespace}\.{name} now"):
        getattr(par, name)
    with pytest.raises(ImportError, match=name):
        exec(f"from pyro_ar import {name}")  # noqa: S102


def test_all_of_the_two_namespaces_is_at_the_top_or_moved_from_it():
    for namespace in ("classify", "comparison"):
        assert set(getattr(par, namespace).__all__) == par._MOVED[namespace] | (set(getattr(par, namespace).__all__) & set(par.__all__))


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="NoSuchJoint"):
        par.NoSuchJoint  # noqa: B018
    assert not hasattr(par, "NoSuchJoint")


def test_distances_are_registered_without_being_asked_for():
    """`torch.distributions.kl_divergence` knows joints though nobody touched `par.comparison`."""
    assert float(run("""
import torch, pyro_ar as par
p, q = (par.FullyIndependent(torch.tensor([[0.0, a]]).log_softmax(-1)) for a in (0.0, 1.0))
print(torch.distributions.kl_divergence(p, q).item())
""")) == pytest.approx(torch.nn.functional.kl_div(torch.tensor([0.0, 1.0]).log_softmax(-1), torch.full((2,), 0.5), reduction="sum").item(), rel=1e-5)


def test_pickles_open_in_a_process_that_has_touched_nothing(tmp_path):
    classifier = par.GenerativeClassifier(par.FullyIndependent).fit(torch.tensor([[0, 0], [1, 1], [0, 1]]), [0, 1, 0])
    path = tmp_path / "classifier.pickle"
    path.write_bytes(pickle.dumps((classifier, par.ChowLiuTree.from_data(torch.tensor([[0, 0], [1, 1]])))))
    loaded = run(f"import pickle\nclassifier, tree = pickle.load(open({str(path)!r}, 'rb'))\nprint(*classifier.predict([[1, 1], [0, 0]]), type(tree).__name__)")
    assert loaded.split() == ["1", "0", "ChowLiuTree"]


@pytest.mark.parametrize(("old", "new"), par._MOVED_MODULES.items())
def test_moved_modules_say_where_they_went(old, new):
    with pytest.raises(AttributeError, match=rf"pyro_ar\.{old} has moved: its names are in pyro_ar\.{new} now"):
        getattr(par, old)
    assert importlib.util.find_spec(f"pyro_ar.{new}")
