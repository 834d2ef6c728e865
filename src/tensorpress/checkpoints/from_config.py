"""Models of transformers built from a folder's config.json, without memory for their weights."""

from contextlib import suppress
from pathlib import Path

from accelerate import init_empty_weights
from torch import nn

from tensorpress.errors import DataNotFoundError, TensorPressError
from tensorpress.models.hugging_face import build_hugging_face
from tensorpress.models.packages import require
from tensorpress.models.torchvision import torchvision_models

CONFIG = "config.json"
GENERATION = "generation_config.json"


def from_config(folder: Path) -> nn.Module:
    """Return the model that a ``config.json`` names: parameters on the meta device, buffers real.

    Buffers that no file holds, such as the frequencies of rotary embeddings, have their values.

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
    # Parameters that were put on the meta device one by one are tied no more.
    model.tie_weights()  # type: ignore[operator]
    if (folder / GENERATION).is_file():
        generation = require("transformers", "a model of Hugging Face").GenerationConfig
        model.generation_config = generation.from_pretrained(folder)
    return model
