import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorpress as tp
from tensorpress.measure import count_params
from tensorpress.models.zoo import NETWORKS, build
from tensorpress.report import ReportContent
from tensorpress.runs.metrics import RunRecord, file_parts, layer_rows, report_content, run_metrics
from tensorpress.runs.recipe import parse_recipe
from tensorpress.schemes.press_layer import unpress_layer
from tensorpress.train import EpochMetrics, History

ERRORS = {"dense": 8.0, "pressed": 9.5, "file": 9.75, "validation": 9.0}
EPOCHS = [
    EpochMetrics(epoch=1, train_loss=0.5, train_error=9.0, lr=0.1, seconds=3.0),
    EpochMetrics(epoch=2, train_loss=0.4, train_error=8.0, lr=0.1, seconds=3.0, validation_error=7),
]
RECIPE = """\
title: A title
network: {network}
data: {{name: cifar10, validation: 0}}
weights: net.safetensors
press: {{scheme: {scheme}, {target}}}
quantize: {{step: 0.1}}
"""


def record(
    folder: Path, network: str, scheme: str, *, initial: bool = False, **target: Any
) -> RunRecord:
    torch.manual_seed(0)
    dense = build(network).eval()
    plan = tp.plan(dense, scheme=scheme, **target)
    pressed = tp.press(dense, plan, init="decompose" if initial else "kaiming")
    asked = "ranks: 0.2" if "ranks" in target else "budget: params=90000"
    tp.save(pressed, folder / "model.tpz", network=network)
    return RunRecord(
        recipe=parse_recipe(RECIPE.format(network=network, scheme=scheme, target=asked)),
        seed=7,
        plan=plan,
        dense=dense,
        initial=pressed if initial else None,
        latent=pressed,
        decoded=tp.load(folder / "model.tpz"),
        inspection=tp.inspect(folder / "model.tpz"),
        histories={"train": History(epochs=EPOCHS)},
        errors=ERRORS | {"start": 42.5 if initial else None},
        errors_on="test",
        seconds=12.5,
        example=torch.zeros(2, *NETWORKS[network].input_shape),
    )


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return record(
        tmp_path_factory.mktemp("resnet"), "resnet20", "scada_tucker", budget="params=60_000"
    )


def test_metrics_of_a_network_with_norms(resnet: RunRecord) -> None:
    metrics = run_metrics(resnet)
    assert metrics["dense"]["params"] == 269_722
    assert metrics["pressed"]["params"] == resnet.plan.params <= 60_000
    assert metrics["dense"]["macs"] == metrics["pressed"]["macs"] == 40_551_040
    assert metrics["pressed"]["start_error"] is None
    assert [metrics[key]["error"] for key in ("dense", "pressed", "file")] == [8.0, 9.5, 9.75]
    assert metrics["ratio"]["file"] == 4 * 269_722 / resnet.inspection.size
    assert metrics["latency"]["batch"] == 2
    assert metrics["seconds"] == 12.5
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_parts_of_the_file(resnet: RunRecord) -> None:
    parts = {part.name: part.bytes for part in file_parts(resnet.inspection)}
    assert sum(parts.values()) == pytest.approx(resnet.inspection.size)
    assert min(parts.values()) >= 0
    buffers = [t for t in resnet.inspection.tensors if t.name.endswith(("mean", "var", "tracked"))]
    assert parts["buffers"] == pytest.approx(sum(tensor.bytes for tensor in buffers))
    [core] = [t for t in resnet.inspection.tensors if t.name.endswith("original0")]
    assert parts["shared core"] == pytest.approx(core.bytes)


def test_rows_of_layers(resnet: RunRecord) -> None:
    rows = layer_rows(resnet)
    assert len(rows) == 20
    norms_and_biases = 269_722 - sum(row.dense_params for row in rows)
    core = resnet.plan.shared_core
    assert core is not None
    stored = sum(row.pressed_params for row in rows) + torch.Size(core).numel()
    assert stored + norms_and_biases == resnet.plan.params
    assert all(row.error is None for row in rows)
    for row in rows:
        assert row.file_bytes is not None
        assert row.bits_per_weight == pytest.approx(8 * row.file_bytes / row.pressed_params)


def test_errors_of_the_start(tmp_path: Path) -> None:
    run = record(tmp_path, "lenet300100", "ada_tucker", initial=True, budget="params=30_000")
    for row in layer_rows(run):
        dense = run.dense.get_parameter(f"{row.name}.weight")
        pressed = tp.materialize(run.latent).get_parameter(f"{row.name}.weight")
        with torch.no_grad():
            error = float((dense - pressed).norm() / dense.norm())
        assert row.error == pytest.approx(error, rel=1e-4)


@pytest.fixture(scope="module")
def replaced(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A network pressed in layer form and, its last layer, in both kinds of weight form."""
    layers = {
        "ip1": {"scheme": "tt_weight", "ranks": 0.3},
        "ip2": {"scheme": "ada_tucker", "modes": [10, 500], "ranks": 4},
    }
    folder = tmp_path_factory.mktemp("replaced")
    return record(folder, "lenet5", "tucker2", initial=True, ranks=0.2, overrides=layers)


def test_metrics_of_replaced_layers(replaced: RunRecord) -> None:
    metrics = run_metrics(replaced)
    assert metrics["pressed"]["params"] == replaced.plan.params == count_params(replaced.decoded)
    assert metrics["dense"]["macs"] == 2_293_000
    # The chains multiply less; what is rebuilt multiplies as much as the dense layers.
    convs = (1 * 1 * 784 + 4 * 25 * 576 + 20 * 4 * 576) + (20 * 4 * 144 + 1000 * 64 + 50 * 10 * 64)
    assert metrics["pressed"]["macs"] == convs + 405_000
    assert metrics["ratio"]["macs"] == 2_293_000 / metrics["pressed"]["macs"] > 2
    assert metrics["pressed"]["start_error"] == 42.5
    assert set(metrics["latency"]) == {"batch", "dense_ms", "materialized_ms", "pressed_ms"}


def test_rows_of_replaced_layers(replaced: RunRecord) -> None:
    rows = layer_rows(replaced)
    assert [(row.name, row.kind, row.scheme) for row in rows] == [
        ("conv1", "Conv2d", "tucker2"),
        ("conv2", "Conv2d", "tucker2"),
        ("ip1", "Linear", "tt_weight"),
        ("ip2", "Linear", "ada_tucker"),
    ]
    assert [row.ranks for row in rows] == [layer.ranks for layer in replaced.plan.layers]
    assert [row.modes for row in rows] == [(), (), (), (10, 500)]
    assert sum(row.pressed_params for row in rows) + 580 == replaced.plan.params
    assert replaced.initial is not None
    for row in rows:
        dense = replaced.dense.get_submodule(row.name)
        found = unpress_layer(replaced.initial.get_submodule(row.name))
        with torch.no_grad():
            error = float((dense.weight - found.weight).norm() / dense.weight.norm())
        assert row.error == pytest.approx(error, rel=1e-4)
    biases = sum(t.bytes for t in replaced.inspection.tensors if t.name.endswith("bias"))
    sizes = [row.file_bytes for row in rows]
    assert all(size is not None and size > 0 for size in sizes)
    stored = sum(t.bytes for t in replaced.inspection.tensors)
    assert sum(size or 0 for size in sizes) + biases == pytest.approx(stored)


def test_parts_and_histograms_of_replaced_layers(replaced: RunRecord) -> None:
    parts = {part.name: part.bytes for part in file_parts(replaced.inspection)}
    assert set(parts) == {
        *("container, checksum", "header: network and plan", "quantizers, padding", "biases"),
        *(f"{name}: factors" for name in ("conv1", "conv2", "ip1", "ip2")),
    }
    assert sum(parts.values()) == pytest.approx(replaced.inspection.size)
    for row in layer_rows(replaced):
        assert parts[f"{row.name}: factors"] == pytest.approx(row.file_bytes)
    content = report_content(replaced, run_metrics(replaced))
    assert [histogram.layer for histogram in content.histograms] == ["conv1", "conv2", "ip1", "ip2"]
    assert ReportContent.from_json(content.to_json()) == content


def test_layers_that_were_kept_dense_say_why(tmp_path: Path) -> None:
    layers = {"ip1": {"modes": [784, 300], "ranks": 5}}
    run = record(tmp_path, "lenet300100", "ada_tucker", overrides=layers)
    rows = {row.name: row for row in layer_rows(run)}
    assert (rows["ip1"].scheme, rows["ip1"].note) == ("ada_tucker", "")
    assert (rows["ip2"].scheme, rows["ip2"].note) == ("dense", "not named in overrides")
    assert rows["ip2"].pressed_params == rows["ip2"].dense_params == 30_000
    assert {part.name for part in file_parts(run.inspection)} >= {"ip1: factors", "ip2: weight"}


def test_content_of_the_report(resnet: RunRecord) -> None:
    metrics = run_metrics(resnet)
    content = report_content(resnet, metrics)
    assert ReportContent.from_json(content.to_json()) == content
    assert content.title == "A title"
    assert content.subtitle == "resnet20 on cifar10, scada_tucker, seed 7"
    assert content.metrics is metrics
    loss, error = content.curves
    assert loss.curves[0].values == [0.5, 0.4]
    assert error.curves[0].values == [None, 7.0]
    for histogram in content.histograms:
        assert sum(histogram.before) == sum(histogram.after) > 0
        assert histogram.edges[0] == -histogram.edges[-1]
    assert len({histogram.layer for histogram in content.histograms}) == len(content.histograms)


def test_weights_that_are_all_zero(tmp_path: Path) -> None:
    layers = {"ip1": {"modes": [784, 300], "ranks": 1}}
    run = record(tmp_path, "lenet300100", "ada_tucker", overrides=layers)
    for model in (run.latent, run.decoded):
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
    for histogram in report_content(run, run_metrics(run)).histograms:
        assert histogram.before == histogram.after
        assert sum(histogram.before) > 0
