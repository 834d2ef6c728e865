"""Every reader of a file that someone else may have written, and a small valid file for each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

import tensorpress as tp
from tensorpress.calibrate.calibration import Calibration
from tensorpress.checkpoints.safetensors_reader import INDEX, TensorFiles
from tensorpress.cli.plan_arguments import parse_overrides
from tensorpress.codec.state_dict import load_tensors
from tensorpress.models.names import parse_name
from tensorpress.models.origin import FILE, Origin
from tensorpress.planning.scores import Scored, Scores
from tensorpress.runs.recipe import EXAMPLE, read_recipe
from tensorpress.sweep.variants import read_sweep
from tensorpress.train.checkpoint import RunCheckpoint
from tensorpress.utils.jobs import JobFolder

Reader = Callable[[bytes], Any]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


def text_readers(folder: Path) -> dict[str, tuple[bytes, Reader]]:
    """Return readers of YAML and JSON, each with the bytes of a valid file."""
    model = net()
    plan = tp.plan(model, scheme="channel_svd", ranks=2)
    plan.save(folder / "a.json")
    plan.save(folder / "a.yaml")
    Scores("loss", 0.5, {"0": (Scored("channel_svd", (4,), 0.02, True),)}).save(folder / "s.json")
    shard = safetensors.torch.save({"x": torch.ones(2)})
    (folder / "model.safetensors").write_bytes(shard)
    index = json.dumps({"metadata": {}, "weight_map": {"x": "model.safetensors"}}).encode()
    jobs = JobFolder(folder / "jobs", {"task": "lengths"})
    jobs.run({"three": ("three",)}, len, title="lengths")
    [entry] = (path for path in (folder / "jobs").iterdir() if path.name.startswith("three"))

    def place(name: str, read: Callable[[Path], Any]) -> Reader:
        def read_bytes(data: bytes) -> Any:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            return read(path)

        return read_bytes

    def read_jobs(_: Path) -> Any:
        return JobFolder(folder / "jobs", {"task": "lengths"}).results()

    sweep = b"recipe: ../r.yaml\nvary:\n  train.epochs: [1, 2]\n"
    return {
        "plan.json": ((folder / "a.json").read_bytes(), place("a.json", tp.Plan.read)),
        "plan.yaml": ((folder / "a.yaml").read_bytes(), place("a.yaml", tp.Plan.read)),
        "scores": ((folder / "s.json").read_bytes(), place("s.json", Scores.read)),
        "recipe": (EXAMPLE.encode(), place("r.yaml", read_recipe)),
        "sweep": (sweep, place("sweeps/s.yaml", read_sweep)),
        "index": (index, place(INDEX, lambda path: TensorFiles(path.parent))),
        "job": (entry.read_bytes(), place(f"jobs/{entry.name}", read_jobs)),
        "origin": (
            b'{"model": "lenet5"}',
            place(FILE, lambda path: Origin.read(path.parent).trusted_model(path)),
        ),
        "override": (b"*: {ranks: 3}", lambda data: parse_overrides([_text(data)])),
        "option": (b"lenet5,width=3", lambda data: parse_name(_text(data))),
    }


def binary_readers(folder: Path) -> dict[str, tuple[bytes, Reader]]:
    """Return readers of safetensors, of training checkpoints and of `.tpz` files."""
    torch.manual_seed(0)
    model = net()
    tp.save(model, folder / "b.tpz")
    Calibration.collect(model, [torch.randn(8, 6)]).save(folder / "c.safetensors")
    weights = safetensors.torch.save({name: t.detach() for name, t in model.state_dict().items()})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def resume(path: Path) -> Any:
        return RunCheckpoint(path, model, optimizer, scaler, {"lr": 0.1}, []).resume()

    run = RunCheckpoint(folder / "d.pt", model, optimizer, scaler, {"lr": 0.1}, [])
    run.save(run.resume())

    def place(name: str, read: Callable[[Path], Any]) -> Reader:
        def read_bytes(data: bytes) -> Any:
            (folder / name).write_bytes(data)
            return read(folder / name)

        return read_bytes

    def read_folder(path: Path) -> Any:
        files = TensorFiles(path.parent)
        return [files.read(name) for name in files.tensors]

    (folder / "w").mkdir()
    calibration = (folder / "c.safetensors").read_bytes()
    return {
        "tpz": ((folder / "b.tpz").read_bytes(), place("b.tpz", load_tensors)),
        "calibration": (calibration, place("c.safetensors", Calibration.load)),
        "safetensors": (weights, place("w/model.safetensors", read_folder)),
        "checkpoint": ((folder / "d.pt").read_bytes(), place("d.pt", resume)),
    }


def _read_origin(path: Path) -> str | None:
    return Origin.read(path.parent).trusted_model(path)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
