from itertools import pairwise

import pytest
from torch import nn

from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.sensitivity.candidates import (
    bisection_order,
    fill_scores,
    job_name,
    order_candidates,
)


def _group(layer: str, count: int = 3) -> list[LayerPlan]:
    spec = describe_layer(nn.Linear(40, 40))
    return [LayerPlan(layer, "channel_svd", spec, (rank,)) for rank in range(1, count + 1)]


GROUPS = [_group("a"), _group("b")]
ESTIMATED = {job_name(choice): 1.0 / choice.ranks[0] for group in GROUPS for choice in group}


def _scores(measured: dict[str, float]) -> dict[str, list[float]]:
    result = fill_scores(GROUPS, measured, ESTIMATED)
    return {layer: [choice.score for choice in choices] for layer, choices in result.items()}


def test_without_measurements_scores_are_the_estimates():
    assert _scores({})["a"] == [1.0, 1 / 2, 1 / 3]


def test_what_shows_no_loss_by_chance_counts_for_half_of_what_is_expected():
    measured = {job_name(GROUPS[0][1]): -0.25, job_name(GROUPS[1][0]): 3.0}
    choice = fill_scores(GROUPS, measured, ESTIMATED)["a"][1]
    assert choice.measured
    assert choice.increase == -0.25
    assert choice.score == pytest.approx(0.5 * (3 / 1.5) * 0.5)  # ratio of the model, estimate


def test_where_nothing_was_lost_at_all_nothing_is_expected():
    scores = fill_scores(GROUPS, {job_name(GROUPS[0][1]): -0.5}, ESTIMATED)
    assert [choice.score for choice in scores["a"]] == [0.0, 0.0, 0.0]
    assert scores["a"][1].increase == -0.5


def test_others_are_scaled_by_the_model_and_half_by_their_layer():
    scores = _scores({job_name(GROUPS[0][0]): 4.0, job_name(GROUPS[1][0]): 2.0})
    assert scores["a"] == pytest.approx([4.0, (3 + 4) / 2 / 2, (3 + 4) / 2 / 3])
    assert scores["b"] == pytest.approx([2.0, (3 + 2) / 2 / 2, (3 + 2) / 2 / 3])


def test_a_layer_without_measurements_is_scaled_by_the_model():
    assert _scores({job_name(GROUPS[0][0]): 4.0})["b"] == pytest.approx([4.0, 2.0, 4 / 3])


def test_middles_come_first_and_of_them_what_loses_most():
    estimated = {**ESTIMATED, job_name(GROUPS[1][1]): 9.0}
    order = [(choice.name, choice.ranks[0]) for choice in order_candidates(GROUPS, estimated)]
    assert order[:2] == [("b", 2), ("a", 2)]
    assert sorted(order) == [(layer, rank) for layer in "ab" for rank in (1, 2, 3)]


@pytest.mark.parametrize("count", range(12))
def test_halving_names_every_place_once_and_spreads(count):
    order = bisection_order(count)
    assert sorted(order) == list(range(count))
    for done in range(1, count):
        edges = sorted([-1, *order[:done], count])
        gaps = [b - a for a, b in pairwise(edges)]
        assert max(gaps) <= 2 * (count + 1) // (done + 1) + 1
