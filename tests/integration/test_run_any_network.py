"""Runs and sweeps of networks that are not in the zoo."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import recipe

from command_line import call
from tensorpress.codec.inspect import inspect
from tensorpress.codec.save_load import load
from tensorpress.data import batches
from tensorpress.data.digits import read_digits
from tensorpress.data.splits import load_splits
from tensorpress.models.classifier import build_classifier
from tensorpress.models.torchvision import mend_torchvision
from tensorpress.planning import plan_from_model
from tensorpress.runs.recipe_network import recipe_network
from tensorpress.runs.run import run
from tensorpress.sweep import Pick, sweep
from tensorpress.sweep.variants import SweepFile, make_variants
from tensorpress.train import evaluate

FUNCTIONS = """
from torch import nn


class Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.conv = nn.Conv2d(1, width, 3)
        self.table = nn.Parameter(nn.init.normal_(nn.Linear(36, 36).weight.detach(), std=0.1))
        self.head = nn.Linear(width * 36, 10)

    def forward(self, x):
        y = self.conv(self.norm(x)).relu().flatten(2) @ self.table
        return self.head(y.flatten(1))
"""
TRAIN = {"epochs": 3, "lr": 0.005}


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gated_nets.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)


SECTIONS: dict[str, Any] = {
    "network": "gated_nets:Gated,width=12",
    "dense": TRAIN,
    "press": {
        "scheme": "channel_svd",
        "ranks": 6,
        "calibrate": 64,
        "reconstruct": "linear",
        "overrides": {"table": {"scheme": "svd_weight", "ranks": 9}, "conv": {"ranks": 4}},
    },
    "train": {**TRAIN, "distill": {"weight": 0.5}},
    "quantize": {"step": 0.25, "finetune": {"epochs": 1, "lr": 0.001}},
}


def test_a_network_of_a_function_is_carried_through(tmp_path: Path) -> None:
    one = recipe(**SECTIONS)
    result = run(one, tmp_path / "run", seed=1)
    metrics = result.metrics
    dense = build_classifier(one.network, 10)
    assert metrics["dense"]["params"] == sum(p.numel() for p in dense.parameters())
    assert metrics["dense"]["error"] < 60
    assert metrics["file"]["error"] < 60
    rows = {row.name: row for row in result.content.layers}
    assert list(rows) == ["table", "conv", "head"]
    assert rows["table"].pressed_params == 2 * 9 * 36
    assert 0 < rows["table"].error < 1
    assert all(row.file_bytes > 20 for row in rows.values())
    reloaded = load(tmp_path / "run" / "model.tpz", dense)
    assert {layer.name for layer in plan_from_model(reloaded).layers} == {"table", "conv", "head"}
    net = recipe_network(one)
    test = batches(load_splits(net, "digits").test, net.preprocess, 200, shuffle=False)
    assert evaluate(reloaded, test).error == metrics["file"]["error"]
    assert "Gated,width=12" in (tmp_path / "run" / "report.html").read_text()


def test_a_run_for_size_starts_from_weights_of_a_file(tmp_path: Path, no_page: None) -> None:
    mend_torchvision()
    pytest.importorskip("torchvision")
    start = build_classifier("torchvision:shufflenet_v2_x0_5", 20)
    torch.save({"state_dict": start.state_dict()}, tmp_path / "start.pt")
    one = recipe(
        network="torchvision:shufflenet_v2_x0_5",
        input=[3, 32, 32],
        data={"name": "digits", "validation": 200, "batch_size": 143},
        weights="start.pt",
        dense={"epochs": 1, "lr": 0.001},
        press={"scheme": "tucker2", "budget": "params=60%"},
        train={"epochs": 1, "lr": 0.001},
        quantize=None,
        rate={"tradeoff": 0.01, "hard": {"epochs": 1, "lr": 0.001}},
    )
    metrics = run(one, tmp_path / "run").metrics
    assert metrics["ratio"]["params"] > 1 / 0.6
    assert metrics["ratio"]["file"] > 4
    reloaded = load(tmp_path / "run" / "model.tpz", build_classifier(one.network, 10))
    assert sum(p.numel() for p in reloaded.parameters()) == metrics["pressed"]["params"]


def test_a_sweep_of_a_network_of_a_function(tmp_path: Path, no_page: None) -> None:
    base = recipe(**SECTIONS).model_dump(mode="json", exclude_defaults=True)
    file = SweepFile(
        recipe=base, vary={"network": [f"gated_nets:Gated,width={w}" for w in (8, 12)]}
    )
    picks = [Pick.parse("error<=100")]
    result = sweep(file, make_variants(base, file), tmp_path / "out", seeds=[0], picks=picks)
    small, large = result["variants"]
    assert small["bytes"] < large["bytes"]
    assert 0 < result["picks"][0]["test_error"]["mean"] < 80


def test_a_file_of_an_image_folder_is_tested_as_it_was_trained(
    tmp_path: Path,
    no_page: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mend_torchvision()
    pytest.importorskip("torchvision")
    image = pytest.importorskip("PIL.Image")
    for part, digits in zip(("train", "test"), read_digits(), strict=True):
        for number in range(240):
            pixels, label = digits[number]
            folder = tmp_path / "photos" / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            image.fromarray(pixels[0].numpy()).save(folder / f"{number}.png")
    name = "gated_nets:Gated,width=12"
    data = {"source": "photos", "validation": 40, "batch_size": 40}
    metrics = run(recipe(**SECTIONS, input=[1, 8, 8], data=data), tmp_path / "run").metrics
    assert 20 < metrics["file"]["error"] < 80
    assert inspect("run/model.tpz").preprocess == "size: 8, mean: [0.0], std: [1.0]"
    for words in (("run", "--model", name), ("run/model.tpz", "--model", name, "--data", "photos")):
        said = call(monkeypatch, capsys, "eval", *words, "--json")
        assert json.loads(said.out)["error"] == pytest.approx(metrics["file"]["error"])
    said = call(monkeypatch, capsys, "eval", "run")
    assert f"--model {name} if you trust it" in said.err
    said = call(monkeypatch, capsys, "report", "run", "--model", name, "--data", "photos")
    assert said.code == 0, said.err
    assert "% of the predictions agree" in said.out
