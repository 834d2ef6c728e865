"""Shards that were finished, and are no longer what was written, when pressing goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_checkpoints import contents, interrupt_after_shards, llama, save_sharded

from tensorpress.checkpoints import press_checkpoint
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.errors import CorruptFileError

HOW = {"scheme": "channel_svd", "ranks": 0.3}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sharded(llama(), tmp_path_factory.mktemp("source") / "dense")


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    press_checkpoint(source, out, **HOW)
    return contents(out)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [cut, cut_header, lengthen, empty, remove, replace_by_folder])
@pytest.mark.parametrize("finished", ["one shard", "all shards"])
def test_a_damaged_shard_is_named_or_pressed_again(
    source: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    damage: Callable[[Path], None],
    finished: str,
) -> None:
    out = tmp_path / "out"
    read = TensorFiles.read

    def stopped(files: TensorFiles, name: str) -> object:
        if list(out.glob("model*.safetensors")):
            raise KeyboardInterrupt
        return read(files, name)

    if finished == "one shard":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TensorFiles, "read", stopped)
            with pytest.raises(KeyboardInterrupt):
                press_checkpoint(source, out, **HOW)
    else:
        interrupt_after_shards(source, out, **HOW)
    shard = min(out.glob("model*.safetensors"))
    damage(shard)
    message = None
    try:
        press_checkpoint(source, out, **HOW)
    except CorruptFileError as error:
        message = str(error)
    assert contents(out) == expected if message is None else str(shard) in message
