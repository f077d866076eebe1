r"""The conformance kit: what every joint must satisfy, ours or a user's.

Each check is a function of one joint that returns nothing, raises `AssertionError` with what is
wrong, or raises `NotApplicable` where it cannot be asked (a continuous joint has no states to
enumerate). `CHECKS` holds them all. The joint may be of any class that has the attributes of
`pyro_ar.joint.Joint`; small ones (a few variables of a few states) are checked in seconds. Each check is
seeded, leaves the random state and Pyro's parameter store as they were, and turns validation on meanwhile.

`NET_CHECKS` holds what every net must satisfy, see `pyro_ar.testing.nets`.

Example, in a test file:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_joint(check):
        try:
            check(MyJoint(torch.randn(4)))
        except NotApplicable as reason:
            pytest.skip(str(reason))
"""

from pyro_ar.testing.density import (
    conditionals_normalise,
    enumeration_is_sane,
    is_causal,
    normalises,
    samples_follow_log_prob,
)
from pyro_ar.testing.goodness import FALSE_ALARM
from pyro_ar.testing.hidden import (
    hidden_cells_are_never_read,
    hidden_cells_are_never_read_in_pyro,
    impossible_evidence_is_refused,
)
from pyro_ar.testing.inference import (
    enumerates_a_class_above,
    enumerates_as_latent,
    infers_the_likeliest_class,
    plates_scale,
    predicts,
    runs_nuts,
    trace_scores_once_and_again,
    trains_by_svi,
)
from pyro_ar.testing.nets import NET_CHECKS
from pyro_ar.testing.oracles import MAX_STATES, NotApplicable
from pyro_ar.testing.queries import (
    given_is_right,
    given_samples_follow_log_prob,
    marginal_is_right,
    patterns_have_any_shape,
)
from pyro_ar.testing.rows import rows_stand_alone
from pyro_ar.testing.shapes import (
    answers_no_rows,
    conditionals_sum_to_log_prob,
    expands,
    shapes_agree,
)
from pyro_ar.testing.values import (
    accepts_all_number_types,
    differentiates_twice_in_turn,
    precisions_agree,
    refuses_bad_values,
    refuses_bad_values_in_pyro,
    refuses_wrong_shapes,
    runs_on_cuda,
    survives_deepcopy,
    survives_pickle,
)

CHECKS = (
    shapes_agree,
    answers_no_rows,
    expands,
    conditionals_sum_to_log_prob,
    rows_stand_alone,
    normalises,
    conditionals_normalise,
    is_causal,
    samples_follow_log_prob,
    enumeration_is_sane,
    marginal_is_right,
    patterns_have_any_shape,
    given_is_right,
    given_samples_follow_log_prob,
    impossible_evidence_is_refused,
    hidden_cells_are_never_read,
    hidden_cells_are_never_read_in_pyro,
    refuses_wrong_shapes,
    refuses_bad_values,
    refuses_bad_values_in_pyro,
    accepts_all_number_types,
    survives_pickle,
    survives_deepcopy,
    differentiates_twice_in_turn,
    precisions_agree,
    runs_on_cuda,
    plates_scale,
    enumerates_a_class_above,
    infers_the_likeliest_class,
    enumerates_as_latent,
    runs_nuts,
    trains_by_svi,
    predicts,
    trace_scores_once_and_again,
)
"""All checks, the cheap and telling ones first."""

__all__ = [
    "CHECKS", "FALSE_ALARM", "MAX_STATES", "NET_CHECKS", "NotApplicable", "accepts_all_number_types", "answers_no_rows",
    "conditionals_normalise", "conditionals_sum_to_log_prob", "differentiates_twice_in_turn",
    "enumerates_a_class_above", "enumerates_as_latent", "enumeration_is_sane", "expands", "given_is_right",
    "given_samples_follow_log_prob", "hidden_cells_are_never_read", "hidden_cells_are_never_read_in_pyro",
    "impossible_evidence_is_refused", "infers_the_likeliest_class", "is_causal", "marginal_is_right",
    "normalises", "patterns_have_any_shape", "plates_scale", "precisions_agree", "predicts",
    "refuses_bad_values", "refuses_bad_values_in_pyro", "refuses_wrong_shapes", "rows_stand_alone", "runs_nuts", "runs_on_cuda",
    "samples_follow_log_prob", "shapes_agree", "survives_deepcopy", "survives_pickle",
    "trace_scores_once_and_again", "trains_by_svi",
]
