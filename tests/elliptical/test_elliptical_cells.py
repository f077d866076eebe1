"""Distributions of single cells given others: against scipy's conditionals, worked out one component and one row at a time."""

import math

import numpy as np
import pytest
import torch

from scipy import stats

from pyro_ar.elliptical import Gaussian, LowRankGaussian, LowRankStudentT, StudentT
from pyro_ar.elliptical.cells import Components

pytestmark = pytest.mark.usefixtures("float64")

D = 5


def matrices(*batch):
    root = torch.randn(*batch, D, D)
    return root @ root.mT + 0.1 * torch.eye(D)


CASES = {
    "Gaussian": lambda: [Gaussian(torch.randn(2, 3, D), matrices(2, 3))],
    "Student-t": lambda: [StudentT(torch.tensor([[2.5], [7.0]]), torch.randn(2, 3, D), matrices(2, 3))],
    "low rank": lambda: [LowRankStudentT(4.0, torch.randn(3, D), torch.randn(3, D, 2), torch.rand(3, D) + 0.1)],
    "low rank of two ranks": lambda: [LowRankGaussian(torch.randn(2, D), torch.randn(2, D, r), torch.rand(2, D) + 0.1) for r in (1, 3)],
    "one of each": lambda: [Gaussian(torch.randn(D), matrices()), StudentT(3.0, torch.randn(2, D), matrices(2)),
                            LowRankStudentT(4.0, torch.randn(D), torch.randn(D, 2), torch.rand(D) + 0.1)],
    "expanded": lambda: [Gaussian(torch.randn(D), matrices()).expand([3])],
}


def entries(joints):
    """df, centre and matrix of every entry, plainly."""
    for joint in joints:
        loc = joint.loc.expand(*joint.batch_shape, D).reshape(-1, D)
        if hasattr(joint, "cov_factor"):
            matrix = joint.cov_factor @ joint.cov_factor.mT + torch.diag_embed(joint.cov_diag)
        else:
            matrix = getattr(joint, "covariance_matrix", None)
            matrix = joint.scale_matrix if matrix is None else matrix
        matrix = matrix.expand(*joint.batch_shape, D, D).reshape(-1, D, D)
        df = joint.df.expand(joint.batch_shape).reshape(-1) if hasattr(joint, "df") else torch.full((len(loc),), math.inf)
        yield from zip(df.tolist(), loc.numpy(), matrix.numpy(), strict=True)


def log_density(df, loc, matrix, x):
    if len(x) == 0:
        return 0.0
    if math.isinf(df):
        return stats.multivariate_normal(loc, matrix).logpdf(x)
    return stats.multivariate_t(loc, matrix, df=df).logpdf(x)


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_lines_are_ratios_of_scipys_densities(make):
    joints = make()
    plain = list(entries(joints))
    R = 5
    visible = torch.rand(R, D) < 0.5
    visible[0], visible[1] = False, True
    visible[1, 2] = False
    x = torch.where(visible, torch.randn(R, D), torch.nan)
    entry = torch.stack([torch.randperm(len(plain)) for _ in range(R)])[:, :2]
    lines = Components(joints).given(torch.where(visible, x, 0), visible, entry)
    for r in range(R):
        seen = visible[r].numpy().nonzero()[0]
        for m, e in enumerate(entry[r].tolist()):
            df, loc, matrix = plain[e]
            before = log_density(df, loc[seen], matrix[np.ix_(seen, seen)], x[r, seen].numpy())
            for i in (~visible[r]).nonzero()[:, 0].tolist():
                more = [*seen, i]
                t = stats.norm() if math.isinf(df) else stats.t(float(lines.df[r, m]))
                for value in (-1.3, 0.4):
                    z = (value - lines.loc[r, m, i].item()) / lines.scale[r, m, i].item()
                    mine = t.logpdf(z) - math.log(lines.scale[r, m, i].item())
                    both = log_density(df, loc[more], matrix[np.ix_(more, more)], np.append(x[r, seen].numpy(), value))
                    assert mine == pytest.approx(both - before, abs=1e-9)
