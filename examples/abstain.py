"""A digit classifier that says "I do not know": what abstaining buys when pixels are hidden, and when a fifth of the rows are no digits.

Two doubts are told apart. The posterior doubts between classes; the plausibility of x, a conformal p-value of log p(x_visible), doubts
whether x is a digit at all. Run: python examples/abstain.py [--steps 5] [--out FILE.png]
"""

import argparse
import tempfile

from pathlib import Path

import numpy as np
import torch

from sklearn.datasets import load_digits

import pyro_ar as par

from pyro_ar.experiments.occlusion.scoring import resampled_error
from pyro_ar.plots.looking import risk_curves

HIDDEN = (0.5, 0.75, 0.9)
LEVEL = 0.05          # refuse rows that are less plausible than 95 % of digits
RULES = ("posterior", "posterior, if plausible")
RISKS = (0.05, 0.1)   # of the answers, promised with a probability of 90 %
CHOOSE, TEST = "choose", "test"
TRAINED, TESTED = 1000, 497  # and 300 digits that thresholds and p-values are chosen from
PATTERNS = 8          # per split; rows share them, because each one needs the reference rows seen through it


def junk_like(x, random):
    """As many rows that are no digits: noise, inverted, shuffled and mirrored ones, a quarter each."""
    kinds = [random.integers(0, 17, x.shape), 16 - x, random.permuted(x, axis=1), x.reshape(-1, 8, 8).swapaxes(1, 2).reshape(-1, 64)]
    return np.choose(np.arange(len(x))[:, None] % 4, kinds).astype(float)


def one_split(x, y, seed):
    """For each share of hidden pixels: right answers and confidences, digits first and then the junk."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(x))
    train, reference, test = np.split(order, [TRAINED, len(x) - TESTED])
    model = par.MixtureDiscriminantAnalysis(6, image_shape=(8, 8)).fit(x[train], y[train])
    plausible = par.classify.Plausibility(model).fit(x[reference])  # rows that the model was not fitted to
    digits, junk = x[np.append(reference, test)], junk_like(x[test[:len(test) // 4]], random)
    rows = np.concatenate([digits, junk])
    true = np.append(y[np.append(reference, test)], np.full(len(junk), -1))  # no label is right for junk
    part = np.repeat([CHOOSE, TEST, TEST], [len(reference), len(test), len(junk)])
    found = {}
    for hidden in HIDDEN:
        patterns = random.random((PATTERNS, 64)).argsort(1) >= round(64 * hidden)
        visible = patterns[np.arange(len(rows)) % PATTERNS]
        decision = par.classify.decide(model, np.where(visible, rows, np.nan), visible, plausibility=plausible)
        believable = np.where(decision.p_value >= LEVEL, decision.posterior, decision.p_value - 1)
        answers = {"right": decision.labels == true, "digit": true >= 0, "posterior": decision.posterior,
                   "posterior, if plausible": believable, "p value": decision.p_value}
        found[hidden] = {name: {key: values[part == name] for key, values in answers.items()} for name in (CHOOSE, TEST)}
    return found


def over(splits, number):
    """Mean over the splits of 100 times a number, with its standard error, corrected for the rows that the splits share."""
    values = 100 * np.array([number(split) for split in splits])
    return f"{np.nanmean(values):5.1f} ± {float(resampled_error(values, TESTED / TRAINED)):4.1f}"


def promised(split, hidden, most):
    """Share answered and share of these wrong, on the digits of the test part; the threshold is chosen on rows that are none of it."""
    chosen, test = split[hidden][CHOOSE], split[hidden][TEST]
    threshold = par.classify.risk_coverage(chosen["posterior"], chosen["right"]).at_risk(most)[1]
    answered = (test["posterior"] >= threshold)[test["digit"]]
    return answered.mean(), (answered & ~test["right"][test["digit"]]).sum() / max(1, answered.sum())


def print_digits_alone(splits):
    print("digits alone, in %   accuracy        " + "".join(f"{f'at most {m:.0%} wrong: answered, wrong':36}" for m in RISKS) + "alarms (promised: 5 at most)")
    for hidden in HIDDEN:
        columns = [over(splits, lambda s, h=hidden: s[h][TEST]["right"][s[h][TEST]["digit"]].mean())]
        for most in RISKS:
            columns += [over(splits, lambda s, h=hidden, m=most, i=i: promised(s, h, m)[i]) for i in (0, 1)]
        columns.append(over(splits, lambda s, h=hidden: (s[h][TEST]["p value"] < LEVEL)[s[h][TEST]["digit"]].mean()))
        print(f"{hidden:.0%} hidden        ", "     ".join(columns))


def print_with_junk(splits):
    print("\nwith a fifth of junk, in %   mean risk (AURC)   junk refused, if 5 % of digits are")
    for hidden in HIDDEN:
        for rule in RULES:
            def area(split, hidden=hidden, rule=rule):
                return par.classify.risk_coverage(split[hidden][TEST][rule], split[hidden][TEST]["right"]).area

            def refused(split, hidden=hidden, rule=rule):
                digit, score = split[hidden][TEST]["digit"], split[hidden][TEST]["posterior" if rule == RULES[0] else "p value"]
                return (score[~digit] < np.quantile(score[digit], 0.05)).mean()

            print(f"{hidden:.0%} hidden, {rule:24}{over(splits, area)}       {over(splits, refused)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5, help="random splits")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "pyro_ar_abstain.png")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small
    x, y = load_digits(return_X_y=True)
    splits = [one_split(x, y, seed) for seed in range(options.steps)]
    print_digits_alone(splits)
    print_with_junk(splits)

    def pooled(hidden, key):
        return np.concatenate([split[hidden][TEST][key] for split in splits])

    panels = {f"{hidden:.0%} of the pixels hidden": {rule: par.classify.risk_coverage(pooled(hidden, rule), pooled(hidden, "right")) for rule in RULES}
              for hidden in HIDDEN}
    risk_curves(panels, title="Abstaining when a fifth of the rows are no digits", note="Junk counts as wrong when it is answered. "
                f"Plausible: a p-value of at least {LEVEL}.").savefig(options.out)
    print(f"Written: {options.out}")


if __name__ == "__main__":
    main()
