"""`MarkovChain.marginal` against Pyro's `DiscreteHMM` on the same model, in one process.

The chain has 784 variables and 256 rows, each with its own random half hidden. For `DiscreteHMM` the
variables are the hidden states; the observation of a visible cell gives probability 1 - 1e-13 to
its own state, that of a hidden cell is masked out. Both answer log p(x_visible); they are compared
before they are timed.

    OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 \
        python benchmarks/markov_chain.py

The two MALLOC variables keep glibc from handing large tensors back to the system after each step,
which favours neither side; without them `DiscreteHMM` at 16 states takes several times as long.
"""

import argparse
import statistics
import time

import torch

from pyro.distributions import Categorical, DiscreteHMM

from pyro_ar.tables import MarkovChain


def build(K, d, rows, dtype=torch.float32):
    torch.manual_seed(0)
    initial = torch.randn(K, dtype=dtype, requires_grad=True)
    transitions = torch.randn(d - 1, K, K, dtype=dtype, requires_grad=True)
    x, visible = torch.randint(K, (rows, d)).to(dtype), torch.rand(rows, d) < 0.5
    # DiscreteHMM steps before it observes: its first step goes from a state that does not matter to the first variable.
    sharp = Categorical(logits=30 * torch.eye(K, dtype=dtype), validate_args=False)
    observed = sharp.expand((rows, d, K)).mask(visible[..., None])

    def ours():
        return MarkovChain(initial, transitions, validate_args=False).marginal(visible).log_prob(x)

    def theirs():
        steps = torch.cat([initial.expand(1, K, K), transitions])
        return DiscreteHMM(initial, steps, observed, duration=d, validate_args=False).log_prob(x)

    return ours, theirs, [initial, transitions]


def train(log_prob, parameters):
    torch.autograd.grad(log_prob().sum(), parameters)


def evaluate(log_prob, parameters):
    with torch.no_grad():
        log_prob()


def medians(step, sides, parameters, repeats):
    """CPU milliseconds, the sides taking turns."""
    times = [[] for _ in sides]
    for _ in range(repeats):
        for side, log_prob in enumerate(sides):
            start = time.process_time()
            step(log_prob, parameters)
            times[side].append(1e3 * (time.process_time() - start))
    return [statistics.median(t[1:] or t) for t in times]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variables", type=int, default=784)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--states", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'states':>6} {'step':>9} {'MarkovChain ms':>15} {'DiscreteHMM ms':>15} {'ratio':>7}")
    for K in args.states:
        exact = [f() for f in build(K, args.variables, args.rows, torch.float64)[:2]]
        torch.testing.assert_close(*exact, rtol=1e-6, atol=1e-6)
        ours, theirs, parameters = build(K, args.variables, args.rows)
        torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-2)
        for step in (train, evaluate):
            a, b = medians(step, (ours, theirs), parameters, args.repeats)
            print(f"{K:6d} {step.__name__:>9} {a:15.1f} {b:15.1f} {b / a:7.1f}")


if __name__ == "__main__":
    main()
