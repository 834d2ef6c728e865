from itertools import product
from math import inf, log, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorpress.errors import InvalidArgumentError
from tensorpress.ranks import Option, allocate, knapsack, pareto

WAYS = ("total", "greedy", "worst")
OPTION = st.builds(Option, st.integers(0, 20), st.integers(-5, 30))
LAYERS = st.lists(st.lists(OPTION, min_size=1, max_size=6), min_size=1, max_size=4)
BUDGET = st.integers(0, 90)

every_way = pytest.mark.parametrize("by", WAYS)


def cost_of(layers, chosen):
    return sum(layer[k].cost for layer, k in zip(layers, chosen, strict=True))


def score_of(layers, chosen):
    return sum(layer[k].score for layer, k in zip(layers, chosen, strict=True))


def worst_of(layers, chosen):
    return max(layer[k].score for layer, k in zip(layers, chosen, strict=True))


def all_within(layers, budget):
    """Every choice that fits."""
    choices = product(*(range(len(layer)) for layer in layers))
    return [choice for choice in choices if cost_of(layers, choice) <= budget]


def tight(seed):
    """Layers and a budget for which the steepest steps are seldom the best."""
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 30, (5, 5)).tolist()
    scores = rng.integers(0, 30, (5, 5)).tolist()
    pairs = zip(costs, scores, strict=True)
    layers = [[Option(*pair) for pair in zip(*row, strict=True)] for row in pairs]
    least = sum(min(option.cost for option in layer) for layer in layers)
    return layers, least + int(rng.integers(0, 40))


def network(count, options, *, seed=0, noise=0.0):
    """Layers of many sizes whose error falls with their cost, and the dense layer far above."""
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(count):
        dense, fall = float(rng.integers(10**4, 4 * 10**6)), rng.uniform(0.5, 4)
        part = np.linspace(0.005, 0.9, options)
        errors = (1 - part) ** fall * np.exp(noise * rng.standard_normal(options))
        pressed = [Option(round(p * dense), e) for p, e in zip(part, errors.tolist(), strict=True)]
        layers.append([Option(dense, 0.0), *pressed])
    return layers


def dense_cost(layers):
    return sum(layer[0].cost for layer in layers)


def test_the_steepest_steps_are_not_taken_where_others_fill_the_budget_better():
    steep = [Option(0, 10.0), Option(6, 0.0)]
    flat = [Option(0, 8.0), Option(5, 0.0)]
    assert allocate([steep, flat, flat], 10) == [0, 1, 1]
    assert allocate([steep, flat, flat], 10, by="greedy") == [1, 0, 0]


def test_tight_budgets_are_used_as_well_as_by_any_choice():
    for seed in range(60):
        layers, budget = tight(seed)
        possible = all_within(layers, budget)
        chosen = allocate(layers, budget)
        assert cost_of(layers, chosen) <= budget
        assert score_of(layers, chosen) == min(score_of(layers, choice) for choice in possible)
        least_worst = min(worst_of(layers, choice) for choice in possible)
        assert worst_of(layers, allocate(layers, budget, by="worst")) == least_worst


@settings(max_examples=60)
@given(LAYERS, BUDGET)
def test_the_least_total_is_that_of_all_choices(layers, budget):
    possible = all_within(layers, budget)
    if not possible:
        with pytest.raises(InvalidArgumentError):
            allocate(layers, budget)
        return
    chosen = allocate(layers, budget)
    assert cost_of(layers, chosen) <= budget
    least = min(score_of(layers, choice) for choice in possible)
    assert score_of(layers, chosen) == least


@settings(max_examples=60)
@given(LAYERS, BUDGET)
def test_the_least_worst_is_that_of_all_choices(layers, budget):
    possible = all_within(layers, budget)
    if possible:
        chosen = allocate(layers, budget, by="worst")
        assert cost_of(layers, chosen) <= budget
        assert worst_of(layers, chosen) == min(worst_of(layers, choice) for choice in possible)


@settings(max_examples=60)
@given(LAYERS, BUDGET)
def test_the_greedy_way_keeps_the_budget_and_leaves_nothing_that_fits(layers, budget):
    if not all_within(layers, budget):
        return
    chosen = allocate(layers, budget, by="greedy")
    rest = budget - cost_of(layers, chosen)
    assert rest >= 0
    for layer, k in zip(layers, chosen, strict=True):
        affordable = [option.score for option in layer if option.cost <= layer[k].cost + rest]
        assert layer[k].score == min(affordable)


def test_few_states_lose_no_more_than_stated(monkeypatch):
    layers = network(6, 12, noise=0.3)
    budget = 0.4 * dense_cost(layers)
    exact = score_of(layers, allocate(layers, budget))
    for states in (8, 40):
        monkeypatch.setattr(knapsack, "STATES", states)
        chosen = allocate(layers, budget)
        assert cost_of(layers, chosen) <= budget
        most = sum(max(option.score for option in layer) for layer in layers)
        assert exact <= score_of(layers, chosen) <= exact + len(layers) * most / states


def test_what_the_hull_leaves_of_the_budget_is_spent():
    # On the hull are only the ends: the steps to the dense layers do not fit, those between do.
    layers = [[Option(100, 0.0), Option(60, 0.5), Option(10, 0.6)]] * 3
    assert sorted(allocate(layers, 99)) == [1, 2, 2]
    assert sorted(allocate(layers, 120)) == [0, 2, 2]


@every_way
@pytest.mark.parametrize("count", [5, 20, 200])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_network_gets_nearly_all_of_its_budget(by, count, share):
    layers = network(count, 100)
    budget = share * dense_cost(layers)
    assert 0.98 * budget <= cost_of(layers, allocate(layers, budget, by=by)) <= budget


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_of_all_ways_each_is_best_at_its_own(noise):
    layers = network(30, 60, noise=noise)
    found = {by: allocate(layers, 0.4 * dense_cost(layers), by=by) for by in WAYS}
    total = {by: score_of(layers, chosen) for by, chosen in found.items()}
    worst = {by: worst_of(layers, chosen) for by, chosen in found.items()}
    assert min(total, key=total.get) == "total"
    assert min(worst, key=worst.get) == "worst"
    assert len(set(total.values())) == 3


def test_greedy_on_energies_takes_the_steps_of_zhang_et_al():
    spectra = [np.array([9.0, 4.0, 2.0, 1.0]), np.array([5.0, 4.0, 3.0])]
    sizes = (6, 10)
    layers = [
        [Option(r * size, -log(s[:r].sum() / s.sum())) for r in range(1, len(s) + 1)]
        for s, size in zip(spectra, sizes, strict=True)
    ]
    # (ΔE/E)/ΔC of each component that is dropped, first to last: (1/16)/6, (2/15)/6, (3/12)/10,
    # and then (4/9)/10 before (4/13)/6.
    for budget, ranks in {54: [4, 3], 48: [3, 3], 42: [2, 3], 32: [2, 2], 22: [2, 1]}.items():
        assert [k + 1 for k in allocate(layers, budget, by="greedy")] == ranks
    # The step to (2, 2) leaves 9, for which a component of the first layer is to be had again.
    assert [k + 1 for k in allocate(layers, 41, by="greedy")] == [3, 2]


@every_way
def test_a_budget_for_all_gives_the_best_of_each(by):
    layers = network(4, 10)
    assert allocate(layers, dense_cost(layers), by=by) == [0, 0, 0, 0]
    assert allocate(layers, inf, by=by) == [0, 0, 0, 0]


@every_way
def test_a_budget_for_the_cheapest_gives_these(by):
    layers = network(4, 10)
    least = sum(min(option.cost for option in layer) for layer in layers)
    assert allocate(layers, least, by=by) == [1, 1, 1, 1]


@every_way
def test_below_the_cheapest_the_error_says_what_can_be_reached(by):
    layers = [[Option(2_000_000, 0.0), Option(1_000_000.5, 1.0)], [Option(34.0, 0.0)]]
    with pytest.raises(InvalidArgumentError, match=r"least reachable cost, 1,000,034\.5$"):
        allocate(layers, 1_000_034, by=by)
    with pytest.raises(InvalidArgumentError, match="budget of nan"):
        allocate(layers, nan, by=by)


@every_way
def test_no_layers_need_nothing(by):
    assert allocate([], 0.0, by=by) == []


@every_way
def test_a_score_may_be_better_than_that_of_the_dense_layer(by):
    layers = [[Option(10, 0.0), Option(4, -1.0)], [Option(10, 0.0), Option(4, 1.0)]]
    assert allocate(layers, 20, by=by) == [1, 0]


@given(st.lists(OPTION, min_size=1, max_size=12))
def test_pareto_options_are_those_that_no_other_beats(options):
    found = pareto(options)
    pairs = [(options[k].cost, options[k].score) for k in found]
    assert pairs == sorted(pairs)
    for index, option in enumerate(options):
        beaten = any(
            other.cost <= option.cost and other.score <= option.score and other != option
            for other in options
        )
        assert (index in found) == (not beaten and options.index(option) == index)


@pytest.mark.parametrize(
    "option", [Option(-1, 0), Option(nan, 0), Option(inf, 0), Option(1, nan), Option(1, inf)]
)
def test_what_cannot_be_compared_is_refused(option):
    with pytest.raises(InvalidArgumentError, match="costs must be finite"):
        allocate([[Option(1, 0), option]], 10)


def test_a_layer_without_options_is_refused():
    with pytest.raises(InvalidArgumentError, match="no options"):
        allocate([[Option(1, 0)], []], 10)


def test_a_misspelt_way_is_refused():
    with pytest.raises(InvalidArgumentError, match="did you mean 'greedy'"):
        allocate([], 1.0, by="gredy")
