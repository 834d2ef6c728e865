import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tiny_runs import TINY
from torch import nn

import tensorpress as tp
from command_line import Outcome, call
from tensorpress.data import batches
from tensorpress.data.splits import load_splits
from tensorpress.models.zoo import NETWORKS, build, load_weights
from tensorpress.planning import SCHEMES
from tensorpress.runs.recipe import parse_recipe
from tensorpress.runs.run import RunResult
from tensorpress.train import evaluate

Call = Callable[..., Outcome]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return partial(call, monkeypatch, capsys)


def test_run(tmp_path: Path, shell: Call, finished: RunResult) -> None:
    (tmp_path / "recipe.yaml").write_text(TINY)
    said = shell("run", tmp_path / "recipe.yaml", "--out", tmp_path / "run [1]", "--seed", 3)
    assert said.code == 0
    size = (tmp_path / "run [1]" / "model.tpz").stat().st_size
    assert f"{size:,}" in said.out
    assert f"file    {tmp_path / 'run [1]' / 'model.tpz'}\n" in said.out
    assert "report  file:///" in said.out
    assert max(map(len, said.out.splitlines()[:-2])) <= 80
    again = (tmp_path / "run [1]" / "model.tpz").read_bytes()
    assert again == (finished.folder / "model.tpz").read_bytes()
    said = shell("run", tmp_path / "recipe.yaml", "-o", tmp_path / "run [1]", "--seed", 3, "--json")
    assert json.loads(said.out)["file"] == finished.metrics["file"]


CHATTING = """
import logging
from tensorpress.cli import main
from tensorpress.runs import run as recipes

run = recipes.run

def chat(*args, **options):
    logging.getLogger("another.library").info("chatter")
    return run(*args, **options)

recipes.run = chat
main()
"""


def test_epochs_are_told_where_there_is_no_terminal_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(TINY)
    process = subprocess.run(
        [sys.executable, "-c", CHATTING, "run", "recipe.yaml", "--out", "run", "--json"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = process.stderr.splitlines()
    epochs = [line for line in lines if line.startswith("epoch")]
    assert epochs[0].startswith("epoch 1: train loss")
    assert len(epochs) == 6 + 2 + 2
    dense, pressed, *others = [line for line in lines if line not in epochs]
    assert pressed.startswith("pressed 2 layers")
    assert [dense, *others] == ["dense: 6 epochs", "train: 2 epochs", "quantized: 2 epochs"]
    assert json.loads(process.stdout)["seed"] == 0


def test_the_recipe_of_demo(shell: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Reached(tp.TensorPressError):
        pass

    def stop(recipe: object, out: Path, *, seed: int) -> None:
        seen.append((recipe, out, seed))
        raise Reached("far enough")

    monkeypatch.setattr("tensorpress.runs.run.run", stop)
    said = shell("demo", "--seed", 5)
    assert (said.code, said.err) == (1, "error: far enough\n")
    [(recipe, out, seed)] = seen
    assert (recipe.network, recipe.data.name, recipe.data.root) == ("lenet5", "digits", None)  # type: ignore[attr-defined]
    assert (out, seed) == (Path("demo"), 5)
    assert parse_recipe(recipe.to_yaml()) == recipe  # type: ignore[attr-defined]


def test_eval(shell: Call, finished: RunResult) -> None:
    file = finished.folder / "model.tpz"
    size, error = finished.metrics["file"]["bytes"], finished.metrics["file"]["error"]
    said = shell("eval", file)  # which knows its data
    assert said.code == 0
    assert said.out == (
        f"{file}: lenet300100, {size:,} bytes, error {error:.2f} % on 596 test images of digits\n"
    )
    found = json.loads(shell("eval", file, "--data", "digits", "--json").out)
    assert found["error"] == error
    assert (found["bytes"], found["examples"], found["data"]) == (size, 596, "digits")
    assert found["file"] == str(file)


def test_eval_of_a_trained_network(shell: Call, tmp_path: Path, data_root: Path) -> None:
    dense = build("lenet5")
    load_weights(dense, data_root / "lenet_caffe" / "lenet5.safetensors")
    tp.save(dense, tmp_path / "a.tpz", network="lenet5", data="mnist")
    said = shell("eval", tmp_path / "a.tpz", "--root", data_root, "--json")
    net = NETWORKS["lenet5"]
    test = load_splits(net, "mnist", data_root).test
    exact = evaluate(dense, batches(test, net.preprocess, 1000, shuffle=False)).error
    assert exact < 1
    assert abs(json.loads(said.out)["error"] - exact) < 0.05


def test_inspect(shell: Call, finished: RunResult) -> None:
    file = finished.folder / "model.tpz"
    found = tp.inspect(file)
    said = shell("inspect", file)
    assert said.code == 0
    first, heading, *rows, last = said.out.splitlines()
    assert first == f"{file}: lenet300100, for digits, range coder"
    assert heading.split() == ["tensor", "shape", "stored", "as", "bytes", "bits", "entropy"]
    assert len(rows) == len(found.tensors)
    for row, tensor in zip(rows, found.tensors, strict=True):
        assert row.startswith(f"{tensor.short_name} ")
        assert "129 levels ±3" in row
        assert row.split()[-3] == f"{tensor.bytes:,.1f}"
        assert len(row) <= 80
    assert last.startswith(f"{found.size:,} bytes: container 8, header ")
    assert json.loads(shell("inspect", file, "--json").out) == json.loads(
        json.dumps(found.to_dict())
    )


def test_inspect_a_model_with_brackets_in_its_names(shell: Call, tmp_path: Path) -> None:
    path = tmp_path / "[bold].tpz"
    model = nn.ModuleDict({"[red]": nn.Linear(3, 2)})
    tp.save(model, path)
    said = shell("inspect", path)
    assert "[bold].tpz: a custom model" in said.out
    assert "[red].weight  2×3" in said.out
    said = shell("eval", path)
    assert said.code == 1
    assert "[bold].tpz has a model that is not in the zoo" in said.err


def test_list(shell: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = json.loads(shell("list", "--json").out)
    assert set(kinds["networks"]) == set(NETWORKS)
    assert set(kinds["schemes"]) == set(SCHEMES)
    assert "digits" in kinds["data sets"]
    assert kinds["recipes"]["lenet5-ada"].startswith("LeNet-5 on MNIST")
    said = shell("list")
    assert said.code == 0
    for name in (*NETWORKS, *SCHEMES, "digits", "lenet5-ada"):
        assert name in said.out
    assert max(map(len, said.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["run"], "Missing argument"),
        (["run", "a.yaml", "--out"], "Option '--out' requires an argument"),
        (["demo", "--seed", "-1"], "Invalid value for '--seed'"),
        (["demo", "--seed", str(2**32)], "Invalid value for '--seed'"),
        (["demo", "--colour"], "No such option"),
    ],
)
def test_wrong_usage(shell: Call, words: list[str], hint: str) -> None:
    said = shell(*words)
    assert said.code == 2
    assert hint in said.err
    assert said.out == ""


def test_help(shell: Call) -> None:
    said = shell("--help")
    assert said.code == 0
    for command in ("plan", "press", "eval", "inspect", "export", "run", "demo", "list"):
        assert f" {command} " in said.out
        assert shell(command, "--help").code == 0
