"""Encoding of folders tensor by tensor: budgets, bits, interruptions, processes, errors."""

import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import contents, llama, save_sharded
from torch import Tensor, nn

from tensorpress.checkpoints import encode_checkpoint as module
from tensorpress.checkpoints import load_checkpoint, press_checkpoint
from tensorpress.checkpoints.encode_checkpoint import decode_checkpoint, encode_checkpoint
from tensorpress.checkpoints.encoded_files import EncodedFiles
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.checkpoints.safetensors_writer import write_index
from tensorpress.errors import CorruptFileError, DataNotFoundError, InvalidArgumentError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in two shards, with a config."""
    folder = tmp_path_factory.mktemp("source")
    torch.manual_seed(0)
    tensors = {f"{i}.weight": 0.1 * (i + 1) * torch.randn(40, 30) for i in range(4)}
    tensors |= {f"{i}.bias": torch.randn(40) for i in range(4)}
    first = {name: x for name, x in tensors.items() if name < "2"}
    second = {name: x.bfloat16() for name, x in tensors.items() if name > "2"}
    save_file(first, folder / "model-00001-of-00002.safetensors")
    save_file(second, folder / "model-00002-of-00002.safetensors")
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    write_index(folder, dict(zip(files, (first, second), strict=True)))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def dense(folder: Path) -> dict[str, Tensor]:
    return {n: x for path in folder.glob("*.safetensors") for n, x in load_file(path).items()}


@pytest.mark.parametrize("bits", [3, 6])
def test_bits_are_those_of_all_files(source: Path, tmp_path: Path, bits: float) -> None:
    size = encode_checkpoint(source, tmp_path / "out", bits=bits)
    tensors = dense(source)
    values = sum(tensor.numel() for tensor in tensors.values())
    assert size == sum(path.stat().st_size for path in (tmp_path / "out/tensors").iterdir())
    assert 0.85 * bits < 8 * size / values < 1.01 * bits
    files = EncodedFiles(tmp_path / "out")
    errors = {n: float((files.read(n) - x).square().mean()) for n, x in tensors.items()}
    steps = [12 * errors[f"{i}.weight"] for i in range(4)]
    assert max(steps) < 1.4 * min(steps)  # one step for all weights
    assert max(errors[f"{i}.bias"] for i in range(4)) < 1e-4


def test_lossless_folders_keep_every_bit(source: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tensors = dense(source) | {"nan": torch.tensor([torch.nan, -0.0]), "count": torch.arange(3)}
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    encode_checkpoint(tmp_path / "in", tmp_path / "out", lossless=True)
    decode_checkpoint(tmp_path / "out", tmp_path / "back")
    assert contents(tmp_path / "back").keys() == {"model.safetensors"}
    back = load_file(tmp_path / "back" / "model.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(back[name].view(torch.uint8), tensor.view(torch.uint8))


def test_a_decoded_folder_has_the_shards_and_files_of_the_first(
    source: Path, tmp_path: Path
) -> None:
    encode_checkpoint(source, tmp_path / "out", bits=8)
    decode_checkpoint(tmp_path / "out", tmp_path / "back")
    assert {path.name for path in (tmp_path / "back").iterdir()} == {
        path.name for path in source.iterdir()
    }
    before, after = TensorFiles(source), TensorFiles(tmp_path / "back")
    assert before.tensors == after.tensors
    for name in before.tensors:
        torch.testing.assert_close(after.read(name), before.read(name), rtol=0.1, atol=0.02)


def test_a_model_is_loaded_tensor_by_tensor(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(80, 50), nn.Linear(50, 10))
    (tmp_path / "in").mkdir()
    save_file(net.state_dict(), tmp_path / "in" / "model.safetensors")
    encode_checkpoint(tmp_path / "in", tmp_path / "out", lossless=True)
    other = nn.Sequential(nn.Linear(80, 50), nn.Linear(50, 10)).to("meta")
    loaded = load_checkpoint(tmp_path / "out", other)
    assert all(torch.equal(x, net.state_dict()[n]) for n, x in loaded.state_dict().items())


def test_a_pressed_model_of_transformers_is_loaded(tmp_path: Path) -> None:
    source = save_sharded(llama(tied=True), tmp_path / "dense")
    press_checkpoint(source, tmp_path / "pressed", scheme="channel_svd", ranks=0.3)
    encode_checkpoint(tmp_path / "pressed", tmp_path / "out", lossless=True)
    loaded, expected = load_checkpoint(tmp_path / "out"), load_checkpoint(tmp_path / "pressed")
    tokens = torch.arange(12).reshape(1, -1)
    assert torch.equal(loaded(tokens).logits, expected(tokens).logits)


def _work(source: Path, out: Path, tensors: int) -> None:
    """Encode, and die after so many tensors."""
    encode, left = module._encode_tensor, tensors

    def counted(*arguments: object) -> int:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return encode(*arguments)  # type: ignore[arg-type]

    module._encode_tensor = counted  # type: ignore[assignment]
    encode_checkpoint(source, out, bits=4)


def test_killed_in_the_middle_it_goes_on_to_the_same_files(source: Path, tmp_path: Path) -> None:
    encode_checkpoint(source, tmp_path / "expected", bits=4)
    process = multiprocessing.get_context("fork").Process(
        target=_work, args=(source, tmp_path / "out", 3)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/tensors").iterdir()}
    assert len(done) == 3
    with pytest.raises(DataNotFoundError, match="encode completed"):
        EncodedFiles(tmp_path / "out")
    with pytest.raises(InvalidArgumentError, match="'bits' is 4"):
        encode_checkpoint(source, tmp_path / "out", bits=5)
    encode_checkpoint(source, tmp_path / "out", bits=4)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())


def test_executors_make_the_same_files(source: Path, tmp_path: Path) -> None:
    encode_checkpoint(source, tmp_path / "one", bits=4)
    with ThreadPoolExecutor(2) as executor:
        encode_checkpoint(source, tmp_path / "two", bits=4, executor=executor)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_what_cannot_be_encoded_is_refused(source: Path, tmp_path: Path) -> None:
    for options in ({}, {"bits": 3, "lossless": True}):
        with pytest.raises(InvalidArgumentError, match="bits or lossless"):
            encode_checkpoint(source, tmp_path / "out", **options)
    with pytest.raises(InvalidArgumentError, match="must be positive"):
        encode_checkpoint(source, tmp_path / "out", bits=0)
    with pytest.raises(InvalidArgumentError, match="too few"):
        encode_checkpoint(source, tmp_path / "few", bits=0.1)
    with pytest.raises(InvalidArgumentError, match="is in"):
        encode_checkpoint(source, source / "out", bits=3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(InvalidArgumentError, match="has other files"):
        encode_checkpoint(source, tmp_path / "full", bits=3)
    save_file({"bad": torch.full((3, 3), torch.nan)}, tmp_path / "full" / "model.safetensors")
    with pytest.raises(InvalidArgumentError, match="'bad'"):
        encode_checkpoint(tmp_path / "full", tmp_path / "out", bits=9)


def test_damaged_folders_are_named(source: Path, tmp_path: Path) -> None:
    encode_checkpoint(source, tmp_path / "out", bits=4)
    files = EncodedFiles(tmp_path / "out")
    name = next(iter(files.tensors))
    path = tmp_path / "out" / files.tensors[name].file
    other = tmp_path / "out" / files.tensors["3.weight"].file
    path.write_bytes(other.read_bytes())
    with pytest.raises(CorruptFileError, match="with the shape and dtype that"):
        files.read(name)
    path.write_bytes(other.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match=path.name):
        decode_checkpoint(tmp_path / "out", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    for text in ("{", "{}", '{"tensors": {"a": {"file": "../b", "shape": [], "dtype": "F32"}}}'):
        (tmp_path / "out" / "encoded.json").write_text(text)
        with pytest.raises(CorruptFileError, match=r"encoded\.json"):
            EncodedFiles(tmp_path / "out")
