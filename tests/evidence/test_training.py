"""Where trainings settle, and several of them as one subject, by hand."""

from __future__ import annotations

import pytest
from made_runs import attacked

from mosa.evidence.figures import gather, headline
from mosa.evidence.training import over_trainings, settled
from mosa.runs.records import TrainingPoint
from mosa.stats.rates import rate_of

TRAININGS = {"mosa": {4: "mosa-4", 7: "mosa-7"}, "base": {0: "base"}}


def test_trainings_are_the_seeds_of_their_method(tmp_path):
    """Case b has no score in the second training, where it is left out and counted."""
    attacked(
        tmp_path,
        {
            "base": {"prefill": {"a": True, "b": True}},
            "mosa-4": {"prefill": {"a": True, "b": False}},
            "mosa-7": {"prefill": {"a": False, "b": None}},
        },
    )
    pooled = over_trainings(gather([tmp_path]), TRAININGS)
    mosa, base = (pooled.select("safety", subject=name)[0] for name in ("mosa", "base"))
    assert mosa.by_seed == {"made up/a": {4: 1.0, 7: 0.0}, "made up/b": {4: 0.0}}
    assert mosa.unscored == {("made up/b", 7)} and mosa.num_tries == 4
    assert mosa.rate == rate_of({"a": {4: 1.0, 7: 0.0}, "b": {4: 0.0, 7: None}})
    assert base.by_seed == {"made up/a": {0: 1.0}, "made up/b": {0: 1.0}}
    asr = headline(pooled, "asr", "mosa").rate
    assert asr is not None and asr.value == 0.25 and asr.num_seeds == 2


def test_a_case_counts_with_its_mean_over_the_seeds_of_decoding(tmp_path):
    """And not at all for a training in which one of those is unscored."""
    for seed, outcomes in enumerate(({"a": True, "b": True}, {"a": False, "b": None})):
        attacked(tmp_path, {"mosa-4": {"prefill": outcomes}}, seed=seed)
    (figure,) = over_trainings(gather([tmp_path]), TRAININGS).figures
    assert figure.by_seed == {"made up/a": {4: 0.5}}
    assert figure.unscored == {("made up/b", 4)}


def test_a_training_ends_where_the_last_fifth_of_its_log_is():
    """Ten points: the last two count, 16 and 20 with a mean of 18; shares may lack."""
    points = [TrainingPoint(i, 1.0, 0.0) for i in range(8)]
    points += [TrainingPoint(8, 16.0, 0.5, 2.0), TrainingPoint(9, 20.0, None, 4.0)]
    end = settled(points)
    assert end is not None
    assert (end.reward, end.refusal_share, end.kl) == (18.0, 0.5, 3.0)
    assert end.is_in_band
    assert settled([]) is None


@pytest.mark.parametrize(
    ("reward", "inside"), [(14.9, False), (15.0, True), (20.0, True), (20.1, False)]
)
def test_the_band_is_the_papers(reward, inside):
    end = settled([TrainingPoint(1, reward)])
    assert end is not None and end.is_in_band == inside
