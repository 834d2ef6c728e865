import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import recipe

import tensorpress as tp
from tensorpress.codec.model_tensors import quantized_names, stored_tensors
from tensorpress.data import batches, load
from tensorpress.data.splits import load_splits
from tensorpress.measure import count_params
from tensorpress.models.zoo import build, load_weights, network, save_weights
from tensorpress.planning import plan_from_model
from tensorpress.report import ReportContent
from tensorpress.runs.recipe import read_recipe
from tensorpress.runs.run import RunResult, run
from tensorpress.train import evaluate


def metrics_of(result: RunResult) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((result.folder / "metrics.json").read_text())
    return content


def test_what_a_run_leaves(finished: RunResult) -> None:
    names = sorted(str(p.relative_to(finished.folder)) for p in finished.folder.glob("**/*.*"))
    assert names == [
        *(f"checkpoints/{phase}.pt" for phase in ("dense", "quantized", "train")),
        *("metrics.json", "model.tpz", "origin.json", "plan.yaml", "recipe.yaml", "report.html"),
    ]
    assert read_recipe(finished.folder / "recipe.yaml") == recipe()
    assert (finished.folder / "recipe.yaml").read_text().startswith("# seed: 3\n")
    page = (finished.folder / "report.html").read_text()
    assert "LeNet-300-100 on digits" in page
    assert f"{finished.metrics['file']['bytes']:,}" in page


def test_metrics_keep_their_contract(finished: RunResult) -> None:
    metrics = metrics_of(finished)
    assert metrics == finished.metrics
    assert set(metrics) == {
        *("dense", "pressed", "file", "ratio", "latency", "seconds"),
        *("recipe", "seed", "versions", "device", "errors_on"),
    }
    assert set(metrics["dense"]) == {"params", "bytes", "macs", "error"}
    assert set(metrics["pressed"]) == {"params", "macs", "start_error", "error"}
    assert set(metrics["latency"]) == {"batch", "dense_ms", "materialized_ms", "pressed_ms"}
    assert metrics["pressed"].pop("start_error") is None  # factors were drawn
    assert set(metrics["file"]) == {"bytes", "error", "validation_error"}
    assert set(metrics["ratio"]) == {"params", "macs", "file"}
    assert metrics["seed"] == 3
    assert metrics["versions"]["tensorpress"] == tp.__version__
    assert metrics["recipe"]["press"]["overrides"]["ip1"]["modes"] == [28, 28, 20, 15]
    numbers = [metrics["seconds"]]
    for section in ("dense", "pressed", "file", "ratio", "latency"):
        numbers += metrics[section].values()
    assert all(math.isfinite(number) and number > 0 for number in numbers)


def test_metrics_are_what_they_say(finished: RunResult) -> None:
    metrics = finished.metrics
    size = (finished.folder / "model.tpz").stat().st_size
    pressed = tp.load(finished.folder / "model.tpz")
    assert metrics["dense"]["params"] == 266_610
    assert metrics["dense"]["bytes"] == 4 * 266_610
    assert metrics["dense"]["macs"] == 784 * 300 + 300 * 100 + 100 * 10
    assert metrics["pressed"]["macs"] == metrics["dense"]["macs"]
    assert metrics["pressed"]["params"] == count_params(pressed) == plan_from_model(pressed).params
    assert metrics["file"]["bytes"] == size
    assert metrics["ratio"]["file"] == 4 * 266_610 / size
    assert metrics["ratio"]["params"] == 266_610 / metrics["pressed"]["params"]
    assert metrics["ratio"]["macs"] == 1


def test_the_error_of_the_file_is_that_of_the_decoded_model(finished: RunResult) -> None:
    net = network("lenet300100")
    splits = load_splits(net, "digits", validation=200)
    decoded = tp.load(finished.folder / "model.tpz")
    for images, key in ((splits.test, "error"), (splits.validation, "validation_error")):
        loader = batches(images, net.preprocess, 100, shuffle=False)
        assert evaluate(decoded, loader).error == finished.metrics["file"][key]
    assert finished.metrics["dense"]["error"] < 25
    assert finished.metrics["file"]["error"] < 60


def test_the_file_holds_quantized_weights(finished: RunResult) -> None:
    decoded = tp.load(finished.folder / "model.tpz")
    quantizer = tp.UniformQuantizer(128, 3.0)
    for name in quantized_names(decoded):
        values = stored_tensors(decoded)[name]
        assert torch.equal(quantizer(values), values)


def test_what_the_report_shows(finished: RunResult) -> None:
    content = finished.content
    assert ReportContent.from_json(content.to_json()) == content
    assert [row.name for row in content.layers] == ["ip1", "ip2", "ip3"]
    assert [row.scheme for row in content.layers] == ["ada_tucker", "ada_tucker", "dense"]
    assert content.layers[2].note == "not named in overrides"
    assert sum(row.dense_params for row in content.layers) == 266_200
    biases = 300 + 100 + 10
    stored = sum(row.pressed_params for row in content.layers) + biases
    assert stored == finished.metrics["pressed"]["params"]
    assert sum(part.bytes for part in content.file_parts) == pytest.approx(
        finished.metrics["file"]["bytes"]
    )
    assert all(part.bytes >= 0 for part in content.file_parts)
    for histogram in content.histograms:
        assert sum(histogram.before) == sum(histogram.after) > 0
    loss, error = content.curves
    assert [curve.name for curve in loss.curves] == ["dense", "train", "quantized"]
    for curves in (loss, error):
        assert [len(curve.epochs) for curve in curves.curves] == [6, 2, 2]
    assert content.recipe_yaml == recipe().to_yaml()


@pytest.mark.usefixtures("no_page")
class TestOtherRecipes:
    def test_decomposed_from_a_weight_file_with_distillation(
        self, tmp_path: Path, finished: RunResult, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dense = build("lenet300100")
        state = torch.load(finished.folder / "checkpoints" / "dense.pt", weights_only=True)
        dense.load_state_dict(state["model"])
        save_weights(dense, tmp_path / "dense.safetensors")
        monkeypatch.setenv("TENSORPRESS_DATA", str(tmp_path))
        distilled = {"epochs": 1, "lr": 0.003, "distill": {"weight": 0.5, "temperature": 2}}
        given = recipe(
            dense=None,
            weights="dense.safetensors",
            press={"scheme": "ada_tucker", "budget": "params=30_000", "init": "decompose"},
            train=distilled,
            quantize={"step": 0.1, "finetune": distilled},
        )
        result = run(given, tmp_path / "run")
        assert result.metrics["dense"]["error"] == finished.metrics["dense"]["error"]
        assert result.metrics["pressed"]["params"] <= 30_000
        errors = [row.error for row in result.content.layers if row.scheme != "dense"]
        assert all(error is not None and 0 < error < 1 for error in errors)
        again = build("lenet300100")
        load_weights(again, tmp_path / "dense.safetensors")
        assert all(map(torch.equal, again.parameters(), dense.parameters()))

    def test_decomposed_and_saved_without_training(
        self, tmp_path: Path, finished: RunResult
    ) -> None:
        dense = build("lenet300100")
        save_weights(dense, tmp_path / "dense.safetensors")
        given = recipe(
            dense=None,
            weights=str(tmp_path / "dense.safetensors"),
            train=None,
            press={"scheme": "ada_tucker", "budget": "params=60_000", "init": "decompose"},
            quantize={"step": 0.1, "coder": "huffman"},
        )
        result = run(given, tmp_path / "run")
        assert tp.inspect(tmp_path / "run" / "model.tpz").coder == "huffman"
        assert result.content.curves[0].curves == []
        expected = tp.press(dense, tp.plan(dense, scheme="ada_tucker", budget="params=60_000"))
        names = ("ip1", "ip2", "ip3")
        for name, row in zip(names, result.content.layers, strict=True):
            weight, pressed = dense.get_parameter(f"{name}.weight"), expected.get_submodule(name)
            assert isinstance(pressed.weight, torch.Tensor)
            with torch.no_grad():
                error = float((weight - pressed.weight).norm() / weight.norm())
            assert row.error == pytest.approx(error, rel=1e-4)

    def test_scada_with_the_smaller_of_two_coders(self, tmp_path: Path) -> None:
        sizes = {}
        for coder in ("range", "huffman"):
            given = recipe(
                press={"scheme": "scada_tucker", "budget": "params=5_000"},
                train={"epochs": 1, "lr": 0.01},
                quantize={"levels": 128, "bound": 3, "coder": coder},
            )
            result = run(given, tmp_path / coder)
            sizes[coder] = result.metrics["file"]["bytes"]
            assert any(part.name == "shared core" for part in result.content.file_parts)
            stored = sum(row.pressed_params for row in result.content.layers)
            core = math.prod(result.content.layers[0].ranks)
            assert stored + core + 410 == result.metrics["pressed"]["params"] <= 5_000
        assert sizes["range"] < sizes["huffman"]

    def test_images_vary_and_nothing_validates(self, tmp_path: Path) -> None:
        given = recipe(
            data={"name": "digits", "validation": 0, "batch_size": 200, "augment": "shift1"},
            dense={"epochs": 2, "lr": 0.003},
            quantize={"step": 0.2, "norms": "float32", "rounding": "floor"},
            train=None,
        )
        result = run(given, tmp_path / "run")
        assert result.metrics["file"]["validation_error"] is None
        assert result.content.curves[1].curves[0].values == [None, None]


def test_a_run_on_data_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    digits = load("digits")
    arrays = {"x_train": digits.train.images, "x_test": digits.test.images}
    labels = {"y_train": digits.train.labels, "y_test": digits.test.labels}
    np.savez("own.npz", **{name: x.numpy() for name, x in (arrays | labels).items()})
    data = {"source": "own.npz", "validation": 200, "batch_size": 200}
    result = run(recipe(data=data), tmp_path / "own", seed=3)
    by_name = run(recipe(), tmp_path / "named", seed=3)
    assert metrics_of(result)["pressed"] == metrics_of(by_name)["pressed"]
    assert [tp.inspect(x.folder / "model.tpz").data for x in (result, by_name)] == [
        *("own.npz", "digits")
    ]
    assert "LeNet-300-100" in (result.folder / "report.html").read_text()
