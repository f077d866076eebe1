"""NUTS over the 136 weights of an FVSBN on rows of nltcs, beside the exact posteriors of tables, in one table.

What it prints: R-hat, effective sample sizes, divergences and seconds of NUTS; the comparison by leave-one-out on the rows that all learn
from; and held-out nats on the test rows, where the posterior predictive (a mixture over all draws) stands beside the tables' own.

    PYRO_AR_DATA=shared/data OMP_NUM_THREADS=1 python benchmarks/nltcs_nuts.py [--rows 300] [--draws 500] [--chains 4] [--evidence]
"""

import argparse
import time

import torch

import pyro_ar as par

from pyro_ar import data

STRENGTHS = (1.0, 4.0, 16.0, 64.0)


def timed(function):
    start = time.process_time(), time.perf_counter()
    answer = function()
    return answer, time.process_time() - start[0], time.perf_counter() - start[1]


def main():
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 300), ("draws", 500), ("chains", 4), ("warmup", 300), ("seed", 0), ("test-rows", 3000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--prior", type=float, default=1.0, help="standard deviation of every weight")
    parser.add_argument("--evidence", action="store_true", help="also the FVSBN's evidence, by sequential Monte Carlo")
    args = parser.parse_args()
    torch.set_num_threads(1)

    train, test = (data.load("debd/nltcs", split).x for split in ("train", "test"))
    x = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(args.seed))[: args.rows]]
    test = test[: args.test_rows]
    weights = par.Bayesian(par.FVSBN(16), args.prior)
    print(f"{len(x)} rows of nltcs, FVSBN of {weights.num_weights} weights, each Normal(0, {args.prior:g})")

    options = {"num_draws": args.draws, "num_chains": args.chains, "warmup": args.warmup, "seed": args.seed}
    nuts, cpu, wall = timed(lambda: weights.fit(x, method="nuts", **options))
    found = nuts.diagnostics()
    print(f"NUTS: {args.chains} chains of {args.warmup} + {args.draws}, R-hat {found.r_hat:.3f}, effective draws {found.ess_bulk:.0f} (bulk) "
          f"{found.ess_tail:.0f} (tail) of {found.draws}, {found.divergences} divergences, {cpu:.0f} CPU s ({wall:.0f} s)", flush=True)
    laplace, cpu, _ = timed(lambda: weights.fit(x, method="laplace", steps=1500, **options))
    print(f"Laplace: {cpu:.0f} CPU s")
    field, cpu, _ = timed(lambda: weights.fit(x, method="mean-field", steps=3000, **options))
    print(f"mean-field: {cpu:.0f} CPU s", flush=True)
    if args.evidence:
        nuts.evidence, cpu, _ = timed(lambda: weights.log_evidence(x, num_particles=64, num_runs=4))
        print(f"evidence: {nuts.evidence.value:.1f} ± {nuts.evidence.error:.1f} nats, {cpu:.0f} CPU s", flush=True)

    tables = par.comparison.table_models([2] * 16, STRENGTHS)
    print("\nScored on the rows learnt from\n" + str(par.compare({"FVSBN, NUTS": nuts, "FVSBN, Laplace": laplace, "FVSBN, mean-field": field, **tables},
                                                                 x, refits=0)))
    joints = {name: model.with_states([2] * 16).fit(x) for name, model in tables.items()}
    joints |= {"FVSBN, NUTS": nuts.predictive(400), "FVSBN, Laplace": laplace.predictive(400), "FVSBN, mean-field": field.predictive(400)}
    print(f"\nHeld out: {len(test)} test rows\n" + str(par.compare(joints, test)))


if __name__ == "__main__":
    main()
