"""Which rows a fit may see, of every classifier that splits its training rows: what a model is asked about for learning, it was not fitted to."""

import itertools
import math

import numpy as np
import pytest
import torch

from recording import Frequencies, Ledger, recording

from pyro_ar import data
from pyro_ar.classify import (
    CorrectedClassifier,
    DiscriminantAnalysis,
    MixtureChainClassifier,
    MixtureDiscriminantAnalysis,
    SemiSupervised,
    TemperatureScaled,
)
from pyro_ar.classify.around import mixture_chain
from pyro_ar.classify.mda import mixture_discriminant
from pyro_ar.experiments.occlusion import inner
from pyro_ar.experiments.occlusion import run as occlusion
from pyro_ar.experiments.occlusion.inner import Chosen, Tempered, inner_split
from pyro_ar.experiments.occlusion.lineup import MODELS, Model
from pyro_ar.experiments.occlusion.plan import Plan


@pytest.fixture
def rows():
    """60 rows of 4 cells, three classes; every cell tells its row."""
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, np.arange(60) % 3


def everything(ledger):
    return set(range(len(ledger.x)))


# Cross-fitting.


def test_the_corrected_classifier_learns_from_rows_held_out_of_both(rows):
    x, y = rows
    ledger = Ledger(x)
    made = CorrectedClassifier(recording(DiscriminantAnalysis, ledger)(shrinkage=0.3), recording(Frequencies, ledger)(), folds=4).fit(x, y)
    ledger.assert_apart()
    folds, last = ledger.fits[:-2], ledger.fits[-2:]
    assert last == [everything(ledger)] * 2  # both are fitted to all rows in the end, and asked nothing
    assert ledger.scores[-2:] == [[], []]
    assert [len(fit) for fit in folds] == [45] * 8
    assert folds[::2] == folds[1::2]  # mixture and network of a fold are fitted to the same rows
    asked = [set(scored) for scored in ledger.scores[:-2]]
    assert asked[::2] == asked[1::2]
    # A row without a visible cell is nobody's, so some repeats drop out; each row is asked in one fold and no other.
    assert sorted(itertools.chain.from_iterable(asked[::2])) == list(range(60))
    assert all(fit | scored == everything(ledger) for fit, scored in zip(folds, asked, strict=True))
    made.predict(x[:1])
    with pytest.raises(AssertionError, match="fitted to rows that it is scored on"):
        ledger.assert_apart()


def test_the_chain_learns_from_mixtures_that_have_not_seen_the_row(monkeypatch):
    few = data.digits().head(60)
    x, y = few.x.double()[:, 16:32], np.arange(60) % 2
    ledger = Ledger(x)
    chain = mixture_chain._chain

    def recorded(mixture, *rest):
        made = chain(mixture, *rest)
        base = made.net.base

        def asked(rows, context, place):  # rows come with their cells in the order `place`
            ledger.scored(mixture, torch.empty_like(rows).scatter(1, place, rows))
            return base(rows, context, place)

        monkeypatch.setattr(made.net, "base", asked)
        return made

    monkeypatch.setattr(mixture_chain, "_chain", recorded)
    mixture = recording(MixtureDiscriminantAnalysis, ledger)(1)
    MixtureChainClassifier(mixture, num_levels=17, steps=1, hidden=2).fit(x, y)
    held_out = list(range(1, len(ledger.fits)))
    assert ledger.fits[0] == everything(ledger)
    ledger.assert_apart(held_out)
    assert [len(fit) for fit in ledger.fits[1:]] == [48] * mixture_chain.FOLDS
    asked = [set(scored) for scored in ledger.scores[1:]]
    assert sorted(itertools.chain.from_iterable(asked)) == list(range(60))
    assert all(len(scored) == mixture_chain.TRAINING_ORDERS * 12 for scored in ledger.scores[1:])


# Choosing.


def test_select_judges_on_rows_that_the_trials_have_not_seen(rows):
    x, y = rows
    ledger = Ledger(x)
    recording(MixtureDiscriminantAnalysis, ledger)(1, select=True).fit(x, y)
    ledger.assert_apart()
    final, *trials = ledger.fits
    assert final == everything(ledger)
    assert len(trials) >= 12
    assert all(fit == trials[0] and len(fit) == 45 for fit in trials)
    assert {frozenset(scored) for scored in ledger.scores[1:]} == {frozenset(everything(ledger) - trials[0])}


@pytest.mark.parametrize("best", [0, 3, -1])
def test_select_takes_the_best_setting(rows, monkeypatch, best):
    """Not the first and not the last: whichever one is made to answer better than the others."""
    x, y = rows
    asked = []

    class Trial(MixtureDiscriminantAnalysis):
        def _fit_likelihood(self, x, context, visible):
            if not self.select:
                settings = {name: getattr(self, name) for name in mixture_discriminant.GRID}
                asked.append(settings) if settings not in asked else None
            return super()._fit_likelihood(x, context, visible)

        def predict_log_proba(self, X, visible=None):
            good = 0.9 if {name: getattr(self, name) for name in mixture_discriminant.GRID} == wanted else 0.4
            told = np.searchsorted(keys, np.asarray(X)[:, 0])
            log_p = np.full((len(X), 3), math.log((1 - good) / 2))
            log_p[np.arange(len(X)), y[order[told]]] = math.log(good)
            return log_p

    order = np.argsort(x[:, 0].numpy())
    keys, wanted = x[:, 0].numpy()[order], None
    Trial(1, select=True).fit(x, y)
    wanted = list(asked)[best]
    assert Trial(1, select=True).fit(x, y).settings_ == wanted


# Temperatures and inner splits.


def test_tempered_learns_the_temperature_on_rows_held_out(rows):
    x, y = rows
    ledger = Ledger(x)
    made = Tempered(recording(DiscriminantAnalysis, ledger)(shrinkage=0.3)).fit(x, y)
    ledger.assert_apart()
    assert [len(fit) for fit in ledger.fits] == [45, 60]
    assert set(ledger.scores[0]) == everything(ledger) - ledger.fits[0]
    assert ledger.scores[1] == []
    assert made.scaled_[0].classifier.training_rows_.shape == (60,)


def test_a_temperature_is_learnt_from_the_rows_given_and_no_others(rows):
    x, y = rows
    ledger = Ledger(x)
    model = recording(DiscriminantAnalysis, ledger)(shrinkage=0.3).fit(x[:40], y[:40])
    TemperatureScaled(model).fit(x[40:], y[40:])
    ledger.assert_apart()
    assert ledger.fits == [set(range(40))]  # never fitted again
    assert ledger.scores == [list(range(40, 60))]


def test_an_inner_split_has_no_row_twice():
    for seed in range(5):
        split = inner_split(np.arange(80) % 4, 3, seed=seed)
        assert not set(split.train) & set(split.test)
        assert set(split.train) | set(split.test) == set(range(80))
        assert [list(part) for part in np.split(split.test, len(inner.SHARES))] == [split.test[:20].tolist()] * len(inner.SHARES)


@pytest.mark.parametrize("name", ["kernel density", "SVM (mean)", "logistic (mean)", "logistic (zero)"])
def test_the_bars_choose_on_rows_held_out(name):
    """What `Chosen` fits and judges is asserted where the bars are tested; none of them chooses in a way of its own."""
    made = MODELS[name].make(data.digits())
    chosen = made.classifier if isinstance(made, Tempered) else made
    assert isinstance(chosen, Chosen)
    assert set(chosen.settings) == set(chosen.classifier.get_params(deep=False)) - {"fill", "max_iter"}


# Labels that are not known.


def test_semi_supervised_fits_all_rows_and_starts_from_the_labelled_ones(rows, monkeypatch):
    x, y = rows
    labels = np.where(np.arange(60) % 4 == 0, y, -1)
    ledger, fit, shares_of = Ledger(x), DiscriminantAnalysis.fit_shares, []

    def recorded(self, rows_, context, seen):
        ledger.fitted(object(), rows_)
        shares_of.append(context.clone())
        return fit(self, rows_, context, seen)

    monkeypatch.setattr(DiscriminantAnalysis, "fit_shares", recorded)
    SemiSupervised(DiscriminantAnalysis(shrinkage=0.3), em_steps=3).fit(x, labels)
    assert ledger.fits[0] == set(np.flatnonzero(labels >= 0))  # the start: labelled rows alone
    assert len(ledger.fits) == 4
    assert all(rows_ == everything(ledger) for rows_ in ledger.fits[1:])
    hot = np.eye(3)[y[labels >= 0]]
    for shares in shares_of[1:]:
        np.testing.assert_array_equal(shares[labels >= 0].numpy(), hot)  # labels that are known stay as they are
        np.testing.assert_allclose(shares.sum(1), 1)
    changed = SemiSupervised(DiscriminantAnalysis(shrinkage=0.3), em_steps=0).fit(torch.where(torch.tensor(labels)[:, None] < 0, x + 5, x), labels)
    plain = SemiSupervised(DiscriminantAnalysis(shrinkage=0.3), em_steps=0).fit(x, labels)
    np.testing.assert_array_equal(changed.predict_proba(x), plain.predict_proba(x))  # without steps unlabelled rows change nothing


# The plan.


def test_the_run_fits_training_rows_and_answers_test_rows(tmp_path, monkeypatch):
    few = data.digits().head(120)
    ledger = Ledger(few.x.double())
    monkeypatch.setitem(MODELS, "recording", Model(lambda _: recording(Frequencies, ledger)()))
    plan = Plan(few, seeds=(1, 2), folds=3, models=("recording",), occlusions=("random-0", "left"))
    for key in plan.units:
        occlusion.one_unit(plan, key)
    ledger.assert_apart()
    for number, (seed, fold, _) in enumerate(plan.units):
        train, test = plan.split(seed, fold)
        assert ledger.fits[number] == set(train)
        assert set(ledger.scores[number]) == set(test)
    for seed in plan.seeds:
        tested = [plan.split(seed, fold)[1].tolist() for fold in range(3)]
        assert sorted(itertools.chain.from_iterable(tested)) == list(range(120))


def test_every_shuffle_is_another_one():
    plan = Plan(data.digits(), seeds=(1, 2, 3))
    parts = {seed: [frozenset(plan.split(seed, fold)[1]) for fold in range(5)] for seed in plan.seeds}
    for one, other in itertools.combinations(plan.seeds, 2):
        assert not set(parts[one]) & set(parts[other])
        # Test parts of a fifth share a fifth of their rows by chance: 72 of 360, with a standard deviation of 7.
        assert all(40 < len(a & b) < 104 for a in parts[one] for b in parts[other])
        assert not plan.pattern("random-50", one, 0, 9).equal(plan.pattern("random-50", other, 0, 9))
    assert {key[0] for key in plan.units} == {1, 2, 3}
