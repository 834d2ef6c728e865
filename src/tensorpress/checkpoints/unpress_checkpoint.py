"""Writing of a pressed folder as a dense checkpoint."""

import os
from pathlib import Path

from torch import nn

from tensorpress.checkpoints import save
from tensorpress.checkpoints.other_files import copy_others
from tensorpress.checkpoints.pressed_files import PressedFiles
from tensorpress.checkpoints.safetensors_writer import (
    divide_into_shards,
    open_shard_writer,
    write_index,
)
from tensorpress.hugging_face.pressed_config import unmark_config


def unpress_checkpoint(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
) -> None:
    """Write a pressed folder as a dense checkpoint, layer by layer.

    Memory holds one layer at a time. The result has the size and format of the original checkpoint,
    so that Transformers, vLLM and the converter of llama.cpp load it.

    Parameters
    ----------
    folder : path
        A folder written by `press_checkpoint`, `save_checkpoint` or ``save_pretrained``.
    out : path
        A new or empty folder. Files other than weights, such as a tokenizer, are copied to it.
    model : nn.Module, optional
        A dense model of the same architecture, which may be on the meta device; not needed for a
        Transformers model.

    Raises
    ------
    DataNotFoundError, CorruptFileError
        If files are missing, truncated or damaged.
    ModelMismatchError
        If the folder does not fit the model.
    InvalidArgumentError
        If ``out`` has files or cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from safetensors.torch import load_file
    >>> from tensorpress.checkpoints import save_checkpoint
    >>> from tensorpress.planning import plan
    >>> from tensorpress.press.press import press
    >>> net, folder = nn.Sequential(nn.Linear(80, 50)), Path(tempfile.mkdtemp())
    >>> save_checkpoint(press(net, plan(net, scheme="channel_svd", ranks=4)), folder / "pressed")
    >>> unpress_checkpoint(folder / "pressed", folder / "dense", model=net)
    >>> load_file(folder / "dense" / "model.safetensors")["0.weight"].shape
    torch.Size([50, 80])
    """
    source = PressedFiles(folder, model)
    shards = divide_into_shards(source.dense_tensors(), save.SHARD_BYTES)
    with save.create_folder(Path(out)) as temporary:
        for file, tensors in shards.items():
            with open_shard_writer(temporary / file, tensors) as shard:
                for name in tensors:
                    shard.write(name, source.read_dense(name))
        if len(shards) > 1:
            write_index(temporary, shards)
        copy_others(source.files.folder, temporary)
        unmark_config(temporary)
