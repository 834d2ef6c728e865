"""Encoding of a checkpoint tensor by tensor, and decoding, without loading the model."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from tensorpress.checkpoints import save
from tensorpress.checkpoints.encoded_files import ENCODED, TENSORS, EncodedFiles, write_encoded
from tensorpress.checkpoints.other_files import copy_others
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.checkpoints.safetensors_writer import open_shard_writer, write_index
from tensorpress.codec.state_dict import save_tensors
from tensorpress.errors import CorruptFileError, InvalidArgumentError
from tensorpress.hugging_face.pressed_config import PLAN
from tensorpress.quantize.common_step import CommonStep, find_common_step
from tensorpress.utils.atomic_files import make_folder, remove_leftovers
from tensorpress.utils.executors import open_executor
from tensorpress.utils.jobs import JobFolder

JOBS = ".encode"
"""The folder, within the output, of what an interrupted call goes on from."""


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

    Every tensor becomes a ``.tpz`` file of its own, so that each can be decoded alone. With `bits`,
    all weights are rounded at one step, which is found by a sample of their values; vectors become
    float16. After an interruption, the same call goes on with the tensors that are not done, and
    the files are the same.

    Parameters
    ----------
    source : path
        A folder in Hugging Face's layout: safetensors, in one file or in shards with an index.
    out : path
        A new folder, an empty one, or the folder of an interrupted call. Files other than weights
        are copied to it.
    bits : float, optional
        About the bits of all files by all values; they take at most 1 % more.
    lossless : bool
        Whether every bit of all tensors is kept, in place of `bits`.
    processes : int
        Number of tensors that are encoded at a time, each by a process with one thread. A script
        with several must start its work under ``if __name__ == "__main__":``.
    executor : Executor, optional
        Workers in place of processes, who see both folders.

    Returns
    -------
    int
        The bytes of all encoded tensors.

    Raises
    ------
    DataNotFoundError, CorruptFileError
        For files that are missing, truncated or damaged.
    InvalidArgumentError
        If there is not one of `bits` and `lossless`, a tensor cannot be stored (the message names
        it), or `out` has other files.

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
        raise InvalidArgumentError("give one of bits and lossless")
    if bits is not None and not bits > 0:
        raise InvalidArgumentError(f"bits must be positive, not {bits}")
    files, folder = TensorFiles(source), Path(out)
    _check_folder(files.folder, folder)
    make_folder(folder / TENSORS)
    remove_leftovers(folder)
    subject = {"source": files.fingerprint, "bits": bits, "lossless": lossless}
    step = None
    if bits is not None:
        searches = JobFolder(folder / JOBS / "step", subject)
        result = searches.run({"step": (files, bits)}, _find_step, title="finding the step")
        step = CommonStep(**result["step"])
    jobs = JobFolder(folder / JOBS / TENSORS, subject)
    paths = {name: folder / TENSORS / f"{i:06d}.tpz" for i, name in enumerate(files.tensors)}
    work = {name: (files, name, str(paths[name]), step) for name in files.tensors}
    with open_executor(processes, executor) as workers:
        sizes = jobs.run(work, _encode_tensor, title="encoding", executor=workers)
    for name, path in paths.items():
        if not path.is_file() or path.stat().st_size != sizes[name]:
            raise CorruptFileError(
                f"{path} is not what was written there: delete {folder} and encode again"
            )
    copy_others(files.folder, folder)
    if (files.folder / PLAN).is_file():  # of a pressed checkpoint
        shutil.copyfile(files.folder / PLAN, folder / PLAN)
    write_encoded(folder, files.tensors, {name: path.name for name, path in paths.items()})
    shutil.rmtree(folder / JOBS)
    return sum(sizes.values())


def decode_checkpoint(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Write the checkpoint that an encoded folder stands for, tensor by tensor.

    Parameters
    ----------
    folder : path
        A folder that `encode_checkpoint` wrote.
    out : path
        A new or an empty folder, which gets shards of the same names.

    Raises
    ------
    DataNotFoundError, CorruptFileError
        For files that are missing or damaged.
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
        if len(shards) > 1:
            write_index(temporary, shards)
        copy_others(files.folder, temporary)
        (temporary / ENCODED).unlink()
        if (files.folder / PLAN).is_file():
            shutil.copyfile(files.folder / PLAN, temporary / PLAN)


def _check_folder(source: Path, out: Path) -> None:
    if out.resolve().is_relative_to(source.resolve()):
        raise InvalidArgumentError(f"{out} is in {source}: give another folder")
    if out.exists() and not out.is_dir():
        raise InvalidArgumentError(f"{out} is not a folder")
    if out.exists() and any(out.iterdir()) and not (out / JOBS).exists():
        raise InvalidArgumentError(f"{out} has other files: give a new or an empty folder")


def _find_step(files: TensorFiles, bits: float) -> dict[str, float]:
    """Return the common step of a checkpoint's weights as plain data."""

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in files.tensors:
            yield name, files.read(name)

    return asdict(find_common_step(tensors(), bits))


def _encode_tensor(files: TensorFiles, name: str, path: str, step: CommonStep | None) -> int:
    """Encode a tensor to a file, every bit of it without a step, and return the file's bytes."""
    tensor = files.read(name)
    try:
        if step is None:
            return save_tensors({name: tensor}, path, None)
        return step.save(name, tensor, path)
    except InvalidArgumentError as error:
        source = files.folder / files.tensors[name].file
        raise InvalidArgumentError(f"{source}: {error}") from None
