import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tpz_models import custom_model, forge_custom, lenet5, press_network, save_model

import tensorpress as tp
from tensorpress.codec.inspect import StoredLayer
from tensorpress.codec.model_tensors import assign_quantizers, quantized_names, stored_tensors
from tensorpress.codec.static_tables import entropy_bits
from tensorpress.models.zoo import build
from tensorpress.planning import plan_from_model


def stored_layers(model: nn.Module) -> tuple[StoredLayer, ...]:
    """What an inspection should say of the pressed layers of a model."""
    return tuple(
        StoredLayer(p.name, p.scheme, p.shape, p.ranks, p.options)
        for p in plan_from_model(model).layers
    )


@pytest.mark.parametrize("coder", ["range", "huffman"])
def test_parts_and_tensors_add_up(tmp_path: Path, coder: Any) -> None:
    model = lenet5()
    path = save_model(model, tmp_path, network="lenet5", coder=coder)
    inspection = tp.inspect(path)
    assert inspection.size == sum(inspection.parts.values()) == path.stat().st_size
    assert (inspection.network, inspection.coder, inspection.file) == ("lenet5", coder, str(path))
    assert inspection.layers == stored_layers(model)
    tensors = sum(tensor.bytes for tensor in inspection.tensors)
    # What is rounded up to whole bytes belongs to no tensor.
    assert -1 <= inspection.parts["tables"] + inspection.parts["values"] - tensors < 15


@pytest.mark.parametrize("coder", ["range", "huffman"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_entropies_are_those_of_the_symbols(tmp_path: Path, coder: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = custom_model().to(dtype)
    quantizers = assign_quantizers(model, step=1 / 512)
    tensors = stored_tensors(model)
    inspection = tp.inspect(save_model(model, tmp_path, quantizer=quantizers, coder=coder))
    for tensor in inspection.tensors:
        assert tensor.bits_per_value == pytest.approx(8 * tensor.bytes / tensor.count)
        if tensor.name in quantized_names(model):
            symbols = quantizers[tensor.name].symbols(tensors[tensor.name])
            assert tensor.entropy == pytest.approx(entropy_bits(symbols))
            assert tensor.bits_per_value > 4
        else:
            assert tensor.entropy is None


def test_a_custom_model_is_inspected_without_the_model(tmp_path: Path) -> None:
    dense = custom_model()
    model = tp.press(
        dense, tp.plan(dense, scheme="ada_tucker", overrides={"0": {"modes": [24, 25], "ranks": 3}})
    )
    inspection = tp.inspect(save_model(model, tmp_path, quantizer=tp.UniformQuantizer(64, 1.5)))
    assert inspection.network is None
    assert inspection.layers == stored_layers(model)
    names = {tensor.name: tensor for tensor in inspection.tensors}
    assert list(names) == list(stored_tensors(model))
    assert names["0.bias"].shape == (20,)
    assert names["0.bias"].storage == "65 levels ±1.5"
    assert names["1.running_mean"].storage == "constant 0"
    assert names["1.num_batches_tracked"].storage == "constant 0"
    assert names["1.num_batches_tracked"].dtype == "int64"
    short = [tensor.short_name for tensor in inspection.tensors]
    assert short[1:4] == ["0.core", "0.matrix1", "0.matrix2"]


def test_a_shared_core_is_listed_once(tmp_path: Path) -> None:
    model = press_network("lenet300100", "scada_tucker", budget="params=6_000")
    inspection = tp.inspect(save_model(model, tmp_path, network="lenet300100"))
    assert [tensor.short_name for tensor in inspection.tensors].count("ip1.core") == 1
    assert not any(tensor.short_name in ("ip2.core", "ip3.core") for tensor in inspection.tensors)
    assert sum(tensor.count for tensor in inspection.tensors) == plan_from_model(model).params


def test_empty_tensors_are_inspected(tmp_path: Path) -> None:
    model = nn.ParameterList([torch.zeros(0, 3), torch.tensor(2.0)])
    inspection = tp.inspect(save_model(model, tmp_path))
    assert [tensor.count for tensor in inspection.tensors] == [0, 1]
    assert inspection.tensors[0].bits_per_value < 20  # its step
    assert inspection.tensors[0].entropy is None


def test_an_inspection_is_plain_data(tmp_path: Path) -> None:
    inspection = tp.inspect(save_model(lenet5(), tmp_path, network="lenet5"))
    loaded = json.loads(json.dumps(inspection.to_dict(), allow_nan=False))
    assert loaded["bytes"] == inspection.size
    assert loaded["parts"] == inspection.parts
    assert loaded["layers"][0]["name"] == "conv1"
    assert loaded["tensors"][1]["bits_per_value"] == inspection.tensors[1].bits_per_value
    assert len(loaded["tensors"]) == len(inspection.tensors)


@pytest.mark.parametrize("network", [None, "lenet5"])
def test_layers_of_all_schemes_are_listed(tmp_path: Path, network: str | None) -> None:
    dense = build("lenet5")
    overrides = {"ip2": {"scheme": "tt_weight"}, "conv2": {"modes": [50, 500], "ranks": 4}}
    overrides["conv2"]["scheme"] = "ada_tucker"
    model = tp.press(dense, tp.plan(dense, scheme="tucker2", ranks=0.2, overrides=overrides))
    inspection = tp.inspect(save_model(model, tmp_path, network=network))
    assert inspection.layers == stored_layers(model)
    assert [layer.scheme for layer in inspection.layers] == [
        *("tucker2", "ada_tucker", "tucker2", "tt_weight"),
    ]
    short = [tensor.short_name for tensor in inspection.tensors]
    assert {"conv1.1.weight", "conv2.core", "conv2.matrix2", "ip2.core0", "ip2.core1"} < set(short)
    assert sum(tensor.count for tensor in inspection.tensors) == plan_from_model(model).params


@pytest.mark.parametrize("end", ["originalx", "original", "original" + 5000 * "9"])
def test_a_factor_whose_name_has_no_number_is_shown_by_its_name(tmp_path: Path, end: str) -> None:
    name = f"0.parametrizations.weight.{end}"
    header = [[["0", [20, 30], "svd_weight", 3]], [[name, [1], "float32"]]]
    forge_custom(tmp_path / "a.tpz", header, nn.ParameterList([torch.ones(1)]))
    assert [tensor.short_name for tensor in tp.inspect(tmp_path / "a.tpz").tensors] == [name]
