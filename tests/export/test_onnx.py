"""What an exported file computes, how large it is, and what is said where there can be none."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tensorpress.errors import (
    InvalidArgumentError,
    ModelMismatchError,
    TensorPressError,
)
from tensorpress.export.onnx import export_onnx
from tensorpress.export.onnx_check import check_onnx
from tensorpress.planning import LayerPlan, Plan
from tensorpress.press.press import press
from tensorpress.schemes.layer_spec import weight_spec
from tensorpress.schemes.press_layer import press_layer

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason=f"needs {', '.join(PACKAGES)}",
)
CLOSE = 1e-4


def seeded(build):
    torch.manual_seed(0)
    return build()


class Apart(nn.Module):
    """Applies every layer to an input of its own."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs):
        return [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]


def padded_tokens(n):
    return torch.randint(50, (n, 4)).index_fill(1, torch.tensor([0]), 3)


CONV = (
    lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1, padding_mode="reflect"),
    lambda n: torch.randn(n, 6, 7, 7),
)
LINEAR = lambda: nn.Linear(24, 20), lambda n: torch.randn(n, 3, 24)
TRANSPOSED = (
    lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1),
    lambda n: torch.randn(n, 6, 5, 5),
)
PRESSED = [
    ("channel_svd", lambda: nn.Embedding(50, 12), lambda n: torch.randint(50, (n, 4))),
    ("tensor_train", lambda: nn.Embedding(50, 12, padding_idx=3), padded_tokens),
    ("tucker2", *LINEAR),
    ("tucker2", *CONV),
    ("cp", *TRANSPOSED),
    ("tensor_train", *LINEAR),
    ("tensor_train", *CONV),
    ("tt_conv", *CONV),
    ("tt_weight", *TRANSPOSED),
]


@needs_onnx
def test_layers_pressed_in_every_way_compute_the_same_at_any_batch(tmp_path):
    model = Apart(press_layer(seeded(build), scheme, 0.5) for scheme, build, _ in PRESSED)

    def inputs(batch):
        return [make(batch) for _, _, make in PRESSED]

    file = export_onnx(model, inputs(1), tmp_path / "layers.onnx")
    assert file.any_batch
    for batch in (1, 5):
        assert check_onnx(model, inputs(batch), file.path) < CLOSE


def factorized():
    """Weights in every kind of factors: cores of their own, diagonal, shared, and a train."""
    net = seeded(lambda: nn.Sequential(*(nn.Linear(64, 64) for _ in range(5))))
    kinds = [("ada_tucker", {}), ("ada_tucker", {"diagonal": True}), *[("scada_tucker", {})] * 2]
    layers = tuple(
        LayerPlan(
            *(str(place), scheme, weight_spec((64, 64)), (3, 3, 3)),
            {"modes": (16, 16, 16), **flags},
        )
        for place, (scheme, flags) in enumerate(kinds)
    )
    pressed = press(net, Plan("ada_tucker", layers))
    pressed[4] = press_layer(pressed[4], "tt_weight", 3)
    return pressed


@needs_onnx
def test_kept_factors_make_a_small_file_that_computes_the_same(tmp_path):
    pressed, x = factorized(), torch.randn(2, 64)
    stored = 4 * sum(p.numel() for p in pressed.parameters())
    small = export_onnx(pressed, x, tmp_path / "kept.onnx", factors="keep")
    rebuilt = export_onnx(pressed, x, tmp_path / "rebuilt.onnx")
    assert initializer_bytes(small.path) < 1.1 * stored + 1000
    assert initializer_bytes(rebuilt.path) >= 4 * 5 * 64 * 64
    for file in (small, rebuilt):
        assert check_onnx(pressed, torch.randn(3, 64), file.path) < CLOSE


@needs_onnx
def test_the_cores_of_a_tensor_train_are_not_written_expanded(tmp_path):
    pressed = press_layer(seeded(lambda: nn.Linear(576, 40)), "tensor_train", 0.3)
    file = export_onnx(pressed, torch.randn(1, 576), tmp_path / "train.onnx")
    stored = 4 * sum(p.numel() for p in pressed.parameters())
    assert initializer_bytes(file.path) < 1.1 * stored + 1000


def initializer_bytes(path):
    import onnx

    return sum(len(t.raw_data) for t in onnx.load(path).graph.initializer)


class ManyOutputs(nn.Module):
    """Takes two inputs; gives a mapping, as segmentation networks do."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x, scale):
        return {"out": self.head(x) * scale, "aux": [x.sum(-1), None]}


@needs_onnx
def test_several_inputs_and_nested_outputs_are_written(tmp_path):
    model = ManyOutputs()
    file = export_onnx(model, [torch.randn(2, 4), torch.tensor(2.0)], tmp_path / "m.onnx")
    assert file.any_batch
    inputs = (torch.randn(3, 4), torch.tensor(-5.0))
    assert check_onnx(model, inputs, file.path) < CLOSE


@needs_onnx
def test_a_model_is_written_as_it_computes_in_eval_mode_and_left_as_it_was(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9), nn.BatchNorm1d(4)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    file = export_onnx(model, torch.randn(6, 4), tmp_path / "m.onnx")
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert check_onnx(model, torch.randn(6, 4), file.path) < CLOSE


class OfFixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(3, 4) + torch.arange(3)[:, None]


@needs_onnx
def test_a_fixed_batch_size_warns(tmp_path):
    with pytest.warns(UserWarning, match="accepts only the example's batch size: .*batch"):
        file = export_onnx(OfFixedBatch(), torch.randn(3, 4), tmp_path / "m.onnx")
    assert not file.any_batch
    assert check_onnx(OfFixedBatch(), torch.randn(3, 4), file.path) < CLOSE
    with pytest.raises(InvalidArgumentError, match=r"shapes \(4, 4\)"):
        check_onnx(OfFixedBatch(), torch.randn(4, 4), file.path)


class Undecided(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@needs_onnx
def test_a_failed_export_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"before")
    with pytest.raises(InvalidArgumentError, match=r"torch cannot export this model: .+"):
        export_onnx(Undecided(), torch.randn(3, 4), path)
    with pytest.raises(InvalidArgumentError, match=r"fails on inputs of shapes \(2, 5\): "):
        export_onnx(nn.Linear(4, 3), torch.randn(2, 5), path)
    with pytest.raises(InvalidArgumentError, match="'keeep': did you mean 'keep'"):
        export_onnx(nn.Linear(4, 3), torch.randn(2, 4), path, factors="keeep")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == b"before"


@needs_onnx
def test_a_file_replaces_the_one_that_is_there_and_nothing_else_stays(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"before")
    file = export_onnx(nn.Linear(4, 3), torch.randn(2, 4), path)
    assert [result.name for result in tmp_path.iterdir()] == ["m.onnx"]
    assert file.bytes == path.stat().st_size
    assert str(Path(__file__).parents[1]).encode() not in path.read_bytes()


@needs_onnx
def test_weights_beyond_what_one_file_holds_lie_beside_it(tmp_path, monkeypatch):
    threshold = "torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD"
    monkeypatch.setattr(threshold, 0)
    net, path = nn.Linear(40, 30), tmp_path / "m.onnx"
    file = export_onnx(net, torch.randn(2, 40), path)
    result = {result.name: result.stat().st_size for result in tmp_path.iterdir()}
    assert result.keys() == {"m.onnx", "m.onnx.data"}
    assert file.bytes == sum(result.values())
    assert result["m.onnx.data"] >= 4 * 40 * 30
    assert check_onnx(net, torch.randn(3, 40), path) < CLOSE


@needs_onnx
def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"none.m\.onnx cannot be written: No such"):
        export_onnx(nn.Linear(4, 3), torch.randn(2, 4), tmp_path / "none" / "m.onnx")


@pytest.mark.parametrize(
    "package", ["onnx", pytest.param("onnxscript", marks=needs_onnx), "onnxruntime"]
)
def test_a_missing_package_is_named_with_how_to_get_it(package, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    do = check_onnx if package == "onnxruntime" else export_onnx
    with pytest.raises(TensorPressError, match=rf"{package}: pip install 'tensorpress\[export\]'"):
        do(nn.Linear(4, 3), torch.ones(2, 4), tmp_path / "m.onnx")


@needs_onnx
def test_convolutions_of_clips_without_a_bias_are_written(tmp_path):
    net = nn.Sequential(nn.Conv3d(3, 80, 3, bias=False), nn.ReLU(), nn.Conv3d(80, 6, 1, bias=False))
    x = torch.randn(2, 3, 4, 6, 6)
    for number, model in enumerate([net, press_layer(net[0], "channel_svd", 4)]):
        file = export_onnx(model, x, tmp_path / f"{number}.onnx")
        assert check_onnx(model, x, file.path) < 1e-4


class Frames(nn.Module):
    """Reads a mapping of sound and steps, and a number; as long as what it is given."""

    def __init__(self):
        super().__init__()
        self.conv = press_layer(nn.Conv1d(6, 8, 3, stride=2, padding=1), "tucker2", 0.5)
        self.head = press_layer(nn.Linear(8, 4), "channel_svd", 2)

    def forward(self, batch, scale=1.0, *, shift):
        steps = (batch["sound"].shape[-1] + 1) // self.conv.stride[0]
        y = self.conv(batch["sound"]).mT * scale + shift[0][:, None]
        return {"out": self.head(y), "mean": y.sum(1) / steps}


def frames(batch, length):
    streams = {"sound": torch.randn(batch, 6, length)}
    return {"batch": streams, "scale": 0.5, "shift": [torch.randn(batch, 8)]}


@needs_onnx
def test_named_and_nested_inputs_with_axes_of_any_size(tmp_path):
    model = seeded(Frames)
    axes = {"batch": {"sound": {0: "batch", 2: "length"}}, "shift": [{0: "batch"}]}
    names = ["sound", "shift"]
    file = export_onnx(
        model,
        frames(1, 9),
        tmp_path / "m.onnx",
        dynamic_shapes=axes,
        input_names=names,
        opset=21,
    )
    assert file.inputs == {"sound": ("batch", 6, "length"), "shift": ("batch", 8)}
    assert file.any_batch
    for sizes in ((1, 9), (3, 40), (2, 5)):
        assert check_onnx(model, frames(*sizes), file.path) < CLOSE
    reordered = dict(reversed(frames(2, 7).items()))
    assert check_onnx(model, reordered, file.path) < CLOSE

    import onnx

    assert onnx.load(file.path).opset_import[0].version == 21


@needs_onnx
def test_shapes_as_torch_takes_them(tmp_path):
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)))
    height = torch.export.Dim("height", min=4, max=64)
    given = torch.export.ShapesCollection()
    x = torch.randn(2, 3, 8, 8)
    given[x] = {2: height}
    for shapes in ([{2: height}], ({2: height},), {"input": {2: height}}, given):
        file = export_onnx(model, x, tmp_path / "m.onnx", dynamic_shapes=shapes)
        assert not file.any_batch
        assert check_onnx(model, torch.randn(2, 3, 30, 8), file.path) < CLOSE
        with pytest.raises(ModelMismatchError, match="fails on the inputs"):
            check_onnx(model, torch.randn(3, 3, 8, 8), file.path)


class OfFixedLength(nn.Module):
    def forward(self, x):
        return x + torch.arange(5.0)


@needs_onnx
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic_shapes": [{1: "length"}]}, "with these dynamic_shapes: .*5"),
        ({"dynamic_shapes": [{2: "length"}]}, r"axis 2 for an input of shape \(2, 5\)"),
        ({"dynamic_shapes": {"y": {0: "batch"}}}, "unknown arguments 'y': the model has 'x'"),
        ({"input_names": ["a", "b"]}, "expected 1 input_names, one per input, got 2"),
        ({"opset": 99}, "written"),
    ],
)
def test_what_cannot_be_written_is_refused(options, message, tmp_path):
    with pytest.raises(InvalidArgumentError, match=message):
        export_onnx(OfFixedLength(), torch.randn(2, 5), tmp_path / "m.onnx", **options)
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_a_compiled_model_is_written(tmp_path):
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 3)))
    for model in (torch.compile(net, backend="eager"), nn.DataParallel(net)):
        file = export_onnx(model, torch.randn(2, 4), tmp_path / "m.onnx")
        assert check_onnx(model, torch.randn(5, 4), file.path) < CLOSE
