"""What a user can do wrong ends in one clear message on stderr, exit code 1, and no traceback."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import TINY

import tensorpress as tp
from command_line import Outcome, call
from tensorpress.models.zoo import build, save_weights
from tensorpress.runs.run import RunResult

Call = Callable[..., Outcome]


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORPRESS_DATA", raising=False)

    def refused(*words: object) -> str:
        said = call(monkeypatch, capsys, *words)
        assert said.code == 1
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert "Traceback" not in said.err
        return said.err

    return refused


def write(path: Path, **sections: Any) -> Path:
    content = yaml.safe_load(TINY) | sections
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(yaml.safe_dump(kept))
    return path


def test_recipes(tmp_path: Path, refused: Call) -> None:
    run = partial(refused, "run", tmp_path / "a.yaml", "--out", tmp_path / "run")
    assert "no recipe at" in run()
    write(tmp_path / "a.yaml", tain={"epochs": 1})
    assert "tain: unknown key, did you mean 'train'?" in run()
    write(tmp_path / "a.yaml", press={"scheme": "scada_tuker", "budget": "params=5000"})
    assert "unknown scheme 'scada_tuker': did you mean 'scada_tucker'" in run()
    (tmp_path / "a.yaml").write_text("title: [")
    assert "cannot be read as YAML" in run()
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_not_there_is_told_before_anything_is_trained(
    tmp_path: Path, refused: Call
) -> None:
    teacher = {"network": "lenet300100", "weights": "teacher.safetensors"}
    write(tmp_path / "a.yaml", teacher=teacher, train={"epochs": 1, "lr": 0.1, "distill": {}})
    said = refused("run", tmp_path / "a.yaml", "--out", tmp_path / "run")
    assert "teacher.safetensors: put a safetensors file" in said
    assert "let the recipe train it" not in said
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {
                "press": {
                    "scheme": "ada_tucker",
                    "overrides": {"ip9": {"modes": [20, 15], "ranks": 3}},
                }
            },
            "'ip9': did you mean",
        ),
        (
            {
                "press": {
                    "scheme": "ada_tucker",
                    "overrides": {"ip1": {"modes": [20, 15], "ranks": 3}},
                }
            },
            "layer 'ip1'",
        ),
        (
            {
                "press": {
                    "scheme": "ada_tucker",
                    "overrides": {"ip1": {"modes": [784, 300], "ranks": 301}},
                }
            },
            "layer 'ip1'",
        ),
        ({"press": {"scheme": "ada_tucker", "budget": "params=500"}}, "at least"),
        ({"data": {"name": "digts", "validation": 9}}, "'digts': did you mean 'digits'"),
        ({"data": {"name": "digits", "validation": 1201}}, "validation must be from 0 to 1200"),
        (
            {"network": "resnet20", "press": {"scheme": "ada_tucker", "budget": "params=90_000"}},
            "does not fit resnet20",
        ),
        ({"network": "resnet20"}, "'ip1'"),
    ],
)
def test_plans_and_data(tmp_path: Path, refused: Call, sections: Any, message: str) -> None:
    write(tmp_path / "a.yaml", **sections)
    assert message in refused("run", tmp_path / "a.yaml", "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_missing_data(tmp_path: Path, refused: Call, finished: RunResult) -> None:
    write(tmp_path / "a.yaml", data={"name": "mnist", "validation": 5000})
    for words in (
        ("run", tmp_path / "a.yaml", "--out", tmp_path / "run"),
        ("eval", finished.folder / "model.tpz", "--data", "mnist"),
    ):
        message = refused(*words)
        assert "train-images-idx3-ubyte.gz" in message
        assert "https://" in message
        assert "TENSORPRESS_DATA" in message
    words = ("eval", finished.folder / "model.tpz", "--data", "mnist", "--root")
    message = refused(*words, tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message


def test_weights(tmp_path: Path, refused: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.yaml", dense=None, weights="net.safetensors")
    run = partial(refused, "run", tmp_path / "a.yaml", "--out", tmp_path / "run")
    message = run()
    assert str(tmp_path / "net.safetensors") in message
    assert "TENSORPRESS_DATA" in message
    dense = build("lenet300100")
    with torch.no_grad():
        dense.ip2.weight[3, 5] = float("nan")
    save_weights(dense, tmp_path / "net.safetensors")
    message = run()
    assert "net.safetensors: 'ip2.weight' has NaN or infinite values" in message
    save_weights(build("lenet5"), tmp_path / "net.safetensors")
    assert "does not fit LeNet300100" in run()
    (tmp_path / "net.safetensors").write_bytes(b"not weights")
    assert "not a complete safetensors file" in run()


def test_training_that_diverges(tmp_path: Path, refused: Call) -> None:
    write(tmp_path / "a.yaml", train={"epochs": 2, "lr": 1e30, "optimizer": "sgd"})
    message = refused("run", tmp_path / "a.yaml", "--out", tmp_path / "run")
    assert "loss" in message.splitlines()[-1]


def test_files(tmp_path: Path, refused: Call, finished: RunResult) -> None:
    data = (finished.folder / "model.tpz").read_bytes()
    bad = tmp_path / "bad.tpz"
    for content, message in [
        (None, "bad.tpz: no such file"),
        (b"", "bad.tpz: this is not a .tpz file"),
        (b"PK\x03\x04", "bad.tpz: this is not a .tpz file"),
        (data[:-1], "bad.tpz: the checksum is wrong: the file is truncated or altered"),
        (data[:100] + bytes([data[100] ^ 1]) + data[101:], "bad.tpz: the checksum is wrong"),
        (data[:3] + b"\x09" + data[4:], "bad.tpz: the file has format version 9"),
    ]:
        if content is not None:
            bad.write_bytes(content)
        for command in ("inspect", "eval"):
            assert message in refused(command, bad)


def test_a_model_of_ones_own_is_not_tested(tmp_path: Path, refused: Call) -> None:
    tp.save(torch.nn.Linear(3, 2), tmp_path / "own.tpz")
    assert "own.tpz has a model that is not in the zoo" in refused("eval", tmp_path / "own.tpz")


def test_folders(tmp_path: Path, refused: Call, finished: RunResult) -> None:
    write(tmp_path / "a.yaml")
    (tmp_path / "file").touch()
    for folder in ("file", "file/run"):
        message = refused("run", tmp_path / "a.yaml", "--out", tmp_path / folder)
        assert f"{tmp_path / folder} cannot be the output folder" in message
    message = refused("run", tmp_path / "a.yaml", "--out", finished.folder, "--seed", 9)
    assert "another recipe or seed" in message


def test_checkpoints(tmp_path: Path, refused: Call, finished: RunResult) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("recipe.yaml", "checkpoints/dense.pt"):
        (folder / name).write_bytes((finished.folder / name).read_bytes())
    (folder / "checkpoints" / "train.pt").write_bytes(b"PK damaged")
    write(tmp_path / "a.yaml")
    message = refused("run", tmp_path / "a.yaml", "--out", folder, "--seed", 3)
    assert "train.pt is not a training checkpoint, or is damaged" in message
