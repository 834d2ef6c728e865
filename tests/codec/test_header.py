import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from tpz_models import LENET5, press_network

import tensorpress as tp
from tensorpress.codec.adaptive_coder import Stream
from tensorpress.codec.header import describe
from tensorpress.codec.model_tensors import stored_tensors
from tensorpress.codec.named_header import pack, unpack
from tensorpress.codec.zoo_header import (
    NETWORK_NUMBERS,
    SCHEME_NUMBERS,
    read_layers,
    read_network,
    write_layers,
    write_network,
)
from tensorpress.models.zoo import NETWORKS, build
from tensorpress.planning import plan_from_model
from tensorpress.schemes.registry import rank_schemes


@given(data=st.data())
def test_headers_of_custom_models_round_trip(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(2, 40)), data.draw(st.integers(2, 40))
    core = data.draw(st.sampled_from([{}, {"diagonal": True}, {"reduced": True}]))
    ranks = data.draw(st.integers(1, min(rows, columns)))
    dense = nn.Sequential(nn.Linear(columns, rows), nn.ReLU(), nn.Linear(6, 6, bias=False))
    override = {"modes": [rows, columns], "ranks": ranks, **core}
    model = tp.press(
        dense, tp.plan(dense, scheme="ada_tucker", overrides={"0": override}), init="kaiming"
    )
    description = describe(model, None, stored_tensors(model))
    unpacked = unpack("a.tpz", pack(description))
    assert unpacked == description
    assert unpacked.plan_for("a.tpz", dense).layers == plan_from_model(model).layers
    unpacked.check_tensors("a.tpz", stored_tensors(model))


def round_trip(network: str, model: nn.Module) -> int:
    """Return the bytes of a header of the zoo, after comparing what is read from it."""
    description = describe(model, network, stored_tensors(model))
    stream = Stream()
    write_network(stream, description)
    write_layers(stream, description)
    data = stream.finish()
    reader = Stream(data)
    assert read_network("a.tpz", reader) == network
    unpacked = read_layers("a.tpz", reader, network)
    assert unpacked == description
    assert unpacked.plan_for("a.tpz", build(network)).layers == plan_from_model(model).layers
    return len(data)


def test_headers_of_zoo_networks_take_few_bytes() -> None:
    for scheme, most in (("ada_tucker", 12), ("scada_tucker", 12)):
        model = press_network("lenet300100", scheme, budget="params=8000")
        assert round_trip("lenet300100", model) <= most
    assert round_trip("resnet20", press_network("resnet20", budget="params=40000")) <= 70
    assert round_trip("lenet5", press_network("lenet5", overrides=LENET5)) <= 11


@pytest.mark.parametrize("modes", [[30000], [100, 300], [30, 1000], [10, 10, 300]])
def test_modes_of_any_number_round_trip(modes: list[int]) -> None:
    ranks = [2] * len(modes)
    skip = ["ip1", "ip3"]
    overrides = {"ip2": {"scheme": "ada_tucker", "modes": modes, "ranks": ranks}}
    round_trip("lenet300100", press_network("lenet300100", overrides=overrides, skip=skip))


def test_every_network_scheme_and_core_has_a_number_that_stays() -> None:
    assert set(NETWORK_NUMBERS) == set(NETWORKS)
    assert set(SCHEME_NUMBERS) == set(rank_schemes())
    assert NETWORK_NUMBERS[:5] == ("lenet5", "lenet300100", "fc1024", "cifar-cnn", "resnet20")
    assert SCHEME_NUMBERS[:3] == ("channel_svd", "spatial_svd", "spatial_svd_horizontal")
