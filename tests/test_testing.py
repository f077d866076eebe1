"""The conformance kit notices: every check fails on at least one joint that is broken on purpose."""

import math

import numpy as np
import pyro
import pytest
import torch

from pyro.distributions import TorchDistribution, constraints
from torch import Size

from pyro_ar.checks import IntractableError
from pyro_ar.elliptical import Gaussian
from pyro_ar.joint import Joint
from pyro_ar.mixture import Mixture
from pyro_ar.queries import Given, Marginal
from pyro_ar.tables import FullTable, FullyIndependent, MarkovChain
from pyro_ar.testing import CHECKS, NotApplicable, goodness

pytestmark = pytest.mark.usefixtures("float64")

CHECK = {check.__name__: check for check in CHECKS}


def chain():
    return MarkovChain(torch.tensor([0.4, -1.0]), torch.tensor([[[1.5, -1.0], [-0.5, 2.0]], [[0.3, 1.1], [2.0, -1.0]]]))


def batch_of_chains():
    return MarkovChain(torch.randn(2, 2), torch.randn(2, 2, 2, 2))


def table():
    return FullTable(torch.randn(2, 3, 2))


def forbidding_table():
    return FullTable(torch.tensor([[0.3, -math.inf], [1.0, -math.inf]]))


def gaussian():
    root = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.6, 0.4, 0.7]])
    return Gaussian(torch.tensor([0.5, -1.0, 2.0]), root @ root.mT)


def mixture():
    return Mixture(torch.tensor([0.3, -0.5]), batch_of_chains())


def broken(make, **changes):
    """A joint that differs from a right one in these attributes, also after `with_tensors`."""
    joint = make()
    kind = type(joint)

    rebuild = changes.pop("with_tensors", kind.with_tensors)

    class Broken(kind):
        def with_tensors(self, tensors):
            new = rebuild(self, tensors)
            new.__class__ = Broken
            return new

    for name, change in changes.items():
        setattr(Broken, name, change)
    joint.__class__ = Broken
    return joint


def log_prob(change):
    return lambda self, value: change(Joint.log_prob(self, value))


def conditional(kind, change):
    return lambda self, x: change(kind.conditional_log_prob(self, x))


def tilted(self, shape):
    """Draws from a chain with weaker preferences."""
    weaker = MarkovChain(*(0.7 * t for t in (self.initial_logits, self.transition_logits)))
    return weaker.draw(shape)


def through_torch(self, batch_shape, _instance=None):
    return TorchDistribution.expand(self, Size(batch_shape))


def without_validation(self, batch_shape, _instance=None):
    new = Joint.expand(self, batch_shape)
    new._validate_args = False
    return new


def in_place(self, batch_shape, _instance=None):
    self._batch_shape = Size(batch_shape)
    return self


def filled_with_zeros(self, x, visible):
    """The common wrong marginal: score the value with something put where it is hidden."""
    return torch.where(visible.any(-1), self.log_density(torch.where(visible, x, 0)), 0)


def of_first_row(self, x, visible):
    visible = visible[:1].expand(visible.shape) if visible.ndim > 1 else visible
    return MarkovChain.log_marginal(self, x, visible)


def redrawn(self, x, visible):
    """The common wrong completion: hidden cells drawn without looking at the visible ones after them."""
    return torch.where(visible, x, self.draw(x.shape[:-1]))


def all_redrawn(self, x, visible):
    return MarkovChain.complete(self, x, torch.zeros_like(visible))


def zeros(self, x, visible):
    return torch.where(visible, x, 0)


class Lenient(Given):
    """Forgets that visible cells are fixed."""

    def log_prob(self, value):
        return self.joint.log_prob(value) - self.log_evidence


class Strict(Marginal):
    """Checks the whole value, hidden cells too."""

    def log_prob(self, value):
        self.joint.check_value(value)
        return super().log_prob(value)


class Leaking(Marginal):
    """Hidden cells have no effect on the value, but on the gradient."""

    def log_prob(self, value):
        value = value.nan_to_num(0.0, 0.0) if value.is_floating_point() else value
        return super().log_prob(value) + (value - value.detach()).sum(-1)


def turned(kind):
    def query(self, *args):
        return kind(self, *args)
    return query


def careless(self, value, visible=None):
    x = value.to(self.dtype)
    return x if visible is None else torch.where(visible, x, 0)


def filling_nan_only(self, value, visible=None):
    return Joint.check_value(self, value.nan_to_num(0.0) if visible is not None else value)


def wrong_error(self, x, visible):
    if not bool(torch.isfinite(x).all()) or bool((x != x.round()).any()):
        raise RuntimeError("bad")


def silent(self, x, visible):
    """Accepts everything, and scores it as something else."""
    x.clamp_(0, 1).round_()


def caching(self):
    if not torch.is_grad_enabled():
        return FullTable._flat(self)
    if not hasattr(self, "_kept"):
        self._kept = FullTable._flat(self)
    return self._kept


def keeping(self, value):
    self._last = Joint.log_prob(self, value)
    return self._last


def first_only(kind):
    """Ignores batch dimensions put left of the tensors."""
    def with_tensors(self, tensors):
        own = {name: t[(0,) * (t.ndim - self.tensors[name].ndim)] for name, t in tensors.items()}
        return kind.with_tensors(self, own)
    return with_tensors


def halved_gradient(self, value):
    log_p = Joint.log_prob(self, value)
    return log_p.detach() + 0.5 * (log_p - log_p.detach())


def when_many(change, right=MarkovChain.log_density):
    """A shortcut for many rows: `change(self, right answer)` for 16 rows or more."""
    def ask(self, x, *more):
        answer = right(self, x, *more)
        return change(self, answer) if x.ndim > 1 and len(x) >= 16 else answer
    return ask


def steep(self):
    return torch.cat([t.flatten() for t in self.tensors.values()]).abs().amax() > 30


def in_single_precision(self, x):
    return MarkovChain.log_density(self, x).float()


def refusing(self, visible):
    raise IntractableError("no answer; ask another")


def one_short(self, expand=True):
    return Joint.enumerate_support(self, expand)[:-1]


BROKEN = {
    "shapes_agree": [
        lambda: broken(chain, log_prob=log_prob(lambda p: p - p.mean() + 1)),
        lambda: broken(batch_of_chains, _spread=lambda self, answer, x: answer.sum(-1, keepdim=True)),
        lambda: broken(chain, sample=lambda self, shape=Size(): Joint.sample(self, shape).long()),
        lambda: broken(chain, draw=lambda self, shape: MarkovChain.draw(self, shape[-1:])),
    ],
    "answers_no_rows": [
        lambda: broken(chain, log_marginal=lambda self, x, v: MarkovChain.log_marginal(self, x, v) + 0 * x.amin()),
        lambda: broken(chain, log_density=lambda self, x: MarkovChain.log_density(self, x) if x.numel() else torch.zeros(())),
        lambda: broken(chain, complete=lambda self, x, v: MarkovChain.complete(self, x, v) if x.numel() else x.flatten(0, 1)),
        lambda: broken(chain, draw=lambda self, shape: MarkovChain.draw(self, shape).float()),
    ],
    "expands": [
        lambda: broken(chain, expand=through_torch),
        lambda: broken(chain, expand=without_validation),
        lambda: broken(chain, expand=in_place),
        lambda: broken(chain, conditional_log_prob=lambda self, x: chain().conditional_log_prob(x)),
        lambda: broken(batch_of_chains, conditional_log_prob=lambda self, x: MarkovChain(
            *self.tensors.values()).conditional_log_prob(x)),
        lambda: broken(mixture, component_log_joint=lambda self, *asked: Mixture(self.log_weights, self.joints)
                       .component_log_joint(*asked)),
        lambda: broken(chain, _spread=lambda self, answer, x: answer, marginal=lambda self, v: chain().marginal(v)),
    ],
    "conditionals_sum_to_log_prob": [
        lambda: broken(chain, conditional_log_prob=conditional(MarkovChain, lambda p: p * 1.001)),
        lambda: broken(chain, conditional_log_prob=conditional(MarkovChain, lambda p: p.sum(-1))),
    ],
    "rows_stand_alone": [
        lambda: broken(chain, log_density=when_many(lambda self, p: p + 1e-6)),
        lambda: broken(chain, log_density=when_many(lambda self, p: p - p.mean() + p.mean().round(decimals=4))),  # by the others
        lambda: broken(chain, log_density=when_many(lambda self, p: p.detach() + 0.999 * (p - p.detach()))),  # gradient alone
        lambda: broken(chain, log_density=when_many(lambda self, p: p + 0.1 * steep(self))),  # extreme parameters alone
        lambda: broken(chain, log_density=when_many(lambda self, p: p.clamp(min=-30.0))),
        lambda: broken(chain, log_density=when_many(lambda self, p: p.exp().add(1).sub(1).log())),
        lambda: broken(batch_of_chains, log_density=when_many(lambda self, p: p + 1e-6)),
        lambda: broken(chain, log_marginal=when_many(lambda self, p: p + 1e-6, MarkovChain.log_marginal)),
        lambda: broken(chain, log_marginal=when_many(lambda self, p: p.detach(), MarkovChain.log_marginal)),
        lambda: broken(chain, conditional_log_prob=when_many(lambda self, p: p.roll(1, 0), MarkovChain.conditional_log_prob)),
        lambda: broken(gaussian, log_density=when_many(lambda self, p: p * (1 + 1e-6), Gaussian.log_density)),
    ],
    "normalises": [lambda: broken(table, log_prob=log_prob(lambda p: p + 1e-5))],
    "conditionals_normalise": [
        lambda: broken(chain, conditional_log_prob=conditional(MarkovChain, lambda p: p.roll(1, -1))),
        lambda: broken(gaussian, conditional_log_prob=conditional(Gaussian, lambda p: p + 1e-4)),
    ],
    "is_causal": [
        lambda: broken(chain, order=torch.arange(3).flip(0)),
        lambda: broken(gaussian, order=torch.tensor([0, 2, 1])),
        lambda: broken(chain, conditional_log_prob=conditional(MarkovChain, lambda p: p + 1e-12 * p.sum(-1, keepdim=True))),
    ],
    "samples_follow_log_prob": [
        lambda: broken(chain, draw=tilted),
        lambda: broken(gaussian, draw=lambda self, shape: self.loc + 0.8 * (Gaussian.draw(self, shape) - self.loc)),
        lambda: broken(gaussian, draw=lambda self, shape: torch.stack(  # right marginals, independent
            [Gaussian.draw(self, shape)[..., i] for i in range(3)], -1)),
        lambda: broken(lambda: FullyIndependent(torch.randn(14, 2)), draw=lambda self, shape: torch.ones(*shape, 14)),
    ],
    "enumeration_is_sane": [
        lambda: broken(lambda: FullyIndependent(torch.randn(14, 2)), has_enumerate_support=True),
        lambda: broken(gaussian, has_enumerate_support=True),
        lambda: broken(table, enumerate_support=one_short),
        lambda: broken(batch_of_chains, enumerate_support=lambda self, expand=True: Joint.enumerate_support(self, True)),
    ],
    "marginal_is_right": [
        lambda: broken(chain, log_marginal=filled_with_zeros),
        lambda: broken(chain, log_marginal=filled_with_zeros, coherent=False),
        lambda: broken(gaussian, log_marginal=filled_with_zeros),
        lambda: broken(chain, methods=refusing),
    ],
    "patterns_have_any_shape": [
        lambda: broken(chain, log_marginal=of_first_row),
        lambda: broken(batch_of_chains, log_marginal=of_first_row),
    ],
    "given_is_right": [
        lambda: broken(chain, given=turned(Lenient)),
        lambda: broken(gaussian, given=turned(Lenient)),
        lambda: broken(chain, most_likely=zeros),
        lambda: broken(gaussian, most_likely=zeros),
        lambda: broken(chain, log_marginal=filled_with_zeros, coherent=False),
    ],
    "given_samples_follow_log_prob": [
        lambda: broken(chain, complete=redrawn),
        lambda: broken(gaussian, complete=redrawn),
        lambda: broken(chain, complete=all_redrawn),
        lambda: broken(gaussian, complete=lambda self, x, visible: Gaussian.complete(self, x, visible) + 1e-12),
    ],
    "impossible_evidence_is_refused": [
        lambda: broken(forbidding_table, log_marginal=lambda self, x, v: FullTable.log_marginal(self, x, v).clamp(min=-1e3)),
        lambda: broken(forbidding_table, log_marginal=lambda self, x, v: FullTable.log_marginal(self, x, v)
                       + 0 * self._flat().sum()),
    ],
    "hidden_cells_are_never_read": [
        lambda: broken(chain, check_value=filling_nan_only),
        lambda: broken(gaussian, marginal=turned(Leaking)),
        lambda: broken(chain, marginal=turned(Strict)),
    ],
    "hidden_cells_are_never_read_in_pyro": [lambda: broken(chain, marginal=turned(Strict))],
    "refuses_wrong_shapes": [lambda: broken(chain, check_value=careless), lambda: broken(gaussian, check_value=careless)],
    "refuses_bad_values": [
        lambda: broken(chain, _check_support=silent),
        lambda: broken(gaussian, _check_support=lambda self, x, visible: None),
        lambda: broken(chain, _check_support=wrong_error),
        lambda: broken(chain, expand=without_validation),
    ],
    "refuses_bad_values_in_pyro": [
        lambda: broken(chain, _check_support=silent),
        lambda: broken(chain, _check_support=wrong_error),
        lambda: broken(chain, expand=without_validation),
    ],
    "accepts_all_number_types": [
        lambda: broken(chain, log_prob=lambda self, x: Joint.log_prob(self, x) * (1 if x.is_floating_point() else 1.01)),
        lambda: broken(chain, check_value=lambda self, x, v=None: Joint.check_value(self, x + 0.0 if x.dtype != torch.bool else x ^ x, v)),
    ],
    "survives_pickle": [lambda: broken(chain)],  # a class inside a function has no name to be found by
    "survives_deepcopy": [lambda: broken(chain, log_prob=keeping)],
    "differentiates_twice_in_turn": [lambda: broken(table, _flat=caching)],
    "precisions_agree": [lambda: broken(chain, log_density=in_single_precision)],
    "runs_on_cuda": [lambda: broken(chain, order=torch.arange(3))],
    "plates_scale": [
        lambda: broken(chain, expand=through_torch, log_prob=log_prob(lambda p: p / max(p.numel(), 1))),
        lambda: broken(chain, expand=lambda self, shape, _instance=None: self),
    ],
    "enumerates_a_class_above": [
        lambda: broken(chain, with_tensors=first_only(MarkovChain)),
        lambda: broken(chain, marginal=turned(Strict)),
    ],
    "infers_the_likeliest_class": [lambda: broken(chain, with_tensors=first_only(MarkovChain))],
    "enumerates_as_latent": [lambda: broken(table, enumerate_support=one_short)],
    "runs_nuts": [
        lambda: broken(chain, log_prob=halved_gradient),
        lambda: broken(chain, log_prob=log_prob(lambda p: p + math.nan)),
    ],
    "trains_by_svi": [
        lambda: broken(chain, with_tensors=lambda self, tensors: MarkovChain.with_tensors(
            self, {name: t.detach() for name, t in tensors.items()})),
        lambda: broken(chain, log_prob=log_prob(lambda p: p + p.ndim)),
    ],
    "predicts": [
        lambda: broken(chain, draw=lambda self, shape: MarkovChain.draw(self, shape[-1:])),
        lambda: broken(forbidding_table, draw=lambda self, shape: torch.ones(*shape, 2)),
    ],
    "trace_scores_once_and_again": [lambda: broken(chain, log_prob=log_prob(lambda p: p + 1e-6 * torch.randn_like(p)))],
}
CASES = [(name, k) for name, mutants in BROKEN.items() for k in range(len(mutants))]


def test_every_check_has_a_broken_joint() -> None:
    assert set(BROKEN) == set(CHECK)


@pytest.mark.parametrize(("name", "k"), CASES, ids=lambda value: str(value))
def test_notices(name, k) -> None:
    joint = BROKEN[name][k]()
    try:
        CHECK[name](joint)
    except NotApplicable as reason:
        if name == "runs_on_cuda":
            pytest.skip(str(reason))
        pytest.fail(f"not noticed: {reason}")
    except (AssertionError, ValueError, RuntimeError, TypeError, NotImplementedError, UserWarning):
        return
    pytest.fail("not noticed")


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "survives_pickle"])
@pytest.mark.parametrize("make", [chain, gaussian, forbidding_table], ids=lambda make: make.__name__)
def test_passes_the_same_joint_unbroken(make, name) -> None:
    """So that a mutant fails for what was broken, not for how it was made."""
    try:
        CHECK[name](broken(make))
    except NotApplicable as reason:
        pytest.skip(str(reason))


class AnyOrder(Joint):
    """Two binary variables and one table per order: honest, but not coherent."""

    coherent = False
    num_states = (2, 2)
    num_parameters = 6
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, first, second, *, validate_args=None):
        self.first, self.second = first, second
        batch = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
        super().__init__({"first": first, "second": second}, batch, Size([2]), validate_args=validate_args)

    def _table(self):
        return FullTable(self.first, (2, 2)).expand(self.batch_shape)

    def log_density(self, x):
        return self._table().log_density(x)

    def conditional_log_prob(self, x):
        return self._table().conditional_log_prob(x)

    def draw(self, shape):
        return self._table().draw(shape)

    def methods(self, visible):
        return np.full(tuple(visible.shape[:-1]), "visible-first chain")

    def answering(self, visible):
        backwards = (~visible[..., 0] & visible[..., 1])[..., None, None]
        return FullTable(torch.where(backwards, self.second, self.first), (2, 2))


@pytest.mark.parametrize("name", list(CHECK))
@pytest.mark.parametrize("batch", [(), (3,)])
def test_passes_an_honest_joint_that_is_not_coherent(name, batch) -> None:
    try:
        CHECK[name](AnyOrder(torch.randn(*batch, 2, 2), torch.randn(*batch, 2, 2)))
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_notices_one_that_claims_to_be_coherent() -> None:
    joint = AnyOrder(torch.randn(2, 2), torch.randn(2, 2))
    joint.coherent = True
    with pytest.raises(AssertionError, match="against enumeration"):
        CHECK["marginal_is_right"](joint)


def test_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    for name in ("samples_follow_log_prob", "trains_by_svi"):
        CHECK[name](chain())
    assert torch.equal(before, torch.get_rng_state())
    assert len(pyro.get_param_store()) == 0


def test_says_where_it_does_not_apply() -> None:
    with pytest.raises(NotApplicable, match="continuous"):
        CHECK["normalises"](gaussian())
    with pytest.raises(NotApplicable, match="more than the checks enumerate"):
        CHECK["normalises"](FullyIndependent(torch.randn(14, 2)))
    with pytest.raises(NotApplicable, match="positive probability"):
        CHECK["impossible_evidence_is_refused"](chain())


def test_p_values_of_a_fair_coin_are_uniform() -> None:
    """A two-cell test must keep its false-alarm rate; 2,000 tests, rate of this test itself about 1e-5."""
    counts = torch.distributions.Binomial(1000, torch.tensor(0.5)).sample((2000,))
    p = torch.tensor([goodness.p_value(torch.tensor([0.5, 0.5]), torch.stack([c, 1000 - c])) for c in counts])
    assert abs(float((p < 0.1).double().mean()) - 0.1) < 0.03
    assert abs(float((p < 0.01).double().mean()) - 0.01) < 0.01


def test_rare_cells_are_merged_and_impossible_ones_refused() -> None:
    probs = torch.tensor([0.98, 0.01, 0.005, 0.005, 0.0])
    assert goodness.p_value(probs, torch.tensor([980, 10, 5, 5, 0])) > 0.5
    assert goodness.p_value(probs, torch.tensor([980, 10, 5, 4, 1])) == 0
