"""Models of transformers, from a folder or the hub."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tensorpress.errors import DataNotFoundError, InvalidArgumentError, ModelMismatchError
from tensorpress.models.optional_imports import build_module, require
from tensorpress.models.torchvision import mend_torchvision
from tensorpress.models.weights import PICKLED, refuse_pickle

logger = logging.getLogger("tensorpress.models")

_LISTED = 5


def transformers_library() -> Any:
    """Return the package transformers, whose models import torchvision where it is installed.

    Raises
    ------
    TensorPressError
        If it is not installed or cannot be imported.
    """
    mend_torchvision()
    return require("transformers", "a model of Hugging Face")


def build_hugging_face(place: str, options: Mapping[str, Any], *, empty: bool) -> nn.Module:
    """Return a model of transformers as its folder or its entry on the hub describes it.

    The class is the first of the config's ``architectures``, else ``AutoModel``. A folder without
    weights gives a freshly initialized model, and that is logged.

    Parameters
    ----------
    place : str
        A folder with a ``config.json``, or an id of the hub. Code that comes with a model is never
        run, and pickled weights are never read.
    options : mapping
        Entries of the config to change.
    empty : bool
        Build from the config only.

    Raises
    ------
    TensorPressError
        If transformers is missing, there is no such model, or the weights do not fill it.
    """
    transformers = transformers_library()
    config = _config(transformers, place, options)
    named = (config.architectures or ["AutoModel"])[0]
    kind = getattr(transformers, named, None)
    if kind is None:
        raise InvalidArgumentError(
            f"hf:{place} is a {named}, which transformers {transformers.__version__} does not have"
        )
    if not empty and _has_weights(Path(place)):
        return _filled(kind, place, config)
    if not empty:
        logger.warning("%s holds no weights: the model is built from its config", place)
    fresh = kind.from_config if named == "AutoModel" else kind._from_config
    return build_module(f"hf:{place}", fresh, {"config": config})


def _config(transformers: Any, place: str, options: Mapping[str, Any]) -> Any:
    folder = Path(place)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise DataNotFoundError(f"{place} has no config.json, so it is no model of Hugging Face")
    if not folder.is_dir() and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", place):
        raise DataNotFoundError(f"no folder {place}, and no id of the hub looks like that")
    try:
        config, unused = transformers.AutoConfig.from_pretrained(
            place, trust_remote_code=False, return_unused_kwargs=True, **options
        )
    except Exception as error:  # of half a dozen libraries below
        raise DataNotFoundError(
            f"hf:{place} is neither a folder with a config.json nor a model that can be read from "
            f"the hub: {_first_line(error)}"
        ) from error
    if unused:
        raise InvalidArgumentError(
            f"the config of hf:{place} has no {', '.join(map(repr, sorted(unused)))}"
        )
    return config


def _has_weights(folder: Path) -> bool:
    """Return whether there are weights to read; on the hub there are."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return True
    pickled = [file for file in sorted(folder.iterdir()) if file.suffix in PICKLED]
    if pickled:
        raise refuse_pickle(pickled[0])
    return False


def _filled(kind: Any, place: str, config: Any) -> nn.Module:
    try:
        model, found = kind.from_pretrained(
            place, config=config, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        raise ModelMismatchError(
            f"the weights of hf:{place} cannot be read: {_first_line(error)}"
        ) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelMismatchError(
            f"hf:{place} has no weights for {_listed(missing)}, which {type(model).__name__} needs"
        )
    if found["unexpected_keys"]:
        unused = _listed(sorted(found["unexpected_keys"]))
        logger.warning("%s holds weights that %s has no use for: %s", place, kind.__name__, unused)
    assert isinstance(model, nn.Module)
    return model


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
