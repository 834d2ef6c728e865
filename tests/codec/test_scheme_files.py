"""Files of models whose layers were pressed by the schemes of the registry."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from tpz_models import assert_holds, expected, forge_custom, save_model

import tensorpress as tp
from tensorpress.codec.header import describe
from tensorpress.codec.model_tensors import stored_tensors
from tensorpress.codec.named_header import pack, unpack
from tensorpress.errors import CorruptFileError, InvalidArgumentError, ModelMismatchError
from tensorpress.models.zoo import build
from tensorpress.planning import plan_from_model
from tensorpress.schemes.layer_spec import describe_layer as describe_layer
from tensorpress.schemes.registry import SCHEMES, rank_schemes

NAMES = list(rank_schemes())


def press(dense: nn.Module, scheme: str, ranks: Any = 0.4, **options: Any) -> nn.Module:
    layers = tp.plan(dense, scheme=scheme, ranks=ranks, **options)
    return tp.press(dense, layers, init="kaiming")


def several() -> nn.Module:
    """Layers of many kinds."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(8, 12, 3, stride=2, groups=2, padding_mode="reflect"),
            "up": nn.ConvTranspose1d(8, 6, 4, output_padding=1, stride=2),
            "deep": nn.Conv3d(4, 8, 3),
            "fc": nn.Linear(40, 30, bias=False),
            "words": nn.Embedding(60, 16, padding_idx=2),
            "norm": nn.BatchNorm1d(8),
        }
    )


@pytest.mark.parametrize("network", ["lenet5", "resnet20"])
@pytest.mark.parametrize("scheme", NAMES)
def test_zoo_networks_load_as_quantized(tmp_path: Path, network: str, scheme: str) -> None:
    torch.manual_seed(0)
    model = press(build(network), scheme)
    loaded = tp.load(save_model(model, tmp_path, network=network))
    assert_holds(loaded, expected(model))
    assert plan_from_model(loaded).layers == plan_from_model(model).layers
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("scheme", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_custom_models_load_as_quantized(tmp_path: Path, scheme: str, dtype: torch.dtype) -> None:
    dense = several().to(dtype)
    model = press(dense, scheme)
    path = save_model(model, tmp_path)
    for parameter in dense.parameters():
        nn.init.constant_(parameter, float("nan"))  # whatever it was
    before = list(dense.state_dict())
    loaded = tp.load(path, dense)
    assert_holds(loaded, expected(model))
    assert plan_from_model(loaded).layers == plan_from_model(model).layers
    assert list(dense.state_dict()) == before


def test_schemes_of_all_kinds_in_one_file(tmp_path: Path) -> None:
    dense = build("lenet5")
    overrides = {
        "ip*": {"scheme": "scada_tucker", "modes": [25, 20, 10], "ranks": 4},
        "ip1": {"scheme": "scada_tucker", "modes": [500, 40, 20], "ranks": 4},
        "conv1": {"scheme": "tt_weight"},
    }
    model = press(dense, "tucker2", 0.3, overrides=overrides)
    for network in ("lenet5", None):
        loaded = tp.load(save_model(model, tmp_path, network=network), dense)
        assert_holds(loaded, expected(model))
        assert plan_from_model(loaded).layers == plan_from_model(model).layers


@pytest.mark.parametrize("scheme", ["tensor_train", "tt_conv", "tt_weight"])
@pytest.mark.parametrize("network", ["lenet5", None])
def test_files_keep_the_modes_of_a_train(tmp_path: Path, scheme: str, network: str | None) -> None:
    dense = build("lenet5")
    matrix = {"row_modes": (20, 25), "column_modes": (50, 16), "ranks": 3}
    kernel = {"row_modes": (5, 10), "column_modes": (2, 10), "ranks": (3, 2)}
    if scheme == "tt_conv":
        overrides = {"conv2": kernel}
    else:
        overrides = {"ip1": matrix} | ({"conv2": kernel} if scheme == "tt_weight" else {})
    model = press(dense, scheme, 2, targets=list(overrides), overrides=overrides)
    loaded = tp.load(save_model(model, tmp_path, network=network), dense)
    assert_holds(loaded, expected(model))
    layers = plan_from_model(loaded).layers
    assert layers == plan_from_model(model).layers
    for layer in layers:
        modes = {key: overrides[layer.name][key] for key in ("row_modes", "column_modes")}
        assert layer.options == modes


def test_a_loaded_model_computes_the_same_and_trains_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = build("lenet5")
    model = press(dense, "tucker2").eval()
    loaded = tp.load(save_model(model, tmp_path, network="lenet5", quantizer=None))
    x = torch.rand(4, 1, 28, 28)
    difference = (loaded(x) - model(x)).norm() / model(x).norm()
    assert 0 < float(difference.detach()) < 0.2
    loaded.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_a_model_that_is_a_single_pressed_layer(tmp_path: Path) -> None:
    dense = nn.Linear(30, 20)
    model = press(dense, "channel_svd")
    assert_holds(tp.load(save_model(model, tmp_path), dense), expected(model))
    assert type(dense) is nn.Linear


def test_a_module_in_several_places_is_stored_once(tmp_path: Path) -> None:
    layer = nn.Linear(30, 30)
    dense = nn.Sequential(layer, nn.ReLU(), layer)
    model = press(dense, "channel_svd")
    loaded = tp.load(save_model(model, tmp_path), dense)
    assert loaded[0] is loaded[2]
    assert_holds(loaded, expected(model))


@settings(max_examples=30)
@given(scheme=st.sampled_from(NAMES), fraction=st.floats(0.01, 1.0))
def test_headers_of_all_schemes_round_trip(scheme: str, fraction: float) -> None:
    dense = nn.Sequential(nn.Conv2d(6, 8, 3), nn.Linear(30, 20))
    supported = [SCHEMES[scheme].refusal(describe_layer(layer)) is None for layer in dense]
    overrides = {str(k): {"ranks": fraction} for k, fits in enumerate(supported) if fits}
    model = tp.press(dense, tp.plan(dense, scheme=scheme, overrides=overrides), init="kaiming")
    description = describe(model, None, stored_tensors(model))
    loaded = unpack("a.tpz", pack(description))
    assert loaded == description
    assert loaded.plan_for("a.tpz", dense).layers == plan_from_model(model).layers


ROWS = {
    "unknown scheme": ["fc", [30, 40], "tuker2", [3, 3]],
    "scheme without a name": ["fc", [30, 40], "", [3, 3]],
    "scheme that needs modes": ["fc", [30, 40], "ada_tucker", [3, 3]],
    "an unknown option": ["fc", [30, 40], "tucker2", [3, 3], {"modes": [30, 40]}],
    "option of another type": ["fc", [30, 40], "ada_tucker", [3, 3], {"modes": "original"}],
    "option without end": ["fc", [30, 40], "ada_tucker", [3, 3], {"modes": [1] * 100_000}],
    "modes zero": ["fc", [30, 40], "ada_tucker", [3, 3], {"modes": [0, 1200]}],
    "modes nested": ["fc", [30, 40], "ada_tucker", [3, 3], {"modes": [[30], [40]]}],
    "modes of another weight": ["fc", [30, 40], "ada_tucker", [3, 3], {"modes": [30, 41]}],
    "modes of many axes": ["fc", [2] * 16, "ada_tucker", [3, 3], {"modes": [256, 256]}],
    "modes that do not fit": [
        *("fc", [30, 40], "tensor_train", 3),
        {"row_modes": [5, 5], "column_modes": [8, 5]},
    ],
    "options a list": ["fc", [30, 40], "ada_tucker", [3, 3], ["modes", [30, 40]]],
    "module as scheme": ["fc", [30, 40], "os.system", 3],
    "method as scheme": ["fc", [30, 40], "__class__", 3],
    "scheme is bytes": ["fc", [30, 40], b"tucker2", [3, 3]],
    "long name": ["fc", [30, 40], "x" * 100_000, [3, 3]],
    "ranks zero": ["fc", [30, 40], "tucker2", [0, 3]],
    "ranks negative": ["fc", [30, 40], "tucker2", [-3, 3]],
    "rank negative": ["fc", [30, 40], "channel_svd", -3],
    "ranks true": ["fc", [30, 40], "channel_svd", True],
    "ranks too large": ["fc", [30, 40], "tucker2", [101, 3]],
    "ranks beyond 31 bits": ["fc", [30, 40], "tucker2", [1 << 40, 3]],
    "ranks too few": ["fc", [30, 40], "tucker2", 3],
    "ranks too many": ["fc", [30, 40], "tucker2", [3, 3, 3]],
    "ranks without end": ["fc", [30, 40], "tucker2", [1] * 100_000],
    "ranks none": ["fc", [30, 40], "tucker2", None],
    "ranks a string": ["fc", [30, 40], "tucker2", "evbmf"],
    "ranks floats": ["fc", [30, 40], "tucker2", [0.5, 0.5]],
    "ranks nested": ["fc", [30, 40], "tucker2", [[3], [3]]],
    "no ranks": ["fc", [30, 40], "tucker2", []],
    "a core": ["fc", [30, 40], "tucker2", [3, 3], 0],
    "a scheme that cannot take it": ["fc", [30, 40], "spatial_svd", 3],
    "layer without shape": ["fc", "channel_svd", 3],
    "layer by number": [3, [30, 40], "channel_svd", 3],
    "layer that does not exist": ["fd", [30, 40], "channel_svd", 3],
    "shape of another layer": ["fc", [40, 30], "channel_svd", 3],
    "norm as layer": ["norm", [8], "channel_svd", 3],
    "layer of a private name": ["__class__", [30, 40], "channel_svd", 3],
    "ranks that do not fit": ["fc", [30, 40], "channel_svd", 31],
    "ranks huge": ["fc", [30, 40], "tt_weight", [1 << 30] * 3],
}


@pytest.mark.parametrize("name", ROWS)
def test_hostile_headers_of_schemes_are_refused(tmp_path: Path, name: str) -> None:
    dense = nn.ModuleDict({"fc": nn.Linear(40, 30, bias=False), "norm": nn.BatchNorm1d(8)})
    model = press(dense, "channel_svd")
    table = [
        [t.name, t.shape, t.dtype] for t in describe(model, None, stored_tensors(model)).tensors
    ]
    path = tmp_path / "hostile.tpz"
    for rows in ([ROWS[name]], [ROWS[name], ["fc", [30, 40], "channel_svd", 3]]):
        forge_custom(path, [rows, table], model)
        with pytest.raises((CorruptFileError, ModelMismatchError), match=r"hostile\.tpz") as caught:
            tp.load(path, dense)
        assert len(str(caught.value)) < 500


def test_an_unknown_scheme_names_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "new.tpz"
    forge_custom(path, [[["0", [20, 30], "tucker9", [3]]], []], nn.Linear(2, 2))
    with pytest.raises(
        ModelMismatchError, match=r"'tucker9', which this version does not.*tucker2"
    ):
        tp.load(path)


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    dense = nn.Sequential(nn.Linear(30, 20))
    path = save_model(press(dense, "channel_svd"), tmp_path)
    hooked = deepcopy(dense)
    hooked[0].register_forward_hook(lambda *_: None)
    for other, message in [
        (nn.Sequential(nn.Linear(31, 20)), "a weight 20×30, but the model has a weight 20×31"),
        (nn.Sequential(nn.Linear(30, 20, bias=False)), "'0.1.bias'.*no more tensors"),
        (hooked, "layer '0': .*hooks"),
        (tp.load(path, dense), "is pressed: pass a dense one"),
    ]:
        with pytest.raises(ModelMismatchError, match=message) as caught:
            tp.load(path, other)
        assert str(path) in str(caught.value)


def stretched() -> nn.Module:
    model = build("lenet5")
    model.conv2 = nn.Conv2d(20, 50, 5, stride=2)
    return model


@pytest.mark.parametrize(
    ("dense", "message"),
    [
        (stretched, "'conv2' has stride .1, 1. in this model; the plan expects .2, 2."),
        (lambda: build("lenet5").double(), "float64"),
        (lambda: build("lenet300100"), "no layer 'ip1' with a weight 300×784"),
    ],
)
def test_a_model_of_another_network_is_refused(tmp_path: Path, dense: Any, message: str) -> None:
    with pytest.raises(ModelMismatchError, match=f"not 'lenet5': .*{message}"):
        tp.save(press(dense(), "tucker2", 0.2), tmp_path / "a.tpz", network="lenet5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("network", ["lenet300100", None])
@pytest.mark.parametrize("scheme", ["tensor_train", "tt_weight"])
def test_options_are_in_the_file(tmp_path: Path, scheme: str, network: str | None) -> None:
    dense = build("lenet300100")
    options = {"row_modes": [10, 10], "column_modes": [15, 20]}
    model = press(dense, scheme, overrides={"ip2": {"ranks": 3, **options}})
    loaded = tp.load(save_model(model, tmp_path, network=network), dense)
    assert_holds(loaded, expected(model))
    layers = plan_from_model(loaded).layers
    assert layers == plan_from_model(model).layers
    assert layers[1].options == {"row_modes": (10, 10), "column_modes": (15, 20)}


def test_factors_far_larger_than_their_weight_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = nn.Sequential(nn.Linear(10, 10, bias=False))
    model = tp.press(dense, tp.plan(dense, scheme="tucker2", overrides={"0": {"ranks": 10}}))
    path = save_model(model, tmp_path)
    monkeypatch.setattr("tensorpress.codec.header._EXTRA_VALUES", 0)
    with pytest.raises(InvalidArgumentError, match="factors are far larger"):
        tp.save(model, path)
    with pytest.raises(ModelMismatchError, match=r"model\.tpz has factors far larger"):
        tp.load(path, dense)


RESULTS = sorted((Path(__file__).parents[2] / "results").glob("*/seed0/model.tpz"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parts[-3])
def test_committed_files_are_read(path: Path) -> None:
    model = tp.load(path)
    inspection = tp.inspect(path)
    assert [layer.name for layer in inspection.layers] == [
        x.name for x in plan_from_model(model).layers
    ]
    assert bool(inspection.layers) == (path.parts[-3] != "resnet20-20x")  # which is dense
    assert (
        sum(t.count for t in inspection.tensors if "running" not in t.name)
        >= plan_from_model(model).params
    )
