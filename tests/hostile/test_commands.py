"""Whatever file or data a command gets, its user sees one line that says what was expected."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import Outcome
from command_line import call as call_command

NET = "--model lenet300100"
SVD = "--ranks 4 --scheme channel_svd"
FILES: dict[str, str] = {
    "inspect FILE": ".tpz",
    "decode FILE --out OUT/a.safetensors": ".tpz",
    "eval FILE": ".tpz",
    "encode FILE --bits 3 --out OUT/a.tpz": ".tpz",
    f"encode {NET} -w FILE --bits 3 --out OUT/a.tpz": ".tpz",
    "export FILE --onnx OUT/a.onnx": ".tpz",
    "report FILE --out OUT/a.html": ".tpz",
    "report FILE FILE --out OUT/a.html": ".tpz",
    "encode FILE --lossless --out OUT/a.tpz": ".safetensors",
    f"eval {NET} -w FILE": ".safetensors",
    f"compress {NET} -w FILE --budget params=50% --out OUT/a": ".safetensors",
    f"press {NET} -w FILE {SVD} --out OUT/a": ".pt",
    f"press {NET} --plan FILE --out OUT/a": ".json",
    f"plan {NET} --allocation FILE --budget params=50% --out OUT/a.yaml": ".json",
    "run FILE --out OUT/a": ".yaml",
    "sweep FILE --out OUT/a": ".yaml",
    f"eval {NET} --data FILE": ".npy",
    f"compress {NET} --data FILE --budget params=50% --out OUT/a": ".npz",
    f"press {NET} --data FILE {SVD} --out OUT/a": ".safetensors",
    f"encode {NET} --data FILE --bits 3 --out OUT/a.tpz": ".jsonl",
    f"plan {NET} --data FILE --allocation responses --budget params=50%": ".parquet",
    f"report FILE --data FILE {NET} --out OUT/a.html": ".txt",
    f"press FILE {SVD} --out OUT/a": "",
    f"plan --model FILE {SVD}": "",
    "encode FILE --lossless --out OUT/a": "",
    "decode FILE --out OUT/a": "",
    "export FILE --dense OUT/a": "",
    "export FILE --adapter FILE --out OUT/a": "",
}


def written(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


KINDS: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "empty": written(b""),
    "rubbish": written(bytes(range(256))),
    "zeros": written(bytes(5000)),
    "not UTF-8": written("Grüße: [\n".encode("latin-1")),
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/null"),
    "unreadable": lambda path: path.symlink_to("/proc/self/mem"),
    "loop of links": lambda path: path.symlink_to(path.name),
}
NAMES = {"long": "x" * 300, "NUL": "a\0b", "not Unicode": "a\udc80b", "below a file": "empty/a"}


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Return a function that runs a command with a path for FILE, whose errors are one message."""
    out = tmp_path / "out"
    out.mkdir()

    def run(command: str, file: str | Path) -> Outcome:
        words = [
            str(file) if word == "FILE" else word.replace("OUT", str(out))
            for word in command.split()
        ]
        outcome = call_command(monkeypatch, capsys, *words)
        assert outcome.code in (0, 1, 2)
        if outcome.code:
            assert outcome.err.count("error: ") == 1 or outcome.code == 2
            assert not list(out.iterdir())
        return outcome

    return run


@pytest.mark.parametrize("command", FILES)
def test_files_of_any_kind_are_refused(
    tmp_path: Path, call: Callable[..., Outcome], command: str
) -> None:
    for kind, make in KINDS.items():
        path = tmp_path / f"{kind}{FILES[command]}"
        make(path)
        assert call(command, path).code == 1, kind
    for kind, name in NAMES.items():
        path = f"{tmp_path}/{name}{FILES[command]}"  # type: ignore[assignment]
        assert call(command, path).code in (1, 2), kind
    assert "is empty, as a variable of the shell" in call(command, "").err


X, Y = np.zeros((16, 1, 28, 28), np.float32), np.arange(16) % 10
ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"x": X * np.nan, "y": Y}, "scores of example 1 are NaN"),
    "integers": ({"x": X.astype(int), "y": Y}, "fails on the input 1x1x28x28:int64"),
    "complex": ({"x": X + 1j, "y": Y}, "the array x is torch.complex64, expected real"),
    "text": ({"x": np.array(["a"])}, "cannot be read as arrays of numbers"),
    "objects": ({"x": np.array([None])}, "it is no such file, or holds objects"),
    "another shape": ({"x": X[:, :, :20], "y": Y}, "fails on the input 1x1x20x28"),
    "a number": ({"x": np.float32(3)}, "must have one row per example"),
    "empty": ({"x": X[:0], "y": Y[:0]}, "has no examples"),
    "few labels": ({"x": X, "y": Y[:3]}, "must have one row per example"),
    "no labels": ({"x": X}, "have no labels"),
    "only labels": ({"y": Y}, "name the inputs inputs"),
    "negative labels": ({"x": X, "y": Y - 5}, "have labels from -5 to 4"),
    "no arrays": ({}, "has no arrays"),
    "tokens": ({"input_ids": Y.reshape(4, 4)}, "unexpected keyword argument 'input_ids'"),
}
FUNCTIONS = {
    "used_up": "has no batches, or is an iterator that was used before|no examples to evaluate",
    "nothing": "has no batches, or is an iterator that was used before|no examples to evaluate",
    "none": "returns NoneType: expected a DataLoader",
    "words": "got str",
    "raises": "bad_batches:raises fails: RuntimeError: no network (",
    "leaves": "bad_batches:leaves fails: SystemExit: 3",
    "raises_late": "bad_batches:raises_late fails: KeyError: 'second batch' (",
    "damaged": "bad_batches:damaged fails: OSError: unplugged (",
    "endless": "bad_batches:endless fails: TypeError: object of type 'Endless' has no len()",
    "stream": "bad_batches:stream fails: OSError: unplugged (",
    "sizes": "the examples cannot form a batch, because their shapes differ",
    "no_labels": "have no labels",
    "few_labels": "returns (8, 10) for a batch of 5 labels",
    "undefined": "scores of example 1 are NaN",
    "doubles": "fails on the input 8x1x28x28:float64",
    "far_labels": "labels from 990 to 997",
    "tensor": "have no labels",
    "unknown": "bad_batches has no function 'unknown'",
}
OTHERS = (  # commands that fit to data, to which labels do not matter
    f"press {NET} --data FILE {SVD} --out OUT/a",
    f"encode {NET} --data FILE --bits 3 --out OUT/a.tpz",
    f"plan {NET} --data FILE --allocation responses --budget params=50% --scheme channel_svd",
)


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, call: Callable[..., Outcome], kind: str
) -> None:
    content, message = ARRAYS[kind]
    np.savez(tmp_path / "data.npz", **content)
    outcome = call(f"eval {NET} --data FILE", tmp_path / "data.npz")
    assert outcome.code == 1
    assert message in outcome.err


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_data_that_fail_are_named(call: Callable[..., Outcome], name: str) -> None:
    outcome = call(f"eval {NET} --data FILE", f"bad_batches:{name}")
    assert outcome.code == 1
    assert any(message in outcome.err for message in FUNCTIONS[name].split("|"))


@pytest.mark.parametrize("command", OTHERS)
@pytest.mark.parametrize(
    "name", ["used_up", "nothing", "raises_late", "damaged", "stream", "sizes", "undefined"]
)
def test_commands_that_fit_to_failing_data_leave_nothing(
    call: Callable[..., Outcome], command: str, name: str
) -> None:
    assert call(command, f"bad_batches:{name}").code == 1


def test_images_whose_classes_are_no_numbers_of_64_bits(
    tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("7", "9" * 20):
        (tmp_path / "images" / name).mkdir(parents=True)
        image.new("L", (28, 28)).save(tmp_path / "images" / name / "a.png")
    outcome = call(f"eval {NET} --data FILE", tmp_path / "images")
    assert "has 2 classes (7, 99999999999999999999)" in outcome.err


@pytest.mark.parametrize(("command", "message"), [
    (f"encode {NET} --size {'9' * 400} --out OUT/a.tpz", "expected a size"),
    ("encode FILE --bits inf --out OUT/a", "bits must be positive, got inf"),
    (f"plan {NET} {SVD} --input {'9' * 400}", "is too large"),
    (f"plan {NET} {SVD} --input 99999999x99999999x99999999", "is too large"),
    (f"plan {NET} --budget params=50% --override ip1:FILE", "expected PATTERN"),
    (f"eval {NET} --device cuda:99", "for a language model on a text"),
    (f"eval {NET} --data digits --preprocess {{size:FILE", "cannot be read as YAML"),
])  # fmt: skip
def test_options_beyond_all_bounds(
    tmp_path: Path, call: Callable[..., Outcome], command: str, message: str
) -> None:
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "b.npy", X)
    import safetensors.torch
    import torch

    safetensors.torch.save_file({"x": torch.ones(9, 9)}, tmp_path / "a" / "model.safetensors")
    outcome = call(command, tmp_path / "a")
    assert outcome.code == 1
    assert message in outcome.err
