"""Models of timm."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from tensorpress.models.names import unknown_choice
from tensorpress.models.optional_imports import build_module, require
from tensorpress.models.torchvision import mend_torchvision


def build_timm(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Return a freshly initialized model of timm.

    Raises
    ------
    TensorPressError
        If the name is unknown, the options are wrong, or timm is not installed.
    """
    mend_torchvision()
    timm = require("timm", "a model of timm")
    if not timm.is_model(name.partition(".")[0]):
        raise unknown_choice("timm", "model", name, timm.list_models())
    return build_module(f"timm:{name}", lambda **more: timm.create_model(name, **more), options)
