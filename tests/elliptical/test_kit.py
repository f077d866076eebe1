"""Every elliptical joint but the Gaussian, which stands in `test_conformance`, passes the conformance kit, or the check says why it does not apply."""

import itertools

import pytest
import torch

from pyro_ar.elliptical import LowRankGaussian, LowRankStudentT, StudentT
from pyro_ar.mixture import Mixture
from pyro_ar.testing import CHECKS, NotApplicable

randn = torch.randn


def matrix(*batch, size=3):
    root = randn(*batch, size, size)
    return root @ root.mT / size + 0.3 * torch.eye(size)


JOINTS = {
    "student": lambda: StudentT(4.0, randn(3), matrix()),
    "student, batch": lambda: StudentT(torch.tensor([3.0, 20.0]), randn(2, 3), matrix(2)),
    "student, mixed batch": lambda: StudentT(torch.tensor([[5.0], [9.0]]), randn(3, 2), matrix(2, 1, size=2)),
    "student, shared matrix": lambda: StudentT(6.0, randn(2, 3), matrix()),
    "student, one variable": lambda: StudentT(5.0, randn(1), matrix(size=1)),
    "low rank": lambda: LowRankGaussian(randn(4), randn(4, 2), torch.rand(4) + 0.3),
    "low rank, batch": lambda: LowRankGaussian(randn(2, 3), randn(2, 3, 1), torch.rand(3) + 0.3),
    "low rank student": lambda: LowRankStudentT(5.0, randn(3), randn(3, 2), torch.rand(3) + 0.3),
    "low rank student, mixed batch": lambda: LowRankStudentT(
        torch.tensor([[5.0], [9.0]]), randn(3, 2), randn(2, 1, 2, 1), torch.rand(2) + 0.3),
    "mixture of low rank students": lambda: Mixture(randn(2), LowRankStudentT(
        5.0, randn(2, 2), randn(2, 2, 1), torch.rand(2, 2) + 0.3)),
    "mixture of students": lambda: Mixture(randn(2), StudentT(5.0, randn(2, 2), matrix(2, size=2))),
}


NEAR_COPIES = ("student", "low rank", "mixture of students")  # of the batches, and of the mixture of low rank


def cases():
    """Every check of every joint; draws are compared with densities on grids, which takes seconds: by default of one each."""
    for (name, make), check in itertools.product(JOINTS.items(), CHECKS):
        long = name in NEAR_COPIES or (check.__name__.endswith("samples_follow_log_prob") and "mixed batch" in name)
        yield pytest.param(make, check, id=f"{name}-{check.__name__}", marks=pytest.mark.slow if long else ())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("make", "check"), list(cases()))
def test_conforms(make, check) -> None:
    try:
        check(make())
    except NotApplicable as reason:
        pytest.skip(str(reason))
