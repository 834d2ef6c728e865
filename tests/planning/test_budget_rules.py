"""What each way of spreading a budget makes best, against a search over all ranks."""

from collections.abc import Callable, Iterator
from itertools import product
from math import prod

import pytest
import torch
from torch import nn

import tensorpress as tp

SIZE = 12
SPECTRA = {
    "steep": [2.0**-k for k in range(SIZE)],
    "even": [1.0 - 0.06 * k for k in range(SIZE)],
    "spike": [5.0] + [1.0] * (SIZE - 1),
    "tail": [3.0, 2.5, 2.0] + [0.5] * (SIZE - 3),
}
PAIRS = [("steep", "even"), ("spike", "even"), ("spike", "tail")]


def layer(spectrum: list[float], seed: int) -> nn.Linear:
    """A layer whose weight has given singular values."""
    generator = torch.Generator().manual_seed(seed)
    result = nn.Linear(SIZE, SIZE, bias=False)
    left, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator))
    result.weight.data = left * torch.tensor(spectrum) @ right
    return result


def squared_errors(spectrum: list[float]) -> list[float]:
    """The squared relative error at each rank; the last is the layer left dense."""
    energies = [value**2 for value in spectrum]
    return [sum(energies[rank:]) / sum(energies) for rank in range(SIZE)] + [0.0]


def within(budget: float) -> Iterator[tuple[int, int]]:
    """All pairs of ranks that a budget of parameters allows, SIZE being dense."""

    def cost(rank: int) -> int:
        return SIZE * SIZE if rank == SIZE else 2 * SIZE * rank

    ranks = [*range(1, SIZE // 2), SIZE]
    return (pair for pair in product(ranks, ranks) if sum(map(cost, pair)) <= budget)


RULES: dict[str, Callable[[list[float]], float]] = {
    "error": lambda errors: sum(error / (1 - error) for error in errors),
    "energy": lambda errors: -prod(1 - error for error in errors),
}


@pytest.mark.parametrize("share", [30, 45, 60, 75])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("rule", RULES)
def test_no_other_ranks_are_better(rule: str, pair: tuple[str, str], share: int) -> None:
    net = nn.Sequential(*(layer(SPECTRA[name], place) for place, name in enumerate(pair)))
    made = tp.plan(net, scheme="channel_svd", budget=f"params={share}%", allocation=rule)
    ranks = {str(place): SIZE for place in range(2)} | {x.name: x.ranks[0] for x in made.layers}
    errors = [squared_errors(SPECTRA[name]) for name in pair]
    best = min(
        within(share / 100 * 2 * SIZE * SIZE),
        key=lambda ranks: RULES[rule]([e[r] for e, r in zip(errors, ranks, strict=True)]),
    )
    assert tuple(ranks.values()) == best


def test_no_layer_is_wiped_out_for_a_budget_that_others_can_meet() -> None:
    # The first layer is large and flat: cheap to lose if a total loss counted as one.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(200, 200, bias=False), *(nn.Linear(40, 40) for _ in range(6)))
    made = tp.plan(net, scheme="channel_svd", budget="params=60%")
    assert all(layer.error is not None and layer.error <= 0.9 for layer in made.layers)


def test_a_layer_is_wiped_out_where_nothing_else_meets_the_budget(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(100, 100, bias=False))
    made = tp.plan(net, scheme="channel_svd", budget="params=4%")
    assert made.params <= 400
    assert "loses 9" in caplog.text
