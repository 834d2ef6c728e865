import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tensorpress as tp
from command_line import Outcome
from tensorpress.measure import count_macs
from tensorpress.models.torchvision import mend_torchvision
from tensorpress.models.zoo import build, save_weights

Shell = Callable[..., Outcome]
RunJson = Callable[..., Any]
Fails = Callable[..., str]

SVD = ("--scheme", "channel_svd", "--ranks", "0.1")


@pytest.fixture
def pressed(shell: Shell, tmp_path: Path) -> Path:
    """A folder with a pressed network of the zoo."""
    assert shell("press", "--model", "lenet300100", *SVD, "--out", "pressed").code == 0
    return tmp_path / "pressed"


def test_costs_of_a_model(run_json: RunJson, shell: Shell) -> None:
    result = run_json("eval", "--model", "lenet5")
    lenet = build("lenet5")
    assert result["params"] == 431_080
    assert result["macs"] == count_macs(lenet, [torch.zeros(1, 1, 28, 28)])
    assert result["latency_ms"] > 0
    assert set(run_json("eval", "--model", "small_nets:net")) == {"model", "params", "bytes"}
    assert "set --input for MACs and latency" in shell("eval", "--model", "small_nets:net").out


def test_costs_are_those_of_inputs_of_the_data(run_json: RunJson, shell: Shell) -> None:
    size = ("--preprocess", "size: 12, mean: [0, 0, 0], std: [1, 1, 1]")
    model = ("--model", "small_nets:net")
    assert shell("press", *model, *SVD, "--data", "digits", *size, "--out", "small").code == 0
    dense = run_json("eval", *model, "--data", "digits", *size)
    pressed = run_json("eval", "small", *model)
    assert dense["input"] == pressed["input"] == "1x3x12x12"
    assert dense["macs"] == count_macs(tp.load_model(model[1]), [torch.zeros(1, 3, 12, 12)])
    assert dense["macs"] > pressed["macs"]
    assert run_json("eval", *model, *size)["macs"] == dense["macs"]
    assert run_json("eval", *model, "--data", "digits", *size, "--input", "2x3x8x8")["batch"] == 2
    assert " ms for an input of 1x3x12x12" in shell("eval", *model, *size).out


def test_error_of_a_pressed_folder_is_that_of_the_model(run_json: RunJson, pressed: Path) -> None:
    result = run_json("eval", pressed, "--data", "digits")
    assert result["examples"] == 596
    assert result["preprocess"] == "28×28, pixels over 256, minus 0, over 1"
    assert 80 < result["error"] < 100  # the weights are random
    assert result["params"] < 60_000


def test_other_models_get_images_as_it_is_said(shell: Shell, fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "grey.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 9), nn.Flatten(), nn.Linear(64, 10))\n"
    )
    words = ("eval", "--model", "grey:net", "--data", "digits")
    assert "set --preprocess 'size: 8, mean: [0.5], std: [0.5]'" in fails(*words)
    outcome = shell(*words, "--preprocess", "size: 12, mean: [0], std: [1]")
    assert outcome.code == 0
    assert "596 test examples of digits, 12×12, pixels over 255, minus 0, over 1" in outcome.out


def test_data_that_does_not_fit_is_refused(fails: Fails, tmp_path: Path) -> None:
    net = ("eval", "--model", "small_nets:net", "--data")
    assert "unknown dataset 'digit'" in fails(*net, "digit")
    assert "(1×8×8, classes: 10) does not fit resnet20 (3×32×32" in fails(
        "eval", "--model", "resnet20", "--data", "digits"
    )
    images = torch.randn(4, 3, 8, 8).numpy()
    np.savez(tmp_path / "many.npz", x=images, y=np.arange(9, 13))
    assert "labels from 9 to 12, but the model has 10 classes" in fails(*net, "many.npz")
    np.save(tmp_path / "bare.npy", images)
    assert "the data have no labels" in fails(*net, "bare.npy")
    tokens = np.zeros((4, 5), np.int64)
    np.savez(tmp_path / "tokens.npz", x=tokens, y=np.arange(4))
    words = ("eval", "--model", "small_nets:tokens", "--data", "tokens.npz")
    assert "returns (4, 5, 24) for a batch of 4 labels: expected scores" in fails(*words)


def test_mistyped_paths_are_told_with_the_nearest_names(fails: Fails, pressed: Path) -> None:
    assert "no folder ./presed; did you mean pressed?" in fails("eval", "--model", "./presed")
    message = fails("eval", "--model", "presed")
    assert message.startswith("error: there is no folder presed; did you mean pressed? The networ")
    assert fails("press", "llama", "-o", "a").startswith("error: there is no folder llama. The net")
    assert "presed: no such file or folder; did you mean pressed?" in fails("inspect", "presed")
    words = ("eval", "--model", "lenet5", "--data")
    assert "no file or folder ./presed; did you mean pressed?" in fails(*words, "./presed")
    assert "there is no presed; did you mean pressed?" in fails(*words, "presed")


def test_files_of_other_kinds_are_told_what_is_expected(fails: Fails, tmp_path: Path) -> None:
    save_weights(build("lenet5"), tmp_path / "net.safetensors")
    message = fails("press", "net.safetensors", *SVD, "--out", "a")
    assert "is a file of weights: use tensorpress encode net.safetensors, or --model" in message
    message = fails("report", "net.safetensors")
    assert "is not a .tpz file: expected a .tpz file or the folder of a model (a file" in message
    (tmp_path / "p.onnx").write_bytes(b"\x08\x07")
    expected = "p.onnx is not a .tpz file: expected a .tpz file or the folder of a model"
    assert fails("eval", "p.onnx") == f"error: {expected}"
    assert "p.onnx is a file: expected the folder" in fails("press", "p.onnx", *SVD, "--out", "a")
    (tmp_path / "lenet5").write_bytes(b"")  # the name is that of the network
    (tmp_path / "net.bin").write_bytes(b"")
    assert "net.bin is not a .tpz file" in fails("decode", "net.bin")
    assert "unknown scheme" in fails("plan", "--model", "lenet5", "--scheme", "nothing")


def test_examples_that_the_model_does_not_take_are_refused_by_file(
    fails: Fails, tmp_path: Path
) -> None:
    net = ("eval", "--model", "small_nets:net", "--data")
    np.savez(tmp_path / "flat.npz", x=np.zeros((4, 8), np.float32), y=np.arange(4))
    message = fails(*net, "flat.npz")
    assert "flat.npz: the model fails on the input 1x8: layer '0' (Conv2d, weight" in message
    assert "flat.npz: the model" in fails("press", *net[1:], "flat.npz", *SVD, "--out", "a")
    np.savez(tmp_path / "late.npz", x=np.arange(48, 54)[:, None], y=np.arange(6))
    (tmp_path / "words.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(8, 10))\n"
    )
    message = fails("eval", "--model", "words:net", "--data", "late.npz")
    assert "late.npz: the model fails on the input 6x1:int64: layer '0' (Embedding" in message
    (tmp_path / "gaps.py").write_text(
        "import torch\n"
        "from torch.utils.data import Dataset\n"
        "class Gaps(Dataset):\n"
        "    def __len__(self):\n"
        "        return 70\n"
        "    def __getitem__(self, index):\n"
        "        return torch.zeros(3, 8, 8), None if index in (66, 68) else 1\n"
        "class Sizes(Gaps):\n"
        "    def __getitem__(self, index):\n"
        "        return torch.zeros(3, 8, 8 + index), 1\n"
    )
    assert "gaps:Gaps: example 67 has no label, expected one" in fails(*net, "gaps:Gaps")
    assert "gaps:Sizes: the examples cannot form a batch" in fails(*net, "gaps:Sizes")


def test_images_of_other_channels_and_damaged_ones(fails: Fails, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    mend_torchvision()
    pytest.importorskip("torchvision")
    (tmp_path / "pets" / "0").mkdir(parents=True)
    image.new("RGB", (8, 8)).save(tmp_path / "pets" / "0" / "a.png")
    (tmp_path / "grey.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))\n"
    )
    words = ("eval", "--data", "pets", "--preprocess", "size: 8, mean: [0, 0, 0], std: [1, 1, 1]")
    message = fails(*words, "--model", "grey:net")
    assert "pets: the model fails on the input 1x3x8x8: layer '0' (Conv2d" in message
    assert "(preprocessing of images: 8×8, pixels over 255" in message
    (tmp_path / "pets" / "0" / "b.png").write_bytes(b"")
    message = fails(*words, "--model", "small_nets:net")
    assert "pets/0/b.png cannot be read as an image" in message


def test_arrays_and_functions_as_data(run_json: RunJson, tmp_path: Path, dense: nn.Module) -> None:
    inputs = torch.randn(9, 3, 8, 8)
    labels = dense(inputs).argmax(1)
    labels[:3] = (labels[:3] + 1) % 10
    np.savez(tmp_path / "own.npz", x=inputs.numpy(), y=labels.numpy())
    save_file(dense.state_dict(), tmp_path / "w.safetensors")
    np.savez(tmp_path / "double.npz", x=inputs.double().numpy(), y=labels.numpy())
    words = ("eval", "--model", "small_nets:net", "--weights", "w.safetensors", "--data")
    result = run_json(*words, "own.npz")
    assert run_json(*words, "double.npz") | {"data": 0, "latency_ms": 0} == result | {
        **{"data": 0, "latency_ms": 0}
    }
    assert (result["error"], result["examples"]) == (pytest.approx(100 / 3), 9)
    assert result["preprocess"] == "as the model takes them"
    (tmp_path / "own.py").write_text(
        "import numpy, torch\n"
        "def batches():\n"
        "    a = numpy.load('own.npz')\n"
        "    yield torch.from_numpy(a['x']), torch.from_numpy(a['y'])\n"
    )
    assert run_json(*words, "own:batches")["error"] == result["error"]


def test_costs_without_data_that_are_not_here(
    run_json: RunJson, caplog: pytest.LogCaptureFixture, pressed: Path
) -> None:
    (pressed / "origin.json").write_text('{"model": "lenet300100", "data": "mnist"}')
    assert "error" not in run_json("eval", pressed)
    assert "the model's data mnist are not used: " in caplog.text


def test_a_file_knows_its_data_or_asks(run_json: RunJson, fails: Fails, tmp_path: Path) -> None:
    lenet = build("lenet5")
    tp.save(lenet, tmp_path / "known.tpz", network="lenet5", data="digits")
    assert run_json("inspect", "known.tpz")["data"] == "digits"
    assert run_json("eval", "known.tpz")["data"] == "digits"
    tp.save(lenet, tmp_path / "unknown.tpz", network="lenet5")
    message = fails("eval", "unknown.tpz")
    assert "unknown.tpz does not name its data: set --data (digits, " in message
    assert "cifar10" not in message
    tp.save(lenet, tmp_path / "other.tpz", network="lenet5", data="os:getcwd")
    assert "other.tpz is for the data 'os:getcwd'" in fails("eval", "other.tpz")
    tp.save(build("clips3d"), tmp_path / "clips.tpz", network="clips3d")
    assert run_json("eval", "clips.tpz")["data"] == "moving-digits"


def test_layers_of_a_model_and_why_some_cannot_be_pressed(run_json: RunJson, shell: Shell) -> None:
    result = run_json("inspect", "--model", "small_nets:only_dry", "--input", "1x3x8x8")
    layers = {layer["name"]: layer for layer in result["layers"]}
    assert list(layers) == ["0", "2", "6"]
    assert layers["0"]["macs"] == 8 * 3 * 9 * 64
    assert layers["6"] | {"schemes": []} == {
        **{"name": "6", "kind": "Linear", "shape": [10, 64], "params": 650, "macs": 640},
        **{"schemes": [], "reason": ""},
    }
    assert "channel_svd" in layers["6"]["schemes"]
    assert "spatial_svd" not in layers["6"]["schemes"]
    assert result["macs"] == sum(layer["macs"] for layer in layers.values())
    outcome = shell("inspect", "--model", "small_nets:tokens")
    assert "Embedding" in outcome.out
    assert "1,800 parameters" in outcome.out


def test_layers_that_are_tied_are_told(shell: Shell, run_json: RunJson, tmp_path: Path) -> None:
    (tmp_path / "tied.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))\n"
        "    model[1].weight = model[0].weight\n"
        "    return model\n"
    )
    result = run_json("inspect", "--model", "tied:net")
    assert [layer["schemes"] for layer in result["layers"]] == [[], []]
    outcome = shell("inspect", "--model", "tied:net")
    assert "its weight is tied to" in outcome.out


def test_what_is_in_a_pressed_folder(run_json: RunJson, shell: Shell, pressed: Path) -> None:
    result = run_json("inspect", pressed)
    assert result["plan"]["layers"].keys() == {"ip1", "ip2", "ip3"}
    assert result["files"]["model.safetensors"] > 4 * result["plan"]["params"]
    assert "channel_svd" in shell("inspect", pressed).out


def test_a_file_of_ones_own_model_needs_the_model(
    run_json: RunJson, fails: Fails, tmp_path: Path, dense: nn.Module
) -> None:
    tp.save(dense, tmp_path / "own.tpz")
    assert "a model that is not" in fails("eval", "own.tpz")
    result = run_json("eval", "own.tpz", "--model", "small_nets:net", "--input", "2x3x8x8")
    assert (result["params"], result["batch"]) == (2_042, 2)


def test_a_folder_does_not_choose_code_to_run(
    shell: Shell, run_json: RunJson, fails: Fails, tmp_path: Path
) -> None:
    words = ("press", "--model", "small_nets:net", *SVD, "--out", "pressed")
    assert shell(*words).code == 0
    assert json.loads((tmp_path / "pressed" / "origin.json").read_text()) == {
        "model": "small_nets:net"
    }
    assert "pass --model small_nets:net if you trust it" in fails("eval", "pressed")
    assert run_json("eval", "pressed", "--model", "small_nets:net")["params"] > 0


def test_export_and_its_difference(
    run_json: RunJson, shell: Shell, fails: Fails, pressed: Path
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    result = run_json("export", pressed, "--onnx", "net.onnx")
    assert result["difference"] < 1e-5
    assert result["any_batch"]
    assert Path("net.onnx").stat().st_size == result["bytes"]
    outcome = shell("export", "--model", "small_nets:net", "--input", "1x3x8x8", "--onnx", "b.onnx")
    assert "b.onnx: " in outcome.out
    assert "largest difference from the model in onnxruntime" in outcome.out
    words = ("export", "--model", "small_nets:any_size", "--onnx", "c.onnx")
    axes = ("--dynamic", "0.2=height", "--dynamic", "0.3=width")
    result = run_json(*words, "--input", "1x3x8x9", *axes, "--opset", 21)
    assert list(result["inputs"].values()) == [["batch", 3, "height", "width"]]
    assert result["difference"] < 1e-5
    outcome = shell(*words, "--input", "2x3x8x9", *axes[:2])
    assert ": batch x 3 x height x 9" in outcome.out
    words = ("export", "--model", "small_nets:net", "--onnx", "c.onnx")
    # Torch writes the pooling to 2×2 for the sizes of the example.
    assert "at twice the size of batch, height, width: c.onnx fails on the inputs" in fails(
        *words, "--input", "1x3x8x9", *axes
    )
    for text, message in (("0.4=x", "(1, 3, 8, 8)"), ("1.0=x", "have shapes"), ("2=x", "AXIS=")):
        assert message in fails(*words, "--input", "1x3x8x8", "--dynamic", text)
    assert "the inputs of small_nets:net are unknown" in fails(*words)
    assert "input 1x9: layer '0' (Conv2d, weight 8x3x3x3)" in fails(*words, "--input", "1x9")
    assert "cannot be written" in fails(*words[:-1], "no/c.onnx", "--input", "1x3x8x8")


@pytest.mark.parametrize("command", ["eval", "inspect"])
def test_a_subject_is_needed(fails: Fails, command: str, tmp_path: Path) -> None:
    assert "--model" in fails(command)
    (tmp_path / "empty").mkdir()
    assert "empty" in fails(command, "empty")


def test_weights_are_of_a_model_by_name_only(fails: Fails, pressed: Path) -> None:
    save_weights(build("lenet300100"), "w.safetensors")
    assert "has weights: remove --weights" in fails("eval", pressed, "--weights", "w.safetensors")
