"""Loading of pressed and encoded folders, and of Transformers models from a config."""

import os
from contextlib import suppress
from pathlib import Path

from accelerate import init_empty_weights
from torch import nn

from tensorpress.checkpoints.encoded_files import ENCODED, EncodedFiles
from tensorpress.checkpoints.meta_model import (
    check_fits,
    fill_parameters,
    tied_names,
    to_meta,
)
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.errors import (
    CorruptFileError,
    DataNotFoundError,
    ModelMismatchError,
    TensorPressError,
    first_line,
)
from tensorpress.hugging_face.pressed_config import CONFIG, PLAN, read_plan
from tensorpress.models.hugging_face import build_hugging_face
from tensorpress.models.optional_imports import require
from tensorpress.models.torchvision import torchvision_models
from tensorpress.press.press import build_skeleton
from tensorpress.schemes.pressed_layer import check_read
from tensorpress.utils.formatting import format_names
from tensorpress.utils.paths import is_file


def load_checkpoint(folder: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Load a pressed model from its folder, or any model from an encoded folder.

    Tensors are read one by one into the pressed model. The dense model never takes memory.

    Parameters
    ----------
    folder : path
        A folder with ``plan.json`` and the weights as safetensors, in one file or in shards, or a
        folder that `encode_checkpoint` wrote.
    model : nn.Module, optional
        A dense model of the same architecture, with any weights or on the meta device; it does not
        change. Not needed for a folder with the ``config.json`` of a Transformers model.

    Returns
    -------
    nn.Module
        The model on the CPU, in eval mode, with every tensor in the stored dtype.

    Raises
    ------
    DataNotFoundError
        If the folder or a file is missing.
    CorruptFileError
        If a file is truncated or damaged.
    ModelMismatchError
        If model, plan and weights do not fit together; the message names the layer or tensor.

    Examples
    --------
    >>> import tempfile
    >>> from tensorpress.checkpoints import save_checkpoint
    >>> from tensorpress.planning import plan
    >>> from tensorpress.press.press import press
    >>> net = nn.Sequential(nn.Linear(80, 50))
    >>> folder = tempfile.mkdtemp()
    >>> save_checkpoint(press(net, plan(net, scheme="channel_svd", ranks=4)), folder)
    >>> load_checkpoint(folder, net)[0].ranks
    (4,)
    """
    encoded = is_file(Path(folder, ENCODED))
    files = EncodedFiles(folder) if encoded else TensorFiles(folder)
    plan = read_plan(files.folder)
    if plan is None and not encoded:
        raise DataNotFoundError(
            f"{folder} has no {PLAN}: expected a folder that tensorpress press completed"
        )
    dense = model_from_config(files.folder) if model is None else to_meta(model)
    pressed = dense if plan is None else build_skeleton(dense, plan)
    names = stored_names(pressed, files)
    check_fits(pressed, names, files)
    fill_parameters(pressed, names, files.read)
    for name, buffer in pressed.named_buffers():
        if buffer.is_meta:
            raise ModelMismatchError(
                f"{folder} has no buffer {name!r}, and on the meta device the model has no values "
                "for it: pass a model on the CPU"
            )
    check_read(pressed, str(folder))
    return pressed.cpu().eval()


def stored_names(model: nn.Module, files: TensorFiles) -> dict[str, str]:
    """Return the name in the files of every tensor of a model, by its first name in the model."""
    stored, missing, known = {}, [], set[str]()
    for first, names in tied_names(model).items():
        known.update(names)
        name = next((name for name in names if name in files.tensors), None)
        if name is None:
            missing.append(first)
        else:
            stored[first] = name
    unknown = [name for name in files.tensors if name not in known]
    if missing:
        raise ModelMismatchError(
            f"{files.folder} has no {format_names(missing)}, which the model needs"
        )
    if unknown:
        raise ModelMismatchError(
            f"{files.folder} has {format_names(unknown)}, but the model does not"
        )
    return stored


GENERATION = "generation_config.json"


def model_from_config(folder: Path) -> nn.Module:
    """Build the model of a ``config.json``, with its parameters on the meta device.

    Buffers have values, such as the frequencies of rotary embeddings.

    Raises
    ------
    DataNotFoundError
        If there is no ``config.json``.
    CorruptFileError
        If its ``generation_config.json`` is damaged.
    TensorPressError
        If transformers is not installed or lacks the model.
    """
    if not (folder / CONFIG).is_file():
        raise DataNotFoundError(
            f"{folder} has no {CONFIG} of a Transformers model: pass a dense model of the same "
            "architecture as model="
        )
    with suppress(TensorPressError):  # transformers imports torchvision if it is installed
        torchvision_models()
    with init_empty_weights(include_buffers=False):
        model = build_hugging_face(str(folder), {}, empty=True)
    # Parameters that were moved to the meta device one by one are no longer tied.
    model.tie_weights()  # type: ignore[operator]
    if (folder / GENERATION).is_file():
        generation = require("transformers", "a model of Hugging Face").GenerationConfig
        try:
            model.generation_config = generation.from_pretrained(folder)
        except Exception as error:  # transformers raises errors of many classes
            raise CorruptFileError(
                f"{folder / GENERATION} cannot be read: {first_line(error)}"
            ) from error
    return model
