from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tpz_models import assert_holds, expected, press_network, save_model

import tensorpress as tp
from tensorpress.codec.model_tensors import stored_tensors
from tensorpress.errors import (
    CorruptFileError,
    DataNotFoundError,
    InvalidArgumentError,
    ModelMismatchError,
)
from tensorpress.models.zoo import build


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "1.bias"])
def test_values_that_are_not_finite_are_named(tmp_path: Path, name: str, value: float) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        stored_tensors(model)[name].view(-1)[1] = value
    with pytest.raises(InvalidArgumentError, match=f"tensor '{name}' has NaN or infinite"):
        tp.save(model, tmp_path / "a.tpz")
    assert not list(tmp_path.iterdir())


def test_values_out_of_range_are_named(tmp_path: Path) -> None:
    norm = nn.BatchNorm1d(2)
    norm.running_var.fill_(1e6)
    with pytest.raises(InvalidArgumentError, match=r"'running_var'.*norms='float32'"):
        tp.save(norm, tmp_path / "a.tpz")
    assert_holds(
        tp.load(save_model(norm, tmp_path, norms="float32"), norm), expected(norm, norms="float32")
    )
    large = nn.Linear(2, 2).double()
    nn.init.uniform_(large.weight, 1e299, 1e300)
    with pytest.raises(InvalidArgumentError, match=r"'weight'.*float32"):
        tp.save(large, tmp_path / "a.tpz")
    nn.init.uniform_(large.weight, 1e-301, 1e-300)
    tp.save(large, tmp_path / "a.tpz")


class ExtraState(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 3}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: ExtraState(3, 2), "'_extra_state' is state other than a tensor"),
        (lambda: nn.LazyLinear(3), "'weight' has no values yet"),
        (lambda: nn.Linear(3, 2, device="meta"), "'weight' has no values yet"),
        (
            lambda: nn.ParameterList([torch.zeros(3).to(torch.float8_e4m3fn)]),
            "'0' is torch.float8_e4m3fn",
        ),
        (lambda: nn.ParameterList([torch.eye(3).to_sparse()]), "'0' is torch.sparse_coo"),
    ],
)
def test_tensors_that_cannot_be_stored_are_named_in_the_error(
    tmp_path: Path, model: Any, message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        tp.save(model(), tmp_path / "a.tpz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "lenet55"}, "unknown network 'lenet55': did you mean 'lenet5'"),
        ({"network": ""}, "unknown network ''"),
        ({"norms": "bf16"}, "norms 'bf16'"),
        ({"coder": "zip"}, "unknown coder 'zip'.*huffman, range"),
    ],
)
def test_unknown_options_are_refused(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        tp.save(nn.Linear(3, 2), tmp_path / "a.tpz", **options)


def wider() -> nn.Module:
    model = build("lenet5")
    model.ip2 = nn.Linear(500, 12)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: build("lenet300100"), "expected 'conv1.weight'"),
        (lambda: press_network("lenet300100", overrides={"ip1": {"modes": [980, 240], "ranks": 2}}),
         "no layer 'ip1' with a weight 300×784"),
        (wider, "'ip2.weight' .10×500, float32., got 'ip2.weight' .12×500"),
        (lambda: build("lenet5").double(), "float64"),
        (lambda: nn.Sequential(), "expected 'conv1.weight'.*no more tensors"),
    ],
)  # fmt: skip
def test_a_model_of_another_network_is_refused(tmp_path: Path, model: Any, message: str) -> None:
    with pytest.raises(ModelMismatchError, match=f"not 'lenet5': .*{message}"):
        tp.save(model(), tmp_path / "a.tpz", network="lenet5")


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    dense = nn.Sequential(nn.Linear(30, 20), nn.LayerNorm(20))
    path = save_model(
        tp.press(dense, tp.plan(dense, scheme="ada_tucker", budget="params=300")), tmp_path
    )
    narrow = nn.Sequential(nn.Linear(30, 21), nn.LayerNorm(21))
    for other, message in [
        (None, "not in the zoo: pass a dense model"),
        (narrow, "layer '0' with a weight 20×30, but the model has a weight 21×30"),
        (nn.Sequential(nn.ReLU(), nn.Linear(30, 20)), "the model has no such layer"),
        (nn.Sequential(nn.Linear(30, 20)), "has '1.weight' .20, float32.*no more tensors"),
        (nn.Sequential(nn.Linear(30, 20), nn.LayerNorm(20), nn.PReLU()), "'2.weight'"),
        (dense.half(), "'0.bias' .20, float32.*'0.bias' .20, float16"),
        (tp.load(path, deepcopy(dense).float()), "is pressed: pass a dense one"),
    ]:
        with pytest.raises(ModelMismatchError, match=message) as caught:
            tp.load(path, other)
        assert str(path) in str(caught.value)
    with pytest.raises(InvalidArgumentError, match="has no values yet"):
        tp.load(path, nn.Sequential(nn.Linear(30, 20, device="meta"), nn.LayerNorm(20)))


def test_a_layer_of_the_model_that_cannot_be_pressed(tmp_path: Path) -> None:
    dense = nn.Sequential(nn.Linear(30, 20), nn.Linear(30, 20))
    path = save_model(
        tp.press(dense, tp.plan(dense, scheme="ada_tucker", budget="params=600")), tmp_path
    )
    dense[1].weight = dense[0].weight
    with pytest.raises(ModelMismatchError, match=r"in the model its weight is tied to '1.weight'"):
        tp.load(path, dense)


def test_factors_far_larger_than_their_weight_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = nn.Sequential(nn.Linear(10, 10))
    model = tp.press(
        dense,
        tp.plan(dense, scheme="ada_tucker", overrides={"0": {"modes": [50, 2], "ranks": [50, 2]}}),
    )
    path = save_model(model, tmp_path)
    monkeypatch.setattr("tensorpress.codec.header._EXTRA_VALUES", 0)
    with pytest.raises(InvalidArgumentError, match="factors are far larger"):
        tp.save(model, path)
    with pytest.raises(CorruptFileError, match="does not describe a model"):
        tp.load(path, dense)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"no \.tpz file at .*no\.tpz"):
        tp.load(tmp_path / "no.tpz")
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        tp.save(nn.Linear(3, 2), tmp_path / "no" / "a.tpz")
