r"""EM for the mixtures of one class, of low-rank Student-t joints, from rows with hidden cells: mixtures of factor analysers."""

import torch

from torch import Tensor

from pyro_ar.classify.mda.hidden_mixture import HiddenMixture
from pyro_ar.elliptical import LowRankStudentT
from pyro_ar.elliptical.em_low_rank import (
    FLOOR,
    Form,
    Sums,
    expect_complete,
    expect_rows,
    expect_scatter,
    maximise,
    price,
)

__all__ = ["LowRankHiddenMixture"]


class LowRankHiddenMixture(HiddenMixture):
    """With scale matrices of low rank plus diagonal: `form` is centres `(K, D)`, factors `(K, D, r)` and diagonals `(K, D)`."""

    def start(self, own: Tensor, *form: Tensor) -> None:
        row, entry, share = self._pairs(own)
        n, scale, first = self._count(entry, share), (self.df - 2) / self.df, Form(*form)
        variance = first.factor.square().sum(-1) + first.diag
        self.floor = scale * FLOOR * variance
        self._set_target(n)
        forms = []
        for k in range(own.shape[1]):
            sums = self._sums(first, row[entry == k], share[entry == k], None)
            alone = maximise(first, sums.plus(expect_scatter(first, self.prior / scale, self.prior_rows)), FLOOR * variance)
            self.spread[k] = scale * (alone.factor.square().sum(-1) + alone.diag).mean()
            shrunk = maximise(first, sums.plus(expect_scatter(first, self._scatter(k) / scale, self._rows(k))), FLOOR * variance)
            forms.append((shrunk.loc, shrunk.factor * scale**0.5, shrunk.diag * scale))
        self.form = tuple(torch.stack(t) for t in zip(*forms, strict=True))

    def step(self) -> None:
        row, entry, share = self._pairs(self._log_shares()[0].exp())
        self._count(entry, share)
        forms = []
        for k, old in enumerate(self._forms()):
            sums = self._sums(old, row[entry == k], share[entry == k], self.df)
            forms.append(maximise(old, sums.plus(expect_scatter(old, self._scatter(k), self._rows(k))), self.floor))
        self.form = tuple(torch.stack(t) for t in zip(*forms, strict=True))

    def _joint(self) -> LowRankStudentT:
        return LowRankStudentT(self.df, *self.form, validate_args=False)

    def _price(self) -> float:
        parts = [price(form, self._scatter(k), self._rows(k)) + self.centre_rows / 2 * self._of_centre(form)[1].sum()
                 for k, form in enumerate(self._forms())]
        return float(sum(parts))

    def _forms(self) -> list[Form]:
        return [Form(*t) for t in zip(*self.form, strict=True)]

    def _rows(self, k: int) -> float:
        """What the priors of component k are worth."""
        return self.prior_rows + float(self.target_rows[k])

    def _scatter(self, k: int) -> Tensor:
        """And their scatter, `(D, D)`."""
        return self.prior + self.target_rows[k] * self.spread[k] * torch.eye(self.z.shape[1]).to(self.z)

    def _of_centre(self, form: Form) -> tuple[Sums, Tensor]:
        none = self.z.new_zeros(1)  # it pulls, but is no row: the price of the centre has no determinant
        return expect_complete(form, self.centre[None], none, pull=none + self.centre_rows)

    def _sums(self, form: Form, rows: Tensor, share: Tensor, df: float | None) -> Sums:
        sums, _, _ = expect_rows(form, self.z[rows], self.visible[rows], (1 - self.shift_weight) * share, df)
        for copies in self.moved[:, rows]:
            sums = sums.plus(expect_complete(form, copies, self.shift_weight / len(self.moved) * share, df)[0])
        return sums.plus(self._of_centre(form)[0])
