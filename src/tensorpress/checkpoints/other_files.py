"""The files of a checkpoint other than weights."""

import shutil
from pathlib import Path

from tensorpress.hugging_face.pressed_config import PLAN
from tensorpress.utils.atomic_files import make_folder, replace_file

NOT_COPIED = frozenset(
    (
        *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl"),
        *(".h5", ".msgpack", ".onnx", ".gguf", ".tpz"),
    )
)
"""Suffixes of weight files."""


def copy_others(source: Path, out: Path) -> None:
    """Copy files such as the config and the tokenizer, but no weights and no hidden files."""
    for path in source.rglob("*"):
        name = path.relative_to(source)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or not path.is_file() or NOT_COPIED & {*path.suffixes} or name == Path(PLAN):
            continue
        make_folder(out / name.parent)
        with replace_file(out / name) as temporary:
            shutil.copyfile(path, temporary)
