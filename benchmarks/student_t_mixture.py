"""What scoring costs: a mixture of Student-t, another pattern in each row, on one thread.

    python benchmarks/student_t_mixture.py [--rows 200] [--wide]

64 cells and 400 components of full matrices, by columns (the library's way) and by LAPACK, one matrix after the other; with
`--wide` 784 cells and 400 components of rank 15.
"""

import argparse
import time

import torch

from pyro_ar.elliptical import LowRankStudentT, StudentT
from pyro_ar.mixture import Mixture
from pyro_ar.visible import random


def seconds(ask, *, repeats=2):
    ask()
    start = time.process_time()
    for _ in range(repeats):
        ask()
    return (time.process_time() - start) / repeats


def dense(components, cells, dtype):
    root = torch.randn(components, cells, cells, dtype=dtype)
    scale = root @ root.mT / cells + 0.2 * torch.eye(cells, dtype=dtype)
    return StudentT(10.0, torch.randn(components, cells, dtype=dtype), scale)


def one_by_one(joint, x, visible):
    """The visible sub-blocks by LAPACK."""
    plain = StudentT(joint.df, joint.loc, joint.scale_matrix, validate_args=False)
    plain._part_by_columns = lambda x, visible: None
    return plain._part(x[:, None], visible[:, None])


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=int, default=200)
    options.add_argument("--wide", action="store_true")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cells = 784 if chosen.wide else 64
    print("CPU ms per row, 400 components,", cells, "cells")
    for dtype in (torch.float64, torch.float32):
        if chosen.wide:
            joint = LowRankStudentT(10.0, torch.randn(400, cells, dtype=dtype), torch.randn(400, cells, 15, dtype=dtype),
                                    torch.rand(400, cells, dtype=dtype) + 0.5)
        else:
            joint = dense(400, cells, dtype)
        mixture = Mixture(torch.zeros(400, dtype=dtype), joint)
        x = torch.randn(chosen.rows, cells, dtype=dtype)
        for hidden in (0.0, 0.25, 0.5, 0.75, 0.9):
            visible = random(cells, hidden, chosen.rows)
            with torch.no_grad():
                fast = seconds(lambda: mixture.marginal(visible).log_prob(x)) / chosen.rows  # noqa: B023
                line = f"{dtype} {100 * hidden:3.0f} % hidden: {1000 * fast:6.2f}"
                if not chosen.wide and hidden in (0.5, 0.75):
                    line += f"   LAPACK: {1000 * seconds(lambda: one_by_one(joint, x, visible), repeats=1) / chosen.rows:6.2f}"  # noqa: B023
            print(line, flush=True)


if __name__ == "__main__":
    main()
