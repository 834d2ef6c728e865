"""Encoding and decoding of a checkpoint one tensor at a time, without loading the model."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

from torch import Tensor

from tensorpress.checkpoints import save
from tensorpress.checkpoints.encoded_files import ENCODED, TENSORS, EncodedFiles, write_encoded
from tensorpress.checkpoints.other_files import copy_others
from tensorpress.checkpoints.safetensors_reader import WEIGHTS, TensorFiles
from tensorpress.checkpoints.safetensors_writer import open_shard_writer, write_index
from tensorpress.codec.state_dict import save_tensors
from tensorpress.errors import CorruptFileError, InvalidArgumentError
from tensorpress.hugging_face.pressed_config import PLAN
from tensorpress.quantize.common_step import CommonStep, find_common_step
from tensorpress.utils.atomic_files import make_folder, real_path, remove_leftovers
from tensorpress.utils.executors import open_executor
from tensorpress.utils.jobs import JobFolder
from tensorpress.utils.paths import exists, is_file

JOBS = ".encode"
"""The folder inside the output from which an interrupted call continues."""


def encode_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    bits: float | None = None,
    lossless: bool = False,
    processes: int = 1,
    executor: Executor | None = None,
) -> int:
    """Encode the tensors of a checkpoint, which may be larger than memory, one at a time.

    Every tensor becomes a separate ``.tpz`` file, so that each can be decoded alone. With `bits`,
    all weights are rounded with the same step, which is found from a sample of their values;
    vectors become float16. After an interruption, the same call continues with the remaining
    tensors and writes the same files.

    Parameters
    ----------
    source : path
        A folder in Hugging Face's layout: safetensors, in one file or in shards with an index.
    out : path
        A new folder, an empty one, or the folder of an interrupted call. Files other than weights
        are copied to it.
    bits : float, optional
        Target size in bits per value, over all files, which is exceeded by at most 1 %.
    lossless : bool
        Whether to preserve all tensors bit for bit, instead of `bits`.
    processes : int
        Number of tensors that are encoded at a time, each by a process with one thread. A script
        that asks for several must start under ``if __name__ == "__main__":``.
    executor : Executor, optional
        Workers to use instead of processes; they must see both folders.

    Returns
    -------
    int
        Size of all encoded tensors, in bytes.

    Raises
    ------
    DataNotFoundError, CorruptFileError
        If files are missing, truncated or damaged.
    InvalidArgumentError
        If not exactly one of `bits` and `lossless` is passed, a tensor cannot be stored (the
        message names it), or `out` has other files.

    Examples
    --------
    >>> import tempfile, torch
    >>> from safetensors.torch import save_file
    >>> source, out = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    >>> save_file({"weight": torch.randn(300, 200)}, source / "model.safetensors")
    >>> encode_checkpoint(source, out, bits=4) < 30_000
    True
    >>> EncodedFiles(out).read("weight").shape
    torch.Size([300, 200])
    """
    if (bits is None) == (not lossless):
        raise InvalidArgumentError("pass either bits or lossless")
    if bits is not None and not 0 < bits < inf:
        raise InvalidArgumentError(f"bits must be positive, got {bits}")
    files, folder = TensorFiles(source), Path(out)
    _check_folder(files.folder, folder)
    make_folder(folder / TENSORS)
    remove_leftovers(folder)
    subject = {"source": files.fingerprint, "bits": bits, "lossless": lossless}
    step = None
    if bits is not None:
        searches = JobFolder(folder / JOBS / "step", subject)
        result = searches.run({"step": (files, bits)}, _find_step, title="finding the step")
        step = _read_step(result["step"], folder)
    jobs = JobFolder(folder / JOBS / TENSORS, subject)
    paths = {name: folder / TENSORS / f"{i:06d}.tpz" for i, name in enumerate(files.tensors)}
    work = {name: (files, name, str(paths[name]), step) for name in files.tensors}
    with open_executor(processes, executor) as workers:
        sizes = jobs.run(work, _encode_tensor, title="encoding", executor=workers)
    for name, path in paths.items():
        if not path.is_file() or path.stat().st_size != sizes[name]:
            raise CorruptFileError(
                f"{path} has changed since it was written: delete {folder} and encode again"
            )
    copy_others(files.folder, folder)
    if (files.folder / PLAN).is_file():  # of a pressed checkpoint
        shutil.copyfile(files.folder / PLAN, folder / PLAN)
    write_encoded(folder, files.tensors, {name: path.name for name, path in paths.items()})
    shutil.rmtree(folder / JOBS)
    return sum(sizes.values())


def decode_checkpoint(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Decode a folder to a checkpoint, tensor by tensor.

    Parameters
    ----------
    folder : path
        A folder written by `encode_checkpoint`.
    out : path
        A new or empty folder, for shards of the original names.

    Raises
    ------
    DataNotFoundError, CorruptFileError
        If files are missing or damaged.
    InvalidArgumentError
        If `out` has files or cannot be written.

    Examples
    --------
    >>> import tempfile, torch
    >>> from safetensors.torch import load_file, save_file
    >>> folder, weight = Path(tempfile.mkdtemp()), torch.randn(300, 200)
    >>> (folder / "dense").mkdir()
    >>> save_file({"weight": weight}, folder / "dense" / "model.safetensors")
    >>> size = encode_checkpoint(folder / "dense", folder / "small", lossless=True)
    >>> decode_checkpoint(folder / "small", folder / "back")
    >>> torch.equal(load_file(folder / "back" / "model.safetensors")["weight"], weight)
    True
    """
    files = EncodedFiles(folder)
    shards: dict[str, dict[str, Tensor]] = {}
    for name, stored in files.tensors.items():
        shards.setdefault(files.shards[name], {})[name] = stored.empty()
    with save.create_folder(Path(out)) as temporary:
        for file, tensors in shards.items():
            with open_shard_writer(temporary / file, tensors, finite=False) as shard:
                for name in tensors:
                    shard.write(name, files.read(name))
        if list(shards) != [WEIGHTS]:
            write_index(temporary, shards)
        copy_others(files.folder, temporary)
        (temporary / ENCODED).unlink()
        if (files.folder / PLAN).is_file():
            shutil.copyfile(files.folder / PLAN, temporary / PLAN)


def _check_folder(source: Path, out: Path) -> None:
    if real_path(out).is_relative_to(real_path(source)):
        raise InvalidArgumentError(f"{out} is inside {source}: choose another output folder")
    if exists(out) and not out.is_dir():
        raise InvalidArgumentError(f"{out} is not a folder")
    finished = not exists(out / JOBS)
    if finished and is_file(out / ENCODED):
        raise InvalidArgumentError(f"{out} is already encoded: choose a new or empty folder")
    if exists(out) and any(out.iterdir()) and finished:
        raise InvalidArgumentError(f"{out} has other files: choose a new or empty folder")


def _read_step(result: Any, folder: Path) -> CommonStep:
    try:
        return CommonStep(float(result["base"]), float(result["price"]))
    except (TypeError, ValueError, KeyError):
        raise CorruptFileError(
            f"{folder / JOBS} is damaged: delete {folder} and encode again"
        ) from None


def _find_step(files: TensorFiles, bits: float) -> dict[str, float]:
    """Return the common step of a checkpoint's weights as plain data."""

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in files.tensors:
            yield name, files.read(name)

    return asdict(find_common_step(tensors(), bits))


def _encode_tensor(files: TensorFiles, name: str, path: str, step: CommonStep | None) -> int:
    """Encode a tensor to a file, losslessly if there is no step, and return the file's size."""
    tensor = files.read(name)
    try:
        if step is None:
            return save_tensors({name: tensor}, path, None)
        return step.save(name, tensor, path)
    except InvalidArgumentError as error:
        source = files.folder / files.tensors[name].file
        raise InvalidArgumentError(f"{source}: {error}") from None
