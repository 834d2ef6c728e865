"""Files that were finished, and then cut or lengthened: what reads them says so."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.calibrate.calibration import Calibration
from tensorpress.errors import CorruptFileError, InvalidArgumentError
from tensorpress.models.zoo import build
from tensorpress.models.zoo.weights import load_weights, save_weights
from tensorpress.planning.plan import Plan
from tensorpress.planning.scores import Scored, Scores
from tensorpress.train.checkpoint import read_checkpoint, write_checkpoint


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 10))


def write_calibration(path: Path) -> None:
    Calibration.collect(net(), [torch.randn(30, 20)]).save(path)


def write_scores(path: Path) -> None:
    Scores("loss", 0.5, {"0": (Scored("channel_svd", (2,), 0.1, measured=True),)}).save(path)


def write_plan(path: Path) -> None:
    tp.plan(net(), scheme="channel_svd", ranks=2).save(path)


FILES: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "net.calibration": (write_calibration, Calibration.load),
    "scores.json": (write_scores, Scores.read),
    "plan.json": (write_plan, Plan.read),
    "lenet5.safetensors": (
        lambda path: save_weights(build("lenet5"), path),
        lambda path: load_weights(build("lenet5"), path),
    ),
    "run.pt": (
        lambda path: write_checkpoint(path, {"x": torch.randn(40)}),
        lambda path: read_checkpoint(path, {"x"}),
    ),
    "model.tpz": (lambda path: tp.save(net(), path), lambda path: tp.load(path, net())),
}


def cut(part: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(part * len(data))]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": cut(0),
    "half": cut(0.5),
    "the last byte missing": lambda data: data[:-2],  # of text, the last is the end of a line
    "a byte more": lambda data: data + b"\x01",
    "itself twice": lambda data: data + data,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    if name == "run.pt" and damage in ("a byte more", "itself twice"):
        pytest.skip("a zip archive may have something around it")
    path = tmp_path / name
    write, read = FILES[name]
    write(path)
    read(path)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises((CorruptFileError, InvalidArgumentError), match=name):
        read(path)
