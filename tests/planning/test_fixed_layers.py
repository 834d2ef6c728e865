"""What overrides fix is a part of the budget, whichever kind it is of."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure import count_macs, count_params
from tensorpress.planning import budget_planner, latency_search, layer_latency

X = torch.zeros(2, 256)


@pytest.fixture
def net() -> nn.Sequential:
    """Two thirds of the weights are in layers that overrides fix."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 256)
    ).eval()


def shared(modes: Sequence[int]) -> dict[str, Any]:
    return {"scheme": "scada_tucker", "modes": modes, "ranks": [60, 60]}


FIXED: dict[str, dict[str, dict[str, Any]]] = {
    "low rank": {"0": {"scheme": "channel_svd", "ranks": 8}},
    "larger than dense": {"0": {"scheme": "channel_svd", "ranks": 160}},
    "two": {
        "0": {"scheme": "channel_svd", "ranks": 40},
        "2": {"scheme": "tucker2", "ranks": [20, 30]},
    },
    "own core": {"0": {"scheme": "ada_tucker", "modes": [256, 256], "ranks": [40, 40]}},
    "shared core": {"0": shared([256, 256]), "2": shared([128, 256])},
    "rebuilt train": {"0": {"scheme": "tt_weight", "ranks": 4}},
}
SHARES = {"larger than dense": 97, "low rank": 45, "two": 40, "rebuilt train": 45}
REBUILT = ("own core", "shared core", "rebuilt train")
"""Those that save parameters, and no multiplications."""


def size(model: nn.Module) -> int:
    return sum(x.numel() * x.element_size() for x in [*model.parameters(), *model.buffers()])


MEASURES = {"params": count_params, "bytes": size, "macs": lambda model: count_macs(model, [X])}


@pytest.mark.parametrize("kind", MEASURES)
@pytest.mark.parametrize("fixed", FIXED)
def test_the_whole_model_takes_the_budget_and_hardly_less(
    net: nn.Module, kind: str, fixed: str
) -> None:
    share = 90 if kind == "macs" and fixed in REBUILT else SHARES.get(fixed, 60)
    entries = FIXED[fixed]
    made = tp.plan(net, X, scheme="channel_svd", budget=f"{kind}={share}%", overrides=entries)
    assert {layer.name for layer in made.layers} > set(entries)
    measure = MEASURES[kind]
    reached = measure(tp.press(net, made)) / measure(net)
    assert 0.98 * share / 100 <= reached <= share / 100


@pytest.mark.parametrize("kind", MEASURES)
@pytest.mark.parametrize("rule", ["error", "energy", "uniform", "evbmf"])
def test_by_any_rule(net: nn.Module, kind: str, rule: str) -> None:
    made = tp.plan(
        net,
        X,
        scheme="channel_svd",
        allocation=rule,
        budget=f"{kind}=45%",
        overrides=FIXED["low rank"],
    )
    measure = MEASURES[kind]
    assert 0.44 <= measure(tp.press(net, made)) / measure(net) <= 0.45


@pytest.mark.parametrize("kind", MEASURES)
def test_a_budget_out_of_reach_says_what_the_model_has_with_the_fixed_layers(
    net: nn.Module, kind: str
) -> None:
    entries = FIXED["larger than dense"]
    how: dict[str, Any] = {"scheme": "channel_svd", "overrides": entries}
    least = tp.press(net, tp.plan(net, X, scheme="channel_svd", ranks=1, overrides=entries))
    message = f"the model still has {MEASURES[kind](least):,} of"
    with pytest.raises(InvalidArgumentError, match=message):
        tp.plan(net, X, budget=f"{kind}=30%", **how)


class Bench:
    """Stands for a machine on which a layer takes a microsecond a parameter of its weights."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: list[nn.Module] = []
        for module in (layer_latency, latency_search):
            monkeypatch.setattr(module, "time_passes", self.pass_times)
        for module in (budget_planner, latency_search):
            monkeypatch.setattr(
                module, "measure_latencies", lambda *x: [t[0] for t in self.pass_times(*x)]
            )

    def pass_times(
        self, models: Sequence[nn.Module], inputs: Sequence[Tensor], **_: object
    ) -> list[list[float]]:
        self.models += [
            model for model in models if isinstance(model, nn.Sequential) and len(model) == 5
        ]
        return [[self.ms(model)] * 3 for model in models]

    @staticmethod
    def ms(model: nn.Module) -> float:
        return sum(x.numel() for x in model.parameters() if x.ndim > 1) / 1000


@pytest.mark.parametrize("fixed", ["low rank", "two"])
def test_the_first_model_that_is_timed_takes_the_latency(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch, fixed: str
) -> None:
    bench = Bench(monkeypatch)
    chosen = tp.plan(
        net, X, scheme="channel_svd", budget=f"latency={SHARES[fixed]}%", overrides=FIXED[fixed]
    )
    built = [model for model in bench.models if model is not net]
    assert len(built) == 1
    reached = bench.ms(built[0]) / bench.ms(net)
    assert 0.9 * SHARES[fixed] / 100 <= reached <= SHARES[fixed] / 100
    times = chosen.latency
    assert times is not None
    assert times.dense == bench.ms(net)
    assert times.reached == pytest.approx(bench.ms(built[0]))
    assert times.predicted == pytest.approx(times.reached, rel=0.1)
    assert tp.Plan.from_dict(chosen.to_dict()) == chosen
    assert f"{times.reached:.2f} ms reached" in str(chosen)
