"""Every reader of a file that someone else may have written, and a small valid file for each."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

import tensorpress as tp
from tensorpress.calibrate.calibration import Calibration
from tensorpress.checkpoints.encoded_files import ENCODED, EncodedFiles
from tensorpress.checkpoints.pressed_files import PressedFiles
from tensorpress.checkpoints.safetensors_reader import INDEX, WEIGHTS, TensorFiles
from tensorpress.cli.plan_arguments import parse_overrides
from tensorpress.codec.state_dict import load_tensors
from tensorpress.data.arrays import read_arrays
from tensorpress.data.texts import read_json_lines
from tensorpress.data.transforms import ImageOptions
from tensorpress.hugging_face.pressed_config import CONFIG, PLAN, pressed_entries, read_plan
from tensorpress.models.names import parse_name
from tensorpress.models.origin import FILE, Origin
from tensorpress.models.weights import load_weights
from tensorpress.planning.scores import Scored, Scores
from tensorpress.runs.recipe import EXAMPLE, read_recipe
from tensorpress.sweep.variants import read_sweep
from tensorpress.train.checkpoint import RunCheckpoint
from tensorpress.utils.jobs import SUBJECT, JobFolder


@dataclass(frozen=True)
class Reader:
    """A function that reads a file, the bytes of a valid one, and its form in `mutations.FORMS`."""

    data: bytes
    form: str
    read: Callable[[bytes], Any]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


def text_readers(folder: Path) -> dict[str, Reader]:
    """Return readers of YAML and JSON."""
    model = net()
    plan = tp.plan(model, scheme="channel_svd", ranks=2)
    plan.save(folder / "a.json")
    plan.save(folder / "a.yaml")
    Scores("loss", 0.5, {"0": (Scored("channel_svd", (4,), 0.02, True),)}).save(folder / "s.json")
    shard = safetensors.torch.save({"x": torch.ones(2)})
    (folder / WEIGHTS).write_bytes(shard)
    index = json.dumps({"metadata": {}, "weight_map": {"x": WEIGHTS}}).encode()
    subject = {"task": "lengths", "files": ["a", {"b": 1}]}
    JobFolder(folder / "jobs", subject).run({"three": ("three",)}, len, title="lengths")
    [entry] = (path for path in (folder / "jobs").iterdir() if path.name.startswith("three"))
    config = json.dumps({"model_type": "llama"} | pressed_entries(plan)).encode()
    tp.save_checkpoint(tp.press(model, plan), folder / "pressed")
    (folder / "dense").mkdir()
    safetensors.torch.save_file(model.state_dict(), folder / "dense" / WEIGHTS)
    tp.encode_checkpoint(folder / "dense", folder / "coded", lossless=True)
    sweep = b"recipe: ../r.yaml\nvary:\n  train.epochs: [1, 2]\n"
    lines = b'{"text": "some", "label": "a"}\n{"text": "more", "label": "b"}\n'
    image = b"{size: 28, mean: [0.1], std: [1.5], resize: 32}"

    def place(data: bytes, form: str, name: str, read: Callable[[Path], Any]) -> Reader:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        return Reader(data, form, lambda data: (path.write_bytes(data), read(path)))

    def read_jobs(_: Path) -> Any:
        return JobFolder(folder / "jobs", subject).results()

    def read_encoded(path: Path) -> Any:
        files = EncodedFiles(path.parent)
        return [files.read(name) for name in files.tensors]

    def read_subject(path: Path) -> Any:
        return JobFolder(path.parent, subject)

    return {
        "plan.json": place((folder / "a.json").read_bytes(), "json", "a.json", tp.Plan.read),
        "plan.yaml": place((folder / "a.yaml").read_bytes(), "yaml", "a.yaml", tp.Plan.read),
        "plan of a folder": place(
            *((folder / "pressed" / PLAN).read_bytes(), "json", f"pressed/{PLAN}"),
            lambda path: tp.load_checkpoint(path.parent, model),
        ),
        "config": place(config, "json", CONFIG, lambda path: read_plan(path.parent)),
        "scores": place((folder / "s.json").read_bytes(), "json", "s.json", Scores.read),
        "recipe": place(EXAMPLE.encode(), "yaml", "r.yaml", read_recipe),
        "sweep": place(sweep, "yaml", "sweeps/s.yaml", read_sweep),
        "index": place(index, "json", INDEX, lambda path: TensorFiles(path.parent)),
        "job": place(entry.read_bytes(), "json", f"jobs/{entry.name}", read_jobs),
        "jobs": place(
            (folder / "jobs" / SUBJECT).read_bytes(), "json", f"journal/{SUBJECT}", read_subject
        ),
        "origin": place(
            *(b'{"model": "lenet5"}', "json", FILE),
            lambda path: Origin.read(path.parent).trusted_model(path),
        ),
        "encoded": place(
            *((folder / "coded" / ENCODED).read_bytes(), "json", f"coded/{ENCODED}"),
            read_encoded,
        ),
        "json lines": place(lines, "json lines", "t.jsonl", read_json_lines),
        "override": Reader(
            b"*: {ranks: 3}", "bytes", lambda data: parse_overrides([_text(data)])
        ),
        "option": Reader(b"lenet5,width=3", "bytes", lambda data: parse_name(_text(data))),
        "preprocess": Reader(image, "yaml", lambda data: ImageOptions.parse(_text(data))),
    }  # fmt: skip


def binary_readers(folder: Path) -> dict[str, Reader]:
    """Return readers of safetensors, arrays, pickles, training checkpoints and `.tpz` files."""
    torch.manual_seed(0)
    model = net()
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    tp.save(model, folder / "b.tpz")
    Calibration.collect(model, [torch.randn(8, 6)]).save(folder / "c.safetensors")
    weights = safetensors.torch.save(state)
    pickled, array, arrays = BytesIO(), BytesIO(), BytesIO()
    torch.save({"state_dict": state, "epoch": 3}, pickled)
    np.save(array, np.ones((3, 2), np.float32))
    np.savez(arrays, x=np.ones((3, 2)), y=np.arange(3))
    tp.save_checkpoint(
        tp.press(model, tp.plan(model, scheme="channel_svd", ranks=2)), folder / "pressed"
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def resume(path: Path) -> Any:
        return RunCheckpoint(path, model, optimizer, scaler, {"lr": 0.1}, []).resume()

    run = RunCheckpoint(folder / "d.pt", model, optimizer, scaler, {"lr": 0.1}, [])
    run.save(run.resume())

    def place(data: bytes, form: str, name: str, read: Callable[[Path], Any]) -> Reader:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        return Reader(data, form, lambda data: (path.write_bytes(data), read(path)))

    def read_folder(path: Path) -> Any:
        files = TensorFiles(path.parent)
        return [files.read(name) for name in files.tensors]

    def unpress(path: Path) -> Any:
        files = PressedFiles(path.parent, model)
        return [files.read_dense(name) for name in files.dense_tensors()]

    def fill(path: Path) -> None:
        load_weights(net(), path)

    pressed = (folder / "pressed" / WEIGHTS).read_bytes()
    return {
        "tpz": place((folder / "b.tpz").read_bytes(), "tpz", "b.tpz", load_tensors),
        "calibration": place(
            *((folder / "c.safetensors").read_bytes(), "safetensors", "c.safetensors"),
            Calibration.load,
        ),
        "safetensors": place(weights, "safetensors", f"w/{WEIGHTS}", read_folder),
        "pressed folder": place(pressed, "safetensors", f"pressed/{WEIGHTS}", unpress),
        "weights": place(weights, "safetensors", "v.safetensors", fill),
        "state dict": place(pickled.getvalue(), "pickle", "v.pt", fill),
        "checkpoint": place((folder / "d.pt").read_bytes(), "pickle", "d.pt", resume),
        "array": place(array.getvalue(), "bytes", "a.npy", read_arrays),
        "arrays": place(arrays.getvalue(), "archive", "a.npz", read_arrays),
        "tensors": place(
            safetensors.torch.save({"x": torch.ones(3, 2), "y": torch.arange(3)}),
            *("safetensors", "x.safetensors", read_arrays),
        ),
    }


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
