"""Loading of a pressed model from its folder, and of Transformers models from a config."""

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
from tensorpress.errors import DataNotFoundError, ModelMismatchError, TensorPressError
from tensorpress.hugging_face.pressed_config import CONFIG, PLAN, read_plan
from tensorpress.models.hugging_face import build_hugging_face
from tensorpress.models.optional_imports import require
from tensorpress.models.torchvision import torchvision_models
from tensorpress.press.press import build_skeleton
from tensorpress.schemes.pressed_layer import check_read
from tensorpress.utils.formatting import format_names


def load_checkpoint(folder: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Load a model from a folder: a pressed one, or one that `encode_checkpoint` wrote.

    Tensors are read one by one into the pressed model; the dense one never takes memory.

    Parameters
    ----------
    folder : path
        The folder, with ``plan.json`` and the weights as safetensors, in one file or in shards;
        or an encoded one, whose tensors are decoded one by one.
    model : nn.Module, optional
        A dense model of the same architecture with any weights, unchanged; it may be on the meta
        device. A folder with the ``config.json`` of a model of transformers needs none.

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
        If model, plan and weights do not fit each other, naming the layer or the tensor.

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
    encoded = (Path(folder) / ENCODED).is_file()
    files = EncodedFiles(folder) if encoded else TensorFiles(folder)
    plan = read_plan(files.folder)
    if plan is None and not encoded:
        raise DataNotFoundError(f"{folder} has no {PLAN}: it is not, or not yet, a pressed model")
    dense = model_from_config(files.folder) if model is None else to_meta(model)
    pressed = dense if plan is None else build_skeleton(dense, plan)
    names = stored_names(pressed, files)
    check_fits(pressed, names, files)
    fill_parameters(pressed, names, files.read)
    for name, buffer in pressed.named_buffers():
        if buffer.is_meta:
            raise ModelMismatchError(
                f"{folder} does not hold the buffer {name!r}, which has no values in the model "
                "given: give one that is not on the meta device"
            )
    check_read(pressed, str(folder))
    return pressed.cpu().eval()


def stored_names(model: nn.Module, files: TensorFiles) -> dict[str, str]:
    """Return the stored name of every tensor of a model, by its first name in the model."""
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
        raise ModelMismatchError(f"{files.folder} has {format_names(unknown)}, the model has not")
    return stored


GENERATION = "generation_config.json"


def model_from_config(folder: Path) -> nn.Module:
    """Return the model of a ``config.json``, with its parameters on the meta device.

    Buffers, such as the frequencies of rotary embeddings, have values.

    Raises
    ------
    DataNotFoundError
        If there is no ``config.json``.
    TensorPressError
        If transformers is missing or does not have the model.
    """
    if not (folder / CONFIG).is_file():
        raise DataNotFoundError(
            f"{folder} has no {CONFIG} that names a model of transformers: give a dense model of "
            "the architecture as model="
        )
    with suppress(TensorPressError):  # transformers imports torchvision where it is installed
        torchvision_models()
    with init_empty_weights(include_buffers=False):
        model = build_hugging_face(str(folder), {}, empty=True)
    # Parameters that were moved to the meta device one by one are no longer tied.
    model.tie_weights()  # type: ignore[operator]
    if (folder / GENERATION).is_file():
        generation = require("transformers", "a model of Hugging Face").GenerationConfig
        model.generation_config = generation.from_pretrained(folder)
    return model
