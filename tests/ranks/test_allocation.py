from itertools import product
from math import inf, log, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorpress.errors import InvalidArgumentError
from tensorpress.ranks import Option, allocate, knapsack, pareto

METHODS = ("total", "greedy", "worst")
OPTION = st.builds(Option, st.integers(0, 20), st.integers(-5, 30))
LAYERS = st.lists(st.lists(OPTION, min_size=1, max_size=6), min_size=1, max_size=4)
BUDGET = st.integers(0, 90)

every_method = pytest.mark.parametrize("method", METHODS)


def total_cost(layers, choice):
    return sum(layer[k].cost for layer, k in zip(layers, choice, strict=True))


def total_score(layers, choice):
    return sum(layer[k].score for layer, k in zip(layers, choice, strict=True))


def worst_score(layers, choice):
    return max(layer[k].score for layer, k in zip(layers, choice, strict=True))


def feasible_choices(layers, budget):
    """Return all choices within a budget."""
    choices = product(*(range(len(layer)) for layer in layers))
    return [choice for choice in choices if total_cost(layers, choice) <= budget]


def make_tight_problem(seed):
    """Layers and a budget for which the steepest steps are seldom the best."""
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 30, (5, 5)).tolist()
    scores = rng.integers(0, 30, (5, 5)).tolist()
    pairs = zip(costs, scores, strict=True)
    layers = [[Option(*pair) for pair in zip(*row, strict=True)] for row in pairs]
    least = sum(min(option.cost for option in layer) for layer in layers)
    return layers, least + int(rng.integers(0, 40))


def make_layers(count, options, *, seed=0, noise=0.0):
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


def test_a_better_total_than_that_of_the_steepest_steps_is_found():
    steep = [Option(0, 10.0), Option(6, 0.0)]
    flat = [Option(0, 8.0), Option(5, 0.0)]
    assert allocate([steep, flat, flat], 10) == [0, 1, 1]
    assert allocate([steep, flat, flat], 10, method="greedy") == [1, 0, 0]


def test_no_choice_is_better_within_a_tight_budget():
    for seed in range(60):
        layers, budget = make_tight_problem(seed)
        choices = feasible_choices(layers, budget)
        choice = allocate(layers, budget)
        assert total_cost(layers, choice) <= budget
        assert total_score(layers, choice) == min(total_score(layers, other) for other in choices)
        least_worst = min(worst_score(layers, other) for other in choices)
        assert worst_score(layers, allocate(layers, budget, method="worst")) == least_worst


@settings(max_examples=60)
@given(LAYERS, BUDGET)
def test_no_choice_has_a_lower_total(layers, budget):
    choices = feasible_choices(layers, budget)
    if not choices:
        with pytest.raises(InvalidArgumentError):
            allocate(layers, budget)
        return
    choice = allocate(layers, budget)
    assert total_cost(layers, choice) <= budget
    least = min(total_score(layers, other) for other in choices)
    assert total_score(layers, choice) == least


@settings(max_examples=60)
@given(LAYERS, BUDGET)
def test_no_choice_has_a_lower_worst_score(layers, budget):
    choices = feasible_choices(layers, budget)
    if choices:
        choice = allocate(layers, budget, method="worst")
        assert total_cost(layers, choice) <= budget
        assert worst_score(layers, choice) == min(worst_score(layers, other) for other in choices)


@settings(max_examples=60)
@given(LAYERS, BUDGET)
def test_greedy_stays_within_the_budget_and_leaves_no_better_option(layers, budget):
    if not feasible_choices(layers, budget):
        return
    choice = allocate(layers, budget, method="greedy")
    rest = budget - total_cost(layers, choice)
    assert rest >= 0
    for layer, k in zip(layers, choice, strict=True):
        affordable = [option.score for option in layer if option.cost <= layer[k].cost + rest]
        assert layer[k].score == min(affordable)


def test_few_states_lose_no_more_than_documented(monkeypatch):
    layers = make_layers(6, 12, noise=0.3)
    budget = 0.4 * dense_cost(layers)
    exact = total_score(layers, allocate(layers, budget))
    for states in (8, 40):
        monkeypatch.setattr(knapsack, "STATES", states)
        choice = allocate(layers, budget)
        assert total_cost(layers, choice) <= budget
        most = sum(max(option.score for option in layer) for layer in layers)
        assert exact <= total_score(layers, choice) <= exact + len(layers) * most / states


def test_the_budget_that_the_hull_leaves_is_spent():
    # On the hull are only the ends: the steps to the dense layers do not fit, those between do.
    layers = [[Option(100, 0.0), Option(60, 0.5), Option(10, 0.6)]] * 3
    assert sorted(allocate(layers, 99)) == [1, 2, 2]
    assert sorted(allocate(layers, 120)) == [0, 2, 2]


@every_method
@pytest.mark.parametrize("count", [5, 20, 200])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_network_gets_nearly_all_of_its_budget(method, count, share):
    layers = make_layers(count, 100)
    budget = share * dense_cost(layers)
    assert 0.98 * budget <= total_cost(layers, allocate(layers, budget, method=method)) <= budget


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_each_method_is_best_by_its_own_measure(noise):
    layers = make_layers(30, 60, noise=noise)
    choices = {m: allocate(layers, 0.4 * dense_cost(layers), method=m) for m in METHODS}
    total = {m: total_score(layers, choice) for m, choice in choices.items()}
    worst = {m: worst_score(layers, choice) for m, choice in choices.items()}
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
        assert [k + 1 for k in allocate(layers, budget, method="greedy")] == ranks
    # The step to (2, 2) leaves 9, for which a component of the first layer is to be had again.
    assert [k + 1 for k in allocate(layers, 41, method="greedy")] == [3, 2]


@every_method
def test_an_ample_budget_gives_the_best_options(method):
    layers = make_layers(4, 10)
    assert allocate(layers, dense_cost(layers), method=method) == [0, 0, 0, 0]
    assert allocate(layers, inf, method=method) == [0, 0, 0, 0]


@every_method
def test_the_least_budget_gives_the_cheapest_options(method):
    layers = make_layers(4, 10)
    least = sum(min(option.cost for option in layer) for layer in layers)
    assert allocate(layers, least, method=method) == [1, 1, 1, 1]


@every_method
def test_a_budget_below_the_cheapest_options_is_refused(method):
    layers = [[Option(2_000_000, 0.0), Option(1_000_000.5, 1.0)], [Option(34.0, 0.0)]]
    with pytest.raises(InvalidArgumentError, match=r"least reachable cost, 1,000,034\.5$"):
        allocate(layers, 1_000_034, method=method)
    with pytest.raises(InvalidArgumentError, match="budget of nan"):
        allocate(layers, nan, method=method)


@every_method
def test_no_layers_give_no_options(method):
    assert allocate([], 0.0, method=method) == []


@every_method
def test_an_option_may_have_a_better_score_than_the_dense_layer(method):
    layers = [[Option(10, 0.0), Option(4, -1.0)], [Option(10, 0.0), Option(4, 1.0)]]
    assert allocate(layers, 20, method=method) == [1, 0]


@given(st.lists(OPTION, min_size=1, max_size=12))
def test_pareto_options_are_those_that_no_other_beats(options):
    front = pareto(options)
    pairs = [(options[k].cost, options[k].score) for k in front]
    assert pairs == sorted(pairs)
    for index, option in enumerate(options):
        beaten = any(
            other.cost <= option.cost and other.score <= option.score and other != option
            for other in options
        )
        assert (index in front) == (not beaten and options.index(option) == index)


@pytest.mark.parametrize(
    "option", [Option(-1, 0), Option(nan, 0), Option(inf, 0), Option(1, nan), Option(1, inf)]
)
def test_negative_costs_and_numbers_that_are_not_finite_are_refused(option):
    with pytest.raises(InvalidArgumentError, match="costs must be finite"):
        allocate([[Option(1, 0), option]], 10)


def test_a_layer_without_options_is_refused():
    with pytest.raises(InvalidArgumentError, match="no options"):
        allocate([[Option(1, 0)], []], 10)


def test_a_misspelt_method_is_refused():
    with pytest.raises(InvalidArgumentError, match="did you mean 'greedy'"):
        allocate([], 1.0, method="gredy")
