"""Changes of variable: the conformance kit, torch's and scipy's own densities, and what RankNormal learns."""

import itertools
import math

import numpy as np
import pytest
import torch

from scipy.stats import norm, rankdata
from torch.distributions import (
    Exponential,
    LogNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from torch.distributions.transforms import (
    AbsTransform,
    AffineTransform,
    CatTransform,
    ComposeTransform,
    CumulativeDistributionTransform,
    ExpTransform,
    PowerTransform,
    SigmoidTransform,
    SoftmaxTransform,
    SoftplusTransform,
    TanhTransform,
)

from pyro_ar.changes.rank_normal import RankNormal
from pyro_ar.changes.transformed import Transformed, logit
from pyro_ar.elliptical import Gaussian, StudentT
from pyro_ar.mixture import Mixture
from pyro_ar.tables import FullTable
from pyro_ar.testing import CHECKS, NotApplicable

randn = torch.randn
pytestmark = pytest.mark.usefixtures("float64")


def gaussian(*batch, size=3):
    root = randn(*batch, size, size)
    return Gaussian(randn(*batch, size), root @ root.mT / size + 0.3 * torch.eye(size))


def ranks(size=3):
    x = torch.stack([randn(60).exp() * (i + 1) for i in range(size)], -1)
    return RankNormal.from_data(x, max_points=8)


def mild_ranks(size=3):
    """Bent a little at five points: the kit's grid is for densities as smooth as a normal one."""
    at = torch.linspace(-4, 4, 5)
    return RankNormal((at + 0.01 * at.sin()).expand(size, 5).clone(), (3 * at).expand(size, 5).clone())


def mild(*parts):
    return ComposeTransform([AffineTransform(0.0, 0.1), *parts])


# The kit integrates on one grid for all: steeper transforms are checked against torch below.
JOINTS = {
    "exponential": lambda: Transformed(gaussian(), mild(ExpTransform())),
    "logit, batch": lambda: Transformed(gaussian(2), mild(logit(-1.0, 17.0))),
    "an inverse": lambda: Transformed(gaussian(), AffineTransform(1.0, -3.0).inv),
    "ranks": lambda: Transformed(gaussian(), mild_ranks()),
    "ranks, mixture of students": lambda: Transformed(
        Mixture(randn(2), StudentT(5.0, randn(2, 2), gaussian(2, size=2).covariance_matrix)), mild_ranks(2)),
}


def cases():
    """Every check of every joint; draws are compared with densities on grids, in seconds: by default of the first one. Ranks come with a mixture too."""
    for (name, make), check in itertools.product(JOINTS.items(), CHECKS):
        long = name == "ranks" or (check.__name__.endswith("samples_follow_log_prob") and name != "exponential")
        yield pytest.param(make, check, id=f"{name}-{check.__name__}", marks=pytest.mark.slow if long else ())


@pytest.mark.parametrize(("make", "check"), list(cases()))
def test_conforms(make, check) -> None:
    try:
        check(make())
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_log_normal_is_torchs():
    x = randn(9, 3).exp()
    joint = Transformed(Gaussian(torch.zeros(3), torch.diag(torch.tensor([1.0, 4.0, 9.0]))), ExpTransform())
    terms = LogNormal(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])).log_prob(x)
    torch.testing.assert_close(joint.log_prob(x), terms.sum(-1))
    visible = torch.rand(9, 3) < 0.5
    torch.testing.assert_close(joint.marginal(visible).log_prob(x.where(visible, torch.tensor(math.nan))),
                               terms.where(visible, torch.tensor(0.0)).sum(-1))


@pytest.mark.parametrize("transform", [
    TanhTransform(), SoftplusTransform(), ComposeTransform([ExpTransform(), AffineTransform(-2.0, -0.5)]), logit(0.0, 2.0)],
    ids=["tanh", "softplus", "compose", "logit"])
def test_any_element_wise_transform_is_torchs_transformed_distribution(transform):
    base = gaussian()
    oracle = TransformedDistribution(MultivariateNormal(base.loc, base.covariance_matrix), transform)
    x = oracle.sample((20,))
    torch.testing.assert_close(Transformed(base, transform).log_prob(x), oracle.log_prob(x))


def test_completions_are_transformed_completions():
    base = gaussian()
    z, seen = base.sample(), torch.tensor([True, False, True])
    joint = Transformed(base, ExpTransform())
    draws = joint.given(z.exp(), seen).sample((20000,))
    assert (draws[:, seen] == z.exp()[seen]).all()
    wanted = base.given(z, seen)
    spread = base.covariance_matrix.inverse()[1, 1] ** -0.5
    # 5 standard errors, one number: false alarm 6e-7, seed fixed
    assert abs(draws[:, 1].log().mean() - wanted.mode[1]) < 5 * spread / math.sqrt(20000)


def test_scores_are_scipys_smoothed_mid_ranks():
    x = torch.randint(5, (200, 3)).double()
    transform = RankNormal.from_data(x, smoothing=0.5)
    for j in range(3):
        column = x[:, j].numpy()
        mid = (rankdata(column) - 0.5) / 200
        uniform = (column + 0.5) / 5
        np.testing.assert_allclose(transform.inv(x)[:, j], norm.ppf((mid + 0.5 * uniform) / 1.5), atol=1e-12)
    assert transform.num_parameters == 15


def test_spline_is_monotone_smooth_and_inverts_everywhere():
    transform = ranks(2)
    x = torch.linspace(-50, 80, 20001)[:, None].expand(-1, 2).contiguous().requires_grad_()
    z = transform.inv(x)
    assert (z.diff(dim=0) > 0).all()
    torch.testing.assert_close(transform(z), x, rtol=1e-9, atol=1e-9)
    slope = torch.autograd.grad(z.sum(), x)[0]
    torch.testing.assert_close(-transform.log_abs_det_jacobian(z, x), slope.log(), rtol=1e-8, atol=1e-8)
    a, b = transform.values[..., 1:-1] - 1e-9, transform.values[..., 1:-1] + 1e-9  # the slope does not jump at a point
    left, right = (transform.log_abs_det_jacobian(None, t.mT) for t in (a, b))
    torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-6)


def test_density_times_spacing_is_about_the_probability_of_a_level():
    x = torch.distributions.Binomial(40, torch.tensor(0.4)).sample((4000, 1))
    transform = RankNormal.from_data(x, smoothing=0.01)
    z = transform.inv(x)
    joint = Transformed(Gaussian(z.mean(0), z.var(0)[:, None]), transform)
    levels = torch.arange(8.0, 25)[:, None]
    share = (x == levels.T).double().mean(0)
    assert ((joint.log_prob(levels).exp() - share).abs() < 0.004).all()  # shares go up to 0.13; the midpoint rule is within 3 %


def test_cells_of_different_kinds():
    x = torch.stack([torch.full((300,), 7.0), torch.randint(2, (300,)).double(), randn(300).exp(), randn(300)], -1)
    transform = RankNormal.from_data(x)
    z = transform.inv(x)
    assert z.isfinite().all()
    torch.testing.assert_close(transform(z), x)
    assert transform.inv(torch.full((4,), 1e6)).isfinite().all()
    assert transform.inv(x.float()).dtype == torch.float32
    assert z[:, 0].unique().numel() == 1


def test_values_outside_the_image_are_refused():
    joint = Transformed(gaussian(), logit(0.0, 1.0))
    for bad in (1.5, -0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="support"):
            joint.log_prob(torch.tensor([0.5, bad, 0.5]))
    assert joint.marginal(torch.tensor([True, False, True])).log_prob(torch.tensor([0.5, 7.0, 0.5])).isfinite()


@pytest.mark.parametrize(("make", "match"), [
    (lambda: Transformed(FullTable(randn(2, 2)), ExpTransform()), "real values"),
    (lambda: Transformed(gaussian(), torch.distributions.transforms.AbsTransform()), "bijection"),
    (lambda: Transformed(gaussian(), torch.distributions.transforms.StickBreakingTransform()), "element-wise"),
    (lambda: Transformed(Transformed(gaussian(), ExpTransform()), ExpTransform()), "real values"),
    (lambda: RankNormal(torch.zeros(3), torch.arange(3.0)), "increase"),
    (lambda: RankNormal(torch.arange(3.0), torch.arange(4.0)), "one shape"),
    (lambda: RankNormal.from_data(torch.full((3, 2), math.nan)), "every cell must be visible"),
    (lambda: RankNormal.from_data(randn(3, 2), smoothing=0.0), "smoothing"),
    (lambda: RankNormal.from_data(randn(3, 2), max_points=1), "max_points"),
    (lambda: logit(1.0, 0.0), "below"),
])
def test_refusals(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("batch", [(), (2,)])
def test_conditionals_of_an_expanded_joint_have_its_shape(batch):
    joint = Transformed(gaussian(*batch), ExpTransform())
    x = torch.rand(3) + 0.5
    for left in ((3, *batch), (4, 3, *batch)):
        answer = joint.expand(left).conditional_log_prob(x)
        assert answer.shape == (*left, 3)
        torch.testing.assert_close(answer.sum(-1), joint.log_prob(x).expand(left))


def composed(*parts):
    return ComposeTransform(list(parts))


EXP, SIGMOID, TANH = ExpTransform(), SigmoidTransform(), TanhTransform()


@pytest.mark.parametrize("transform", [
    EXP.inv, SIGMOID.inv, TANH.inv, SoftplusTransform().inv, PowerTransform(2.0), PowerTransform(3.0).inv, logit(0.0, 1.0).inv,
    CumulativeDistributionTransform(Exponential(1.0)), CumulativeDistributionTransform(Normal(0.0, 1.0)).inv,
    composed(AffineTransform(1.0, 2.0), EXP.inv), composed(EXP, AffineTransform(-1.0, 1.0), EXP.inv), composed(TANH, EXP.inv),
    composed(EXP, AffineTransform(0.0, -1.0), EXP.inv), composed(EXP, SIGMOID.inv), composed(composed(EXP.inv), EXP),
    composed(EXP, TANH.inv), composed(EXP.inv, EXP), composed(SIGMOID, AffineTransform(0.0, torch.tensor([1.0, 0.5, 2.0])), SIGMOID.inv),
    AbsTransform(), SoftmaxTransform(), AffineTransform(0.0, 0.0), AffineTransform(0.0, torch.tensor([1.0, 0.0, 2.0])),
    AffineTransform(math.nan, 1.0), AffineTransform(0.0, math.inf), CatTransform([EXP, EXP.inv], -1, [1, 2]),
    AffineTransform(torch.zeros(4), 1.0),
], ids=str)
def test_a_transform_of_less_than_the_reals_is_refused(transform) -> None:
    with pytest.raises(ValueError, match="Transformed wants a"):
        Transformed(gaussian(), transform)


@pytest.mark.parametrize("transform", [
    EXP, SIGMOID, TANH, AffineTransform(1.0, -3.0).inv, composed(EXP, EXP.inv), composed(EXP, EXP.inv, EXP), composed(EXP, PowerTransform(-2.0)),
    composed(SIGMOID, AffineTransform(0.2, torch.tensor([0.5, 0.1, 0.7])), SIGMOID.inv), composed(EXP, AffineTransform(1.0, 2.0), EXP.inv),
    composed(SIGMOID, composed(SIGMOID.inv, EXP)), CumulativeDistributionTransform(Normal(0.0, 1.0)), composed(),
    CatTransform([EXP, AffineTransform(0.0, 2.0)], -1, [1, 2]), composed(EXP, AffineTransform(0.0, -1.0), SIGMOID),
], ids=str)
def test_a_transform_of_all_the_reals_is_taken(transform):
    """In one dimension, by quadrature over what its draws span: it is a density of mass one."""
    joint = Transformed(Gaussian(torch.zeros(3), torch.eye(3)), transform)
    x = transform(torch.linspace(-5, 5, 4001).unsqueeze(-1).expand(-1, 3))
    for i in range(3):
        log_p = joint.marginal(torch.arange(3) == i).log_prob(x)
        total = torch.trapezoid(log_p.exp(), x[:, i]).abs()
        assert abs(float(total) - 1) < 1e-3
