"""Files of families: all that a family is, nothing that runs, and nothing half written."""

import dataclasses
import json
import math
import pickle

from functools import partial

import pytest
import torch

from registered import ANY_SHAPE, IMAGE_VARIANTS, OF_IMAGES, VARIANTS
from safetensors.torch import save_file
from torch import nn

import pyro_ar as par

from pyro_ar.outputs import Bernoulli, Categorical, MixtureOfNormals, Normal, Output, PerVariable

LEVELS = par.outputs.DiscretisedLogisticMixture(5, 2)
MIXED = PerVariable([Bernoulli(), Normal(0.1), Categorical(3, "one-hot"), Bernoulli()])
LATER = PerVariable([par.outputs.RestrictedBernoulli(0.1, 0.4), par.outputs.TiedCategorical([[0, 2], [1]], "one-hot"), par.outputs.Logistic(0.1),
                     par.outputs.MixtureOfLogistics(2, 0.2)])

FAMILIES = {
    **{name: partial(make, (1, 2, 3), context_dim=2) for name, make in {**ANY_SHAPE, **OF_IMAGES, **VARIANTS}.items()},
    **{name: partial(make, (3, 2, 3), context_dim=2) for name, make in IMAGE_VARIANTS.items()},
    "NADE in an order": lambda: par.NADE((2, 3), 4, Categorical(5, "one-hot"), order="random"),
    "real MADE": lambda: par.MADE(6, (5, 7), MixtureOfNormals(3), activation="tanh"),
    "OrderlessNADE of levels": lambda: par.OrderlessNADE(6, 4, LEVELS, activation="relu"),
    "RecurrentAR without places": lambda: par.RecurrentAR(6, 4, Categorical(3), cell="lstm", layers=2, width=3, places=False),
    "real CausalTransformer in an order": lambda: par.CausalTransformer((1, 2, 3), 8, 2, 4, MixtureOfNormals(3), order="random", key_heads=2),
    "mixed transformer": lambda: par.CausalTransformer(4, 8, 1, 2, MIXED, order=[2, 0, 3, 1]),
    "mixed": lambda: par.NADE(4, 3, MIXED, order=[2, 0, 3, 1]),
    "own states": lambda: par.FVSBN(3, PerVariable.of_states((2, 4, 1)), order="random"),
    "over orders": lambda: par.OverOrders(par.OrderlessNADE(6, 4), 3),
    "double": lambda: par.NADE(5, 4, context_dim=2).double(),
}


def scored(family, x):
    return family(torch.eye(2)[:1].to(x.dtype) if family.context_dim else None).log_prob(x)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())
def test_files_hold_everything(make, tmp_path):
    family = make()
    path = tmp_path / "family.safetensors"
    par.save(family, path)
    torch.manual_seed(99)  # what is drawn on construction does not matter
    again = par.load(path)
    assert type(again) is type(family)
    dtype = next(family.parameters()).dtype
    x = family(torch.eye(2)[:1].to(dtype) if family.context_dim else None).sample((3,))
    assert torch.equal(scored(again, x), scored(family, x))
    assert scored(again, x).dtype == dtype
    assert [p.name for p in tmp_path.iterdir()] == ["family.safetensors"]  # no half-written file beside it
    par.save(again, path)
    assert torch.equal(scored(par.load(path), x), scored(family, x))


class DroppingNet(par.Net):
    """Options that change no shape: heads, a dropout, a buffer."""

    def __init__(self, n, output, heads, dropout):
        super().__init__(n, output)
        self.heads, self.drop = heads, nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.randn(n, n, output.raw))
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x, context=None):
        m = x.shape[-1]
        weight = self.weight[:m, :m] * torch.ones(m, m).tril(-1).unsqueeze(-1)
        return self.drop(torch.einsum("rj,ijk->rik", x, weight) * self.heads) * self.scale


class Dropping(par.Family):
    def __init__(self, n, *, heads=1, dropout=0.0, output=None, order=None, **more):
        output = output or Bernoulli()
        super().__init__(DroppingNet(n, output, heads, dropout), output, order=order)
        self.more = more


class DeeperDropping(Dropping):
    """Passes on what it was told."""

    def __init__(self, n, depth=2):
        super().__init__(n, heads=depth, dropout=0.25)


@dataclasses.dataclass(frozen=True)
class Shifted(Output):
    by: float = 0.0
    num_states = 2
    support = torch.distributions.constraints.boolean

    @property
    def raw(self):
        return 1

    def distribution(self, raw):
        return Bernoulli().distribution(raw + self.by)


def test_options_that_change_no_shape_are_kept(tmp_path):
    family = Dropping(4, heads=7, dropout=0.5, output=Shifted(0.5), order=[3, 1, 0, 2], label="kept", sizes=(1, 2))
    family.net.scale = torch.full((1,), 0.3)
    known = {"Dropping": Dropping, "Shifted": Shifted}
    par.save(family.eval(), tmp_path / "file")
    again = par.load(tmp_path / "file", known).eval()
    assert again.net.heads == 7
    assert again.net.drop.p == 0.5
    assert again.output == Shifted(0.5)
    assert again.more == {"label": "kept", "sizes": (1, 2)}
    x = torch.randint(2, (5, 4)).float()
    assert torch.equal(again().log_prob(x), family().log_prob(x))
    with pytest.raises(ValueError, match="unknown class"):
        par.load(tmp_path / "file", {"Dropping": Dropping})
    deeper = DeeperDropping(4, depth=3)
    assert deeper.arguments == {"n": 4, "depth": 3}  # of the most derived class
    par.save(deeper, tmp_path / "deeper")
    assert par.load(tmp_path / "deeper", {"DeeperDropping": DeeperDropping}).net.heads == 3


def test_what_says_not_how_it_was_made_is_refused(tmp_path):
    with pytest.raises(ValueError, match="derive a class of your own"):
        par.save(par.Family(DroppingNet(3, Bernoulli(), 1, 0.0), Bernoulli()), tmp_path / "file")
    with pytest.raises(ValueError, match=r"does not know how to write model\.arguments\.cell.*'Linear'"):
        par.save(Dropping(3, cell=nn.Linear(2, 2)), tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_file_from_a_stranger_runs_no_code(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (ran.touch, ())

    (tmp_path / "evil").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="no safetensors file"):
        par.load(tmp_path / "evil")
    assert not ran.exists()


def of_class(name, number=0, **parts):
    return {"class": name, "number": number, "parts": parts}


def arguments(**values):
    return {"dict": list(map(list, values.items()))}


def state(**tensors):
    return {"dict": [[name, {"tensor": held, "of": "torch.float32", "stored": shape}] for name, (held, shape) in tensors.items()]}


THREE = {"arguments": arguments(event_shape=3), "dtype": {"dtype": "torch.float32"}, "training": {"list": [True, True]}, "frozen": {"list": []}}


@pytest.mark.parametrize(("head", "match"), [
    ([], "no model"),
    ({"tuple": []}, "no model"),
    (of_class("os", arguments=arguments()), "unknown class"),
    (of_class(["FVSBN"], arguments=arguments()), "do not fit"),
    (of_class("posix.system", arguments=arguments(command="true")), "unknown class"),
    (of_class("MixtureOfNormals"), "do not fit"),
    (of_class("MixtureOfNormals", arguments=arguments(components=[3])), "list without its kind"),
    (of_class("MixtureOfNormals", arguments=arguments(components={"surprise": 3})), "unknown kind"),
    (of_class("FVSBN", arguments=arguments(event_shape=3, surprise=1)), "do not fit"),
    (of_class("FVSBN", **THREE, state=state(**{"net.weight": ("a", [1])})), "do not fit"),
    (of_class("FVSBN", **THREE, state=state(**{"net.weight": ("b", [1])})), "do not fit"),
    (of_class("FVSBN", **THREE, state=state(**{"net.weight": ("a", [2])})), r"tensor a must be torch.float32 of shape \[2\]"),
    (of_class("FVSBN", arguments=arguments(event_shape=0)), "event_shape must be"),
    (of_class("FullyIndependent", arguments=arguments(logits={"same": 7})), "do not fit"),
    (of_class("GenerativeClassifier", arguments=arguments(likelihood={"type": "subprocess.Popen"})), "unknown class"),
    (of_class("DiscriminantAnalysis", arguments=arguments(), learnt=arguments(predict=1)), "no fit leaves"),
    (of_class("DiscriminantAnalysis", arguments=arguments(), learnt=arguments(__class__=1)), "no fit leaves"),
    (of_class("PatternNet", arguments=arguments(), learnt=arguments(mean_={"array": "|O", "shape": [1]})), "array of objects"),
])
def test_configurations_that_do_not_fit_are_named(head, match, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "file", {"format": "pyro_ar-3", "pyro_ar": json.dumps(head)})
    with pytest.raises(ValueError, match=match):
        par.load(tmp_path / "file")


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(ValueError, match="written by save"):
        par.load(path)
    par.save(par.FVSBN(4), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="torn"):
        par.load(path)
    for about, match in (({}, r"not written by pyro_ar\.save"), ({"format": "pyro_ar-1", "pyro_ar": "{}"}, "earlier pyro_ar .format pyro_ar-1., which lost"),
                         ({"format": "pyro_ar-2", "pyro_ar": "{}"}, "earlier pyro_ar .format pyro_ar-2., which knew families alone"),
                         ({"format": "pyro_ar-3", "pyro_ar": "{"}, "no readable configuration"),
                         ({"format": "pyro_ar-3", "pyro_ar": "[" * 10**5}, "no readable configuration"),
                         ({"format": "pyro_ar-3"}, "no readable configuration")):
        save_file({"a": torch.zeros(1)}, path, about)
        with pytest.raises(ValueError, match=match):
            par.load(path)


def test_nan_weights_are_not_saved(tmp_path):
    family = par.FVSBN(4)
    with torch.no_grad():
        next(family.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        par.save(family, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_places_that_are_none_are_named(tmp_path):
    with pytest.raises(ValueError, match="path of a file"):
        par.save(par.FVSBN(6), tmp_path)
    with pytest.raises(ValueError, match="folder that exists"):
        par.save(par.FVSBN(6), tmp_path / "none" / "file")
