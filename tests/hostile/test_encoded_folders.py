"""Encoded folders of somebody else: bombs, names that lead out of them, killed writers."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tensorpress as tp
from tensorpress.checkpoints.encode_checkpoint import JOBS
from tensorpress.checkpoints.encoded_files import ENCODED, EncodedFiles
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.checkpoints.safetensors_writer import write_index
from tensorpress.codec.state_dict import save_tensors
from tensorpress.errors import CorruptFileError, InvalidArgumentError
from tensorpress.utils.jobs import JobFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dense").mkdir()
    tensors = {"a": torch.randn(40, 30), "b": torch.randn(40)}
    save_file(tensors, tmp_path / "dense" / "model.safetensors")
    tp.encode_checkpoint(tmp_path / "dense", tmp_path / "coded", lossless=True)
    return tmp_path / "coded"


def change(folder: Path, name: str, **values: Any) -> None:
    content = json.loads((folder / ENCODED).read_text())
    content["tensors"][name] |= values
    (folder / ENCODED).write_text(json.dumps(content))


@pytest.mark.parametrize(("values", "message"), [
    ({"file": ".."}, "is not a .tpz file"),
    ({"file": "../a.tpz"}, "is not a .tpz file"),
    ({"file": "/etc/a.tpz"}, "is not a .tpz file"),
    ({"file": 3}, "is not a .tpz file"),
    ({"file": "000001.tpz"}, "two tensors in one file"),
    ({"shard": ".."}, "is not a .safetensors file"),
    ({"shard": "../../a.safetensors"}, "is not a .safetensors file"),
    ({"shard": "setup.py"}, "is not a .safetensors file"),
    ({"shard": None}, "is not a .safetensors file"),
    ({"shape": [1 << 40, 1 << 40]}, "is not a list of encoded tensors"),
    ({"shape": [1 << 62]}, "is not a list of encoded tensors"),
    ({"shape": [1 << 33]}, "far too many values"),
    ({"shape": [1 << 23], "dtype": "F64"}, "far too many values"),
    ({"shape": "ab"}, "is not a list of encoded tensors"),
    ({"dtype": []}, "is not a list of encoded tensors"),
    ({"shape": [40, 31]}, "expected 'a' with the shape and dtype"),
    ({"dtype": "F64"}, "expected 'a' with the shape and dtype"),
])  # fmt: skip
@pytest.mark.parametrize("read", ["decode", "load"])
def test_what_an_index_must_not_say(
    folder: Path, values: dict[str, Any], message: str, read: str
) -> None:
    change(folder, "a", **values)
    reads = {
        "decode": lambda: tp.decode_checkpoint(folder, folder.parent / "out"),
        "load": lambda: EncodedFiles(folder).read("a"),
    }
    with pytest.raises(CorruptFileError, match=message):
        reads[read]()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["coded", "dense"]


def test_a_folder_of_constants_takes_no_more_than_its_files_allow(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = torch.zeros(1 << 14, 1 << 10)
    assert save_tensors({"a": zeros}, folder / "tensors" / "000000.tpz", None) < 50
    change(folder, "a", shape=list(zeros.shape))
    with pytest.raises(CorruptFileError, match="far too many values: pass max_bytes="):
        EncodedFiles(folder)
    monkeypatch.setenv("TENSORPRESS_MAX_BYTES", str(1 << 30))
    assert torch.equal(EncodedFiles(folder).read("a"), zeros)


def test_a_pipe_in_place_of_a_tensor_is_refused(folder: Path) -> None:
    (folder / "tensors" / "000000.tpz").unlink()
    os.mkfifo(folder / "tensors" / "000000.tpz")
    with pytest.raises(tp.TensorPressError, match=r"000000\.tpz is a pipe: expected a \.tpz file"):
        EncodedFiles(folder).read("a")


@pytest.mark.parametrize("step", [3, {}, {"base": "x", "price": 1}, {"base": None}])
def test_a_damaged_step_is_named(folder: Path, tmp_path: Path, step: Any) -> None:
    jobs = tmp_path / "out" / JOBS / "step"
    files = TensorFiles(tmp_path / "dense")
    subject = {"source": files.fingerprint, "bits": 4, "lossless": False}
    JobFolder(jobs, subject).run({"step": ()}, lambda: step, title="")
    with pytest.raises(CorruptFileError, match=r"\.encode is damaged: delete .*out and encode"):
        tp.encode_checkpoint(tmp_path / "dense", tmp_path / "out", bits=4)


def test_a_single_shard_of_another_name_comes_back_with_its_index(tmp_path: Path) -> None:
    (tmp_path / "dense").mkdir()
    tensors, name = {"a": torch.randn(4, 3)}, "model-00001-of-00001.safetensors"
    save_file(tensors, tmp_path / "dense" / name)
    write_index(tmp_path / "dense", {name: tensors})
    tp.encode_checkpoint(tmp_path / "dense", tmp_path / "coded", lossless=True)
    tp.decode_checkpoint(tmp_path / "coded", tmp_path / "back")
    assert torch.equal(TensorFiles(tmp_path / "back").read("a"), tensors["a"])


def _die_while_decoding(coded: Path, out: Path) -> None:
    reads = EncodedFiles.read

    def read(self: EncodedFiles, name: str) -> torch.Tensor:
        if name == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        return reads(self, name)

    EncodedFiles.read = read  # type: ignore[method-assign]
    tp.decode_checkpoint(coded, out)


def test_the_folder_of_a_killed_decoding_is_removed_by_the_next(folder: Path) -> None:
    out = folder.parent / "out"
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_die_while_decoding, args=(folder, out))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(folder.parent.glob(".out.*.tmp"))) == 1
    tp.decode_checkpoint(folder, out)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["coded", "dense", "out"]
    assert set(load_file(out / "model.safetensors")) == {"a", "b"}


def test_a_folder_behind_a_link_is_filled(folder: Path) -> None:
    (folder.parent / "real").mkdir()
    (folder.parent / "link").symlink_to("real")
    tp.decode_checkpoint(folder, folder.parent / "link")
    assert (folder.parent / "real" / "model.safetensors").is_file()
    assert (folder.parent / "link").is_symlink()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_names_that_no_folder_can_have(folder: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        tp.decode_checkpoint(folder, folder.parent / name)
    with pytest.raises(InvalidArgumentError, match=r"cannot be (written|created)"):
        tp.encode_checkpoint(folder.parent / "dense", folder.parent / name, bits=4)


def test_a_finished_folder_is_not_encoded_again(folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="coded is already encoded"):
        tp.encode_checkpoint(folder.parent / "dense", folder, lossless=True)


@pytest.mark.parametrize(("file", "content", "message"), [
    ("config.json", b'{"num_hidden_layers": 10000000}', "num_hidden_layers 10,000,000: at most"),
    ("generation_config.json", b"[1]", r"generation_config\.json cannot be read"),
    ("generation_config.json", b"\xff", r"generation_config\.json cannot be read"),
    ("config.json", b'{"architectures": ["Trainer"]}', "is a Trainer, which"),
])  # fmt: skip
def test_configs_that_ask_for_anything(
    folder: Path, file: str, content: bytes, message: str
) -> None:
    pytest.importorskip("transformers")
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 9}
    (folder / "config.json").write_text(json.dumps(config))
    if file == "config.json":
        content = json.dumps({**config, **json.loads(content)}).encode()
    (folder / file).write_bytes(content)
    with pytest.raises(tp.TensorPressError, match=message):
        tp.load_checkpoint(folder)
