"""When what is missing tells the class: a clinic that orders different tests for different complaints.

The doctor orders a test because of the complaint (the class), so the pattern of what was measured is itself evidence. A classifier that ignores the
pattern throws it away; one that models p(visible | y) uses it. If the clinic then changes its habits, the same habit that helped misleads.
Run: python examples/missing_not_at_random.py [--steps 20]
"""

import argparse

import numpy as np

import pyro_ar as par

TESTS = 5
ORDERED = np.array([[0.9, 0.8, 0.2, 0.5, 0.3], [0.4, 0.8, 0.8, 0.5, 0.3], [0.4, 0.3, 0.3, 0.9, 0.8]])   # share of patients, by complaint


def patients(rows, random, ordered):
    """Results of the tests, NaN where not ordered; the complaints; what was ordered."""
    y = random.integers(0, 3, rows)
    centre = 0.6 * np.eye(3, TESTS)[y]
    visible = random.random((rows, TESTS)) < ordered[y]
    return np.where(visible, centre + random.normal(size=(rows, TESTS)), np.nan), y, visible


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20, help="draws of training and test patients")
    draws = max(2, parser.parse_args().steps)
    habits = {"the same habits": ORDERED, "everyone gets half of the tests": np.full((3, TESTS), 0.5)}
    models = {"pattern ignored": par.DiscriminantAnalysis(), "p(visible | y) modelled": par.DiscriminantAnalysis(pattern=par.FullyIndependent)}
    accuracy = {name: {habit: [] for habit in habits} for name in models}
    for seed in range(draws):
        random = np.random.default_rng(seed)
        X, y, visible = patients(400, random, ORDERED)
        test = {habit: patients(1000, random, ordered) for habit, ordered in habits.items()}
        for name, model in models.items():
            model.fit(X, y, visible)
            for habit, (rows, truth, seen) in test.items():
                accuracy[name][habit].append(100 * model.score(rows, truth, visible=seen))

    print("test accuracy in % (standard error over draws); chance is 33.3")
    for habit in habits:
        scores = {name: np.array(accuracy[name][habit]) for name in models}
        gain = scores["p(visible | y) modelled"] - scores["pattern ignored"]
        print(f"\nnew patients, {habit}:")
        for name, score in scores.items():
            print(f"  {name:24} {score.mean():5.1f} ({score.std(ddof=1) / draws**0.5:.1f})")
        print(f"  {'gain of the model':24} {gain.mean():+5.1f} ({gain.std(ddof=1) / draws**0.5:.1f})")

    nothing = np.zeros((1, TESTS), bool)
    print("\nA patient for whom no test was ordered, p(y):")
    for name, model in models.items():
        print(f"  {name:24}", model.predict_proba(np.full((1, TESTS), np.nan), nothing).round(2)[0])


if __name__ == "__main__":
    main()
