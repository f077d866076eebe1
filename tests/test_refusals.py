"""What must never pass in silence: dtypes that round states, numbers that are none, and parameters that do not fit each other."""

import math

import pytest
import torch

from torch.distributions.transforms import ExpTransform

import pyro_ar as par

from pyro_ar import BayesNet, FullTable, FullyIndependent, Gaussian, MarkovChain, Mixture, StudentT, outputs
from pyro_ar.changes.transformed import Transformed
from pyro_ar.elliptical import LowRankGaussian, LowRankStudentT

inf, nan = math.inf, math.nan
eye, zeros = torch.eye, torch.zeros


def elliptical(dtype=torch.float32, *batch):
    loc, matrix, factor = (torch.randn(*batch, *shape).to(dtype) for shape in ((3,), (3, 3), (3, 2)))
    matrix = matrix @ matrix.mT + eye(3, dtype=dtype)
    diag = torch.rand(*batch, 3).to(dtype) + 0.5
    return {
        "gaussian": Gaussian(loc, matrix), "student": StudentT(4.0, loc, matrix),
        "low rank": LowRankGaussian(loc, factor, diag), "low rank student": LowRankStudentT(4.0, loc, factor, diag),
    }


def real_joints(dtype=torch.float32):
    found = elliptical(dtype)
    return {
        **found,
        "transformed": Transformed(found["gaussian"], ExpTransform()),
        "mixture": Mixture(zeros(2, dtype=dtype), elliptical(dtype, 2)["student"]),
        "mixture of a list": Mixture(zeros(2, dtype=torch.float64), [found["gaussian"], found["low rank"]]),
        "chain": par.NADE(3, 4, output=outputs.Normal()).to(dtype)(),
    }


@pytest.mark.parametrize("name", list(real_joints()))
@pytest.mark.parametrize("values", [torch.float64, torch.float16, torch.int64])
def test_joints_over_real_numbers_take_values_of_any_dtype(name, values):
    """As tables and chains do: the values are rounded to the dtype of the joint, and so are its answers."""
    joint = real_joints()[name]
    x = joint.sample((6,)).clamp(1, 4).round().to(values)
    visible = torch.rand(6, 3) < 0.5
    visible[:, 2] = visible.any(-1) & visible[:, :2].all(-1)  # prefixes, for the chain
    visible[:, 1] &= visible[:, 0]
    same = x.float()
    torch.testing.assert_close(joint.log_prob(x), joint.log_prob(same))
    torch.testing.assert_close(joint.conditional_log_prob(x), joint.conditional_log_prob(same))
    torch.testing.assert_close(joint.marginal(visible).log_prob(x), joint.marginal(visible).log_prob(same))
    given = joint.given(x, visible)
    torch.testing.assert_close(given.log_prob(x), joint.given(same, visible).log_prob(same))
    drawn = given.sample((2,))
    assert joint.log_prob(x).dtype == drawn.dtype == torch.float32 or name == "mixture of a list"
    assert torch.equal(drawn[:, visible], same[visible].expand(2, -1))


def test_a_value_beyond_the_dtype_is_refused():
    with pytest.raises(ValueError, match="finite"):
        Gaussian(zeros(2), eye(2)).log_prob(torch.tensor([0.0, 1e300], dtype=torch.float64))


@pytest.mark.parametrize("make", [
    lambda a, b: Gaussian(zeros(2, dtype=a), eye(2, dtype=b)),
    lambda a, b: StudentT(torch.ones((), dtype=b), zeros(2, dtype=a), eye(2, dtype=a)),
    lambda a, b: StudentT(3.0, zeros(2, dtype=a), eye(2, dtype=b)),
    lambda a, b: LowRankGaussian(zeros(2, dtype=a), torch.ones(2, 1, dtype=b), torch.ones(2, dtype=a)),
    lambda a, b: LowRankStudentT(3.0, zeros(2, dtype=a), torch.ones(2, 1, dtype=a), torch.ones(2, dtype=b)),
    lambda a, b: Mixture(zeros(2), [Gaussian(zeros(2, dtype=t), eye(2, dtype=t)) for t in (a, b)]),
])
def test_parameters_of_two_dtypes_are_refused(make):
    make(torch.float64, torch.float64)
    for a, b in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        with pytest.raises(ValueError, match="one dtype"):
            make(a, b)


# The largest number of states that a dtype holds: 0 to 256 of bfloat16 are exact, 257 is rounded to 256.
MOST = {torch.bfloat16: 257, torch.float16: 2049}
DISCRETE = {
    "full table": lambda k, dtype: FullTable(zeros(k, dtype=dtype)),
    "independent": lambda k, dtype: FullyIndependent(zeros(2, k, dtype=dtype)),
    "independent, ragged": lambda k, dtype: FullyIndependent([zeros(2, dtype=dtype), zeros(k, dtype=dtype)]),
    "chain": lambda k, dtype: MarkovChain(zeros(2, dtype=dtype), [zeros(2, k, dtype=dtype)]),
    "net": lambda k, dtype: BayesNet([(), (0,)], [zeros(2, dtype=dtype), zeros(2, k, dtype=dtype)]),
    "mixture": lambda k, dtype: Mixture(zeros(2, dtype=dtype), FullyIndependent(zeros(2, 2, k, dtype=dtype))),
    "neural": lambda k, dtype: par.FVSBN(2, outputs.Categorical(k, "level")).to(dtype)(),
    "neural, logistic": lambda k, dtype: par.NADE(2, 2, outputs.DiscretisedLogisticMixture(k, 2)).to(dtype)(),
}


@pytest.mark.parametrize("name", list(DISCRETE))
@pytest.mark.parametrize("dtype", list(MOST))
def test_a_dtype_that_rounds_states_is_refused(name, dtype):
    make, most = DISCRETE[name], MOST[dtype]
    right = make(most, dtype)
    assert right.dtype == dtype
    with pytest.raises(ValueError, match=f"states 0 to {most} exactly; got {str(dtype)[6:]}, which rounds whole numbers above {most - 1}"):
        make(most + 1, dtype)
    wide = make(most + 1, torch.float32)
    x = torch.zeros(wide.event_shape)
    seen = torch.ones(wide.event_shape, dtype=torch.bool)
    for ask in (wide.log_prob, wide.conditional_log_prob, wide.marginal(seen).log_prob, lambda x: wide.given(x, seen)):
        ask(x)
        with pytest.raises(ValueError, match="values, wants a dtype"):
            ask(x.to(dtype))
    # a whole number beyond the states is not rounded to one of them
    for bad in (x.long() + most, x + most):
        with pytest.raises(ValueError, match=f"{most - 1}"):
            right.log_prob(bad)


@pytest.mark.parametrize("output", [outputs.Categorical(258), outputs.DiscretisedLogisticMixture(258)], ids=str)
def test_outputs_refuse_it_too(output):
    raw = zeros(output.raw)
    output.log_prob(raw, torch.tensor(257.0))
    output.sample(raw.to(torch.float16))
    for ask in (lambda: output.log_prob(raw, torch.tensor(257.0, dtype=torch.bfloat16)), lambda: output.sample(raw.to(torch.bfloat16))):
        with pytest.raises(ValueError, match="states 0 to 257 exactly"):
            ask()


@pytest.mark.parametrize("weights", [[0.0, inf], [inf, inf], [nan, 0.0], [-inf, -inf], [-inf, nan], [inf, -inf]])
@pytest.mark.parametrize("batched", [False, True])
def test_log_weights_that_are_no_numbers_are_refused(weights, batched):
    weights = torch.tensor([[0.0, -inf], weights] if batched else weights)
    for parts in (FullyIndependent(zeros(2, 3, 2)), [FullyIndependent(zeros(3, 2))] * 2):
        with pytest.raises(ValueError, match="log_weights"):
            Mixture(weights, parts)
    assert bool(Mixture(torch.tensor([0.0, -inf]), FullyIndependent(zeros(2, 3, 2))).log_prob(zeros(3)).isfinite())


@pytest.mark.parametrize("bad", [inf, -inf, nan])
@pytest.mark.parametrize("make", [par.FVSBN, par.NADE, par.MADE, par.OrderlessNADE])
def test_a_context_that_is_no_number_is_refused(make, bad):
    family = make(3, context_dim=2)
    with pytest.raises(ValueError, match="context must not hold"):
        family(torch.tensor([[0.0, 1.0], [bad, 0.0]]))


@pytest.mark.parametrize("bad", [inf, -inf, nan])
@pytest.mark.parametrize("name", list(real_joints()))
def test_visible_values_that_are_no_numbers_are_refused(name, bad):
    joint = real_joints()[name]
    x, seen = torch.tensor([[1.0, 1.0, 1.0], [1.0, bad, 1.0]]), torch.tensor([True, True, False])
    asks = [joint.log_prob, joint.conditional_log_prob, joint.marginal(seen).log_prob, lambda x: joint.given(x, seen),
            joint.expand([2]).log_prob]
    for ask in asks:
        with pytest.raises(ValueError, match="finite"):
            ask(x)
    first = torch.tensor([True, False, False])
    assert bool(joint.marginal(first).log_prob(x).isfinite().all())  # hidden, it is never read


@pytest.mark.parametrize("bad", [inf, -inf, nan])
@pytest.mark.parametrize("output", [outputs.Normal(), outputs.MixtureOfNormals(2)], ids=str)
def test_estimates_refuse_them_too(output, bad):
    joint = par.NADE(3, 4, output=output)()
    x, seen = torch.tensor([0.0, 0.0, bad]), torch.tensor([False, True, True])
    with pytest.raises(ValueError, match="finite"):
        par.estimate_log_marginal(joint, x, seen, num_particles=10)
    with pytest.raises(ValueError, match="finite"):
        joint.log_prob(x)
    shown = torch.tensor([False, True, False])
    assert bool(par.estimate_log_marginal(joint, x, shown, num_particles=10).estimate.isfinite())


def with_bad(t, bad):
    t = t.clone()
    t.view(-1)[0] = bad
    return t


@pytest.mark.parametrize("bad", [inf, -inf, nan])
@pytest.mark.parametrize("name", ["gaussian", "student", "low rank", "low rank student", "transformed", "mixture", "chain"])
def test_parameters_that_are_no_numbers_are_refused(name, bad):
    joint = real_joints()[name]
    for which, t in joint.tensors.items():
        if which == "log_weights" and bad == -inf:
            continue  # a component of weight zero
        with pytest.raises(ValueError):  # noqa: PT011
            joint.with_tensors({**joint.tensors, which: with_bad(t, bad)}).sample()  # a chain searches its weights before it draws


@pytest.mark.parametrize("bad", [inf, nan])
@pytest.mark.parametrize("make", [
    lambda bad: FullTable(with_bad(zeros(2, 2), bad)), lambda bad: FullyIndependent(with_bad(zeros(3, 2), bad)),
    lambda bad: FullyIndependent([with_bad(zeros(2), bad), zeros(3)]), lambda bad: MarkovChain(with_bad(zeros(2), bad), zeros(2, 2, 2)),
    lambda bad: MarkovChain(zeros(2), with_bad(zeros(2, 2, 2), bad)), lambda bad: BayesNet([(), (0,)], [zeros(2), with_bad(zeros(2, 2), bad)]),
])
def test_tables_that_are_no_distributions_are_refused(make, bad):
    with pytest.raises(ValueError, match=r"NaN|\+inf|nan"):
        make(bad)
