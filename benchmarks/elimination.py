"""Marginals of 500 rows, all hidden differently, under 10 classes; and why elimination is our own.

The first table must stay within a second: 64 variables, 500 rows, 10 classes. The second compares
with `opt_einsum` over `pyro.ops.einsum.torch_log`, which is exact until exponentials underflow
and then drops terms, or says -inf, without a word.

    OMP_NUM_THREADS=1 python benchmarks/elimination.py
"""

import functools
import itertools
import statistics
import time

import opt_einsum
import torch

from pyro_ar.tables import ChowLiuTree, FullyIndependent, MarkovChain


def random_tree(n, classes, K):
    parents = [()] + [(int(torch.randint(i, (1,))),) for i in range(1, n)]
    tables = [torch.randn(classes, *[K] * len(p), K, requires_grad=True) for p in parents]
    return lambda: ChowLiuTree(parents, tables), tables


def random_chain(n, classes, K, order=1):
    initial = torch.randn(classes, *[K] * order, requires_grad=True)
    rest = torch.randn(classes, n - order, *[K] * (order + 1), requires_grad=True)
    return lambda: MarkovChain(initial, rest, order), [initial, rest]


def random_independent(n, classes, K):
    logits = torch.randn(classes, n, K, requires_grad=True)
    return lambda: FullyIndependent(logits), [logits]


def seconds(function, repeats=5):
    """Median CPU seconds, the first run left out."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def speed(n=64, rows=500, classes=10):
    print(f"{n} variables x {rows} rows x {classes} classes, CPU seconds")
    print(f"{'joint':>16} {'states':>6} {'marginal':>9} {'and gradient':>13} {'completions':>12} {'most likely':>12}")
    makers = {"FullyIndependent": random_independent, "MarkovChain": random_chain, "ChowLiuTree": random_tree,
              "MarkovChain k=2": functools.partial(random_chain, order=2)}
    for name, maker in makers.items():
        for K in (2, 17):
            torch.manual_seed(0)
            if name == "MarkovChain k=2" and K == 17:
                continue
            make, parameters = maker(n, classes, K)
            x, visible = torch.randint(K, (rows, 1, n)).float(), torch.rand(rows, 1, n) < 0.5

            def marginal(make=make, x=x, visible=visible):
                return make().marginal(visible).log_prob(x)

            def gradient(marginal=marginal, parameters=parameters):
                torch.autograd.grad(marginal().sum(), parameters)

            with torch.no_grad():
                given = make().given(x, visible)
                values = [seconds(marginal), 0.0, seconds(given.sample, 2), seconds(lambda given=given: given.mode, 2)]
            values[1] = seconds(gradient)
            print(f"{name:>16} {K:6d} {values[0]:9.3f} {values[1]:13.3f} {values[2]:12.3f} {values[3]:12.3f}")


def against_torch_log(n=24, rows=100, K=4):
    print(f"\nchain of {n} variables, {K} states, {rows} rows, float32: rows that are -inf, "
          "and the largest error of the others")
    print(f"{'logits x':>8} {'ours -inf':>10} {'error':>9} {'torch_log -inf':>15} {'error':>9}")
    for scale in (1, 10, 30, 100):
        torch.manual_seed(0)
        initial, rest = scale * torch.randn(K), scale * torch.randn(n - 1, K, K)
        x, visible = torch.randint(K, (rows, n)), torch.rand(rows, n) < 0.5
        exact = MarkovChain(initial.double(), rest.double()).marginal(visible).log_prob(x)
        ours = MarkovChain(initial, rest).marginal(visible).log_prob(x)
        differs = (x[..., None] != torch.arange(K)) & visible[..., None]
        soft = torch.zeros(differs.shape).masked_fill(differs, -torch.inf).unbind(1)
        names = [chr(97 + i) for i in range(n)]
        terms = names[:1] + [a + b for a, b in itertools.pairwise(names)] + ["z" + a for a in names]
        tables = [initial.log_softmax(-1), *rest.log_softmax(-1)]
        theirs = opt_einsum.contract(",".join(terms) + "->z", *tables, *soft, backend="pyro.ops.einsum.torch_log")
        cells = []
        for answer in (ours, theirs):
            finite = answer.isfinite()
            error = (answer.double() - exact)[finite].abs().max() if bool(finite.any()) else torch.tensor(torch.nan)
            cells += [int((~finite).sum()), error.item()]
        print(f"{scale:8d} {cells[0]:10d} {cells[1]:9.1e} {cells[2]:15d} {cells[3]:9.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    speed()
    against_torch_log()
