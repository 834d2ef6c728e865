"""What budgets, entries and plans written by hand mean in detail."""

from typing import Any

import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.budget import parse_budget

THOUSANDS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
UNITS: dict[str, dict[str, float]] = {
    "params": THOUSANDS,
    "macs": THOUSANDS,
    "bytes": {"": 1, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    "latency": {"us": 1e-3, "ms": 1, "s": 1e3},
}


@pytest.mark.parametrize(
    ("kind", "unit"), [(kind, unit) for kind, units in UNITS.items() for unit in units]
)
def test_every_unit_is_what_it_says(kind: str, unit: str) -> None:
    budget = parse_budget(f"{kind}=2.5{unit}")
    assert budget.amount == pytest.approx(2.5 * UNITS[kind][unit], rel=1e-12)
    assert not budget.relative


@pytest.mark.parametrize("kind", UNITS)
def test_per_cent_are_of_the_dense_model_and_a_saving(kind: str) -> None:
    assert parse_budget(f"{kind}=0.5%").amount == pytest.approx(0.005)
    assert parse_budget(f"{kind}=99.9%").amount == pytest.approx(0.999)
    for amount in ("0%", "100%", "150%", "0" + next(iter(UNITS[kind]))):
        with pytest.raises(InvalidArgumentError, match="expected"):
            parse_budget(f"{kind}={amount}")
    assert parse_budget(f"{kind}=7{max(UNITS[kind])}").amount > 0


def test_ranks_of_an_entry_are_taken_as_they_are_and_those_of_all_are_rounded() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    entries: dict[str, Any] = {"0": {"ranks": 5}, "1": {"scheme": "channel_svd"}}
    made = tp.plan(net, scheme="channel_svd", ranks=11, overrides=entries, round_to=8)
    assert [layer.ranks for layer in made.layers] == [(5,), (8,), (8,)]


@pytest.mark.parametrize("scheme", ["ada_tucker", "scada_tucker"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rebuilt_weights_meet_a_budget_of_bytes(scheme: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(60, 80), nn.BatchNorm1d(80), nn.Linear(80, 40)).to(dtype)
    made = tp.plan(net, scheme=scheme, budget="bytes=40%")
    pressed = tp.press(net, made, init="glorot")
    sizes = [
        sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
        for model in (pressed, net)
    ]
    assert (made.bytes, made.dense_bytes) == tuple(sizes)
    assert 0.3 * sizes[1] <= sizes[0] <= 0.4 * sizes[1]
    exact = tp.plan(net, scheme=scheme, budget=f"bytes={made.bytes}")
    assert exact.bytes == made.bytes


def test_a_plan_written_by_hand_counts_its_layers_alone() -> None:
    net = nn.Sequential(nn.Linear(64, 64))
    content = tp.plan(net, scheme="channel_svd", ranks=4).to_dict()
    made = tp.Plan.from_dict({"layers": content["layers"]})
    assert (made.params, made.dense_params) == (4 * 128, 64 * 64)
    assert (made.bytes, made.dense_bytes) == (4 * 4 * 128, 4 * 64 * 64)
    assert made.unpressed == {}
