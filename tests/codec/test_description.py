import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from tpz_models import LENET5, pressed

import tensorpress as tp
from tensorpress.codec.contents import stored_tensors
from tensorpress.codec.description import describe
from tensorpress.codec.header import read_description
from tensorpress.planning import plan_of
from tensorpress.zoo import build


def unpacked(header: object) -> object:
    """What msgpack makes of a header: lists for tuples."""
    return list(map(unpacked, header)) if isinstance(header, (list, tuple)) else header


@given(data=st.data())
def test_what_is_packed_is_read(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(2, 40)), data.draw(st.integers(2, 40))
    core = data.draw(st.sampled_from([{}, {"diagonal": True}]))
    ranks = data.draw(st.integers(1, min(rows, columns)))
    dense = nn.Sequential(nn.Linear(columns, rows), nn.ReLU(), nn.Linear(6, 6, bias=False))
    given = {"modes": [rows, columns], "ranks": ranks, **core}
    model = tp.press(
        dense, tp.plan(dense, scheme="ada_tucker", overrides={"0": given}), start="kaiming"
    )
    description = describe(model, None, stored_tensors(model))
    again = read_description("a.tpz", unpacked(description.pack()))
    assert again == description
    assert again.plan_for("a.tpz", dense).layers == plan_of(model).layers
    again.check_tensors("a.tpz", stored_tensors(model))


@pytest.mark.parametrize("scheme", ["ada_tucker", "scada_tucker"])
@pytest.mark.parametrize("network", ["lenet300100", "cifar-cnn", "resnet32"])
def test_networks_of_the_zoo_are_described(network: str, scheme: str) -> None:
    params = sum(p.numel() for p in build(network).parameters()) // 6
    model = pressed(network, scheme, budget=f"params={params}")
    description = describe(model, network, stored_tensors(model))
    again = read_description("a.tpz", unpacked(description.pack()))
    assert again == description
    assert again.plan_for("a.tpz", build(network)).layers == plan_of(model).layers


def test_a_network_of_the_zoo_is_described_by_numbers() -> None:
    model = pressed("lenet5", overrides=LENET5)
    name, layers, checksum = describe(model, "lenet5", stored_tensors(model)).pack()
    assert name == "lenet5"
    assert layers[0] == [0, (25, 20), 5]
    assert layers[2] == [2, (40, 20, 25, 20), (5, 4, 5, 4)]
    assert 0 <= checksum < 1 << 32
