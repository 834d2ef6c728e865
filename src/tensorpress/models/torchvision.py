"""Models of torchvision."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import nn

from tensorpress.errors import InvalidArgumentError, TensorPressError
from tensorpress.models.names import unknown_choice
from tensorpress.models.optional_imports import build_module, require

_SIDE = 224
_FRAMES = 16


def torchvision_models() -> Any:
    """Return the module ``torchvision.models``, even if its compiled part cannot be loaded.

    On import, torchvision registers two operators of its compiled part with torch. A CUDA wheel
    cannot load that part next to a torch without CUDA, and the import fails, although no classifier
    needs these operators. In that case this function declares them.

    Raises
    ------
    TensorPressError
        If torchvision is not installed or cannot be imported for another reason.

    Examples
    --------
    >>> "resnet18" in torchvision_models().list_models()
    True
    """
    try:
        return require("torchvision.models", "a model of torchvision")
    except TensorPressError as error:
        if "torchvision::nms" not in str(error):
            raise
        _declare_operators()
    return require("torchvision.models", "a model of torchvision")


def mend_torchvision() -> None:
    """Make torchvision, if installed, importable for timm and transformers."""
    with suppress(TensorPressError):
        torchvision_models()


@cache
def _declare_operators() -> torch.library.Library:
    """Declare the operators, and return their library, which must stay alive in the cache."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    return library


def build_torchvision(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Return a freshly initialized model of torchvision.

    Raises
    ------
    TensorPressError
        If the name is unknown, the options are wrong, or torchvision is not installed.
    """
    models = torchvision_models()
    known = models.list_models()
    if name not in known:
        raise unknown_choice("torchvision", "model", name, known)
    for key in options:
        if key.startswith("weights"):
            raise InvalidArgumentError(
                f"torchvision:{name} does not take {key}, which torchvision reads with pickle: "
                "load a safetensors file"
            )
    # Otherwise torchvision downloads the backbones of detectors and segmenters.
    backbone = {"weights_backbone": None} if _has_backbone(models, name) else {}
    return build_module(
        f"torchvision:{name}", models.get_model_builder(name), {**options, **backbone}
    )


def torchvision_shape(name: str) -> tuple[int, ...]:
    """Return the shape (1, channels, …) of the inputs for a model's published weights.

    Examples
    --------
    >>> torchvision_shape("inception_v3"), torchvision_shape("r3d_18")
    ((1, 3, 299, 299), (1, 3, 16, 112, 112))
    """
    models = torchvision_models()
    published = models.get_model_weights(name)
    crop = getattr(next(iter(published)).transforms(), "crop_size", [_SIDE])
    sides = (*crop, *crop)[:2]
    frames = (_FRAMES,) if name in models.list_models(module=models.video) else ()
    return (1, 3, *frames, *sides)


def _has_backbone(models: Any, name: str) -> bool:
    return name in models.list_models(module=models.detection) or name in models.list_models(
        module=models.segmentation
    )
