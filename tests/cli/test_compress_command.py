import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from command_line import Outcome
from tensorpress.checkpoints import load_checkpoint
from tensorpress.codec.save_load import load
from tensorpress.models.zoo import build, save_weights

Shell = Callable[..., Outcome]
RunJson = Callable[..., Any]
Fails = Callable[..., str]

LENET = ("--model", "lenet300100", "--weights", "w.safetensors")


@pytest.fixture(autouse=True)
def trained(tmp_path: Path) -> nn.Module:
    """A network whose weights are in the file w.safetensors."""
    torch.manual_seed(1)
    model = build("lenet300100")
    save_weights(model, tmp_path / "w.safetensors")
    return model.eval()


def test_a_folder_with_model_plan_and_report(run_json: RunJson, tmp_path: Path) -> None:
    result = run_json(
        "compress", *LENET, "--budget", "params=30%", "--data", "digits", "--out", "small"
    )
    folder = tmp_path / "small"
    assert result["costs"]["params"]["compressed"] <= 0.3 * 266_610
    assert json.loads((folder / "compress.json").read_text()) == result
    model = load_checkpoint(folder, build("lenet300100"))
    assert sum(p.numel() for p in model.parameters()) == result["costs"]["params"]["compressed"]
    page = (folder / "report.html").read_text()
    assert result["verdict"] in page
    assert all(trial["name"] in page for trial in result["trials"])


def test_labels_serve_the_test(shell: Shell, run_json: RunJson, tmp_path: Path) -> None:
    words = ("compress", *LENET, "--budget", "params=50%", "--data")
    result = run_json(*words, "digits", "--out", "small")
    before = run_json("eval", "--model", *LENET[1:], "--data", "digits")["error"]
    after = run_json("eval", "small", "--data", "digits")["error"]
    assert result["metric"] == {"dense": pytest.approx(before), "compressed": pytest.approx(after)}
    np.save(tmp_path / "pixels.npy", np.random.default_rng(0).integers(0, 256, (200, 28, 28), "u1"))
    outcome = shell(*words, "pixels.npy", "--out", "blind")
    assert outcome.code == 0
    assert "metric" not in outcome.out


def test_bytes_are_a_file(run_json: RunJson, shell: Shell, tmp_path: Path) -> None:
    result = run_json(
        "compress", *LENET, "--budget", "bytes=10%", "--data", "digits", "--out", "small"
    )
    file = tmp_path / "small" / "model.tpz"
    assert file.stat().st_size == result["costs"]["bytes"]["compressed"] <= 106_644
    load(file, build("lenet300100"))
    assert not (tmp_path / "small" / "model.safetensors").exists()
    assert run_json("inspect", "small")["bytes"] == file.stat().st_size
    assert run_json("eval", "small")["error"] == pytest.approx(result["metric"]["compressed"])
    report = run_json("report", "small", "--data", "digits")
    assert report["costs"]["bytes"]["compressed"] == file.stat().st_size
    assert (report["data"], report["fidelity"]) == (
        "digits",
        run_json("report", "small")["fidelity"],
    )
    assert "on digits: " in shell("report", "small").out
    assert run_json("encode", "small", "--bits", "3", "--out", "smaller.tpz")["bytes"] > 0
    assert run_json("decode", "small", "--out", "small.safetensors")["values"] > 200_000


def test_files_and_folders_are_compared(run_json: RunJson, shell: Shell, tmp_path: Path) -> None:
    words = ("compress", *LENET, "--data", "digits", "--budget")
    for budget, out in (("params=30%", "small"), ("bytes=5%", "coded")):
        assert shell(*words, budget, "--out", out).code == 0
    content = run_json("report", "small", "coded", "--data", "digits", "--out", "page.html")
    rows = {row["name"]: row for row in content["models"]}
    assert list(rows) == ["dense", "small", "coded"]
    assert rows["coded"]["bytes"] == (tmp_path / "coded" / "model.tpz").stat().st_size
    assert rows["small"]["params"] <= 0.3 * rows["dense"]["params"]
    assert rows["small"]["metric"] == pytest.approx(run_json("eval", "small")["error"])
    assert json.loads((tmp_path / "page.json").read_text()) == content
    said = shell("report", "small", "coded")
    assert "outputs compared on digits" in said.out
    assert "latency, ms" in said.out
    assert "small" in (tmp_path / "report.html").read_text()


def test_the_table_ends_with_the_folder(shell: Shell) -> None:
    said = shell("compress", *LENET, "--budget", "params=50%", "--out", "small")
    assert said.code == 0
    assert "give calibration data" in said.out
    assert said.out.splitlines()[-1] == "written  small"


def test_a_folder_that_is_there_stays(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "mine").write_text("x")
    assert "small already exists" in fails(
        "compress", *LENET, "--budget", "params=50%", "--out", "small"
    )


@pytest.mark.parametrize("budget", ["params=1", "bytes=1B", "weights=3"])
def test_budgets_that_cannot_be_met(fails: Fails, tmp_path: Path, budget: str) -> None:
    assert "budget" in fails("compress", *LENET, "--budget", budget, "--out", "small")
    assert not (tmp_path / "small").exists()


def test_data_that_does_not_exist(fails: Fails) -> None:
    text = fails("compress", *LENET, "--budget", "params=50%", "--data", "dogs", "--out", "x")
    assert "dogs" in text


def test_a_folder_that_cannot_be_written_is_known_first(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    text = fails("compress", *LENET, "--budget", "params=50%", "--out", "file/small")
    assert "file/small cannot be written" in text


def test_fewer_examples_and_no_refinement(run_json: RunJson) -> None:
    words = ("compress", *LENET, "--budget", "params=50%", "--data", "digits", "--out", "small")
    result = run_json(*words, "--examples", "60", "--no-refine")
    assert result["fidelity"]["examples"] == 12  # a fifth judges
    assert "refined" not in {trial["name"] for trial in result["trials"]}
