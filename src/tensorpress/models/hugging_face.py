"""Transformers models, from a folder or the hub."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tensorpress.errors import (
    DataNotFoundError,
    InvalidArgumentError,
    ModelMismatchError,
    first_line,
)
from tensorpress.models.optional_imports import build_module, require
from tensorpress.models.torchvision import mend_torchvision
from tensorpress.models.weights import PICKLED, refuse_pickle
from tensorpress.utils.formatting import format_names
from tensorpress.utils.paths import did_you_mean

_SECONDS = 5.0  # to wait for the hub's first answer
_MOST_LAYERS = 10_000  # limit for untrusted configs

logger = logging.getLogger("tensorpress.models")


def transformers_library() -> Any:
    """Import and return transformers.

    Raises
    ------
    TensorPressError
        If it is not installed or cannot be imported.
    """
    mend_torchvision()
    return require("transformers", "a model of Hugging Face")


def build_hugging_face(
    place: str, options: Mapping[str, Any], *, empty: bool, new_head: bool = False
) -> nn.Module:
    """Build the Transformers model of a folder or an entry of the hub.

    Its class is the first of the ``architectures`` in the config, or else ``AutoModel``. If a
    folder has no weights, the model is freshly initialized, with a warning in the log.

    Parameters
    ----------
    place : str
        A folder with a ``config.json``, or a hub id. Code in the folder is never run, and pickled
        weights are never read.
    options : mapping
        Changes to the config.
    empty : bool
        Whether to build the model from the config alone, without weights.
    new_head : bool
        Whether to initialize layers whose stored weights have another shape, such as a head for
        other classes.

    Raises
    ------
    TensorPressError
        If transformers is not installed, there is no such model, or weights are missing.
    """
    transformers = transformers_library()
    config = _load_config(transformers, place, options)
    kind, name = _model_class(transformers, place, config)
    if not empty and _has_weights(Path(place)):
        return _load_pretrained(kind, place, config, new_head)
    if not empty:
        logger.warning("%s has no weights: the model is freshly initialized from its config", place)
    build = kind.from_config if name == "AutoModel" else kind._from_config
    return build_module(f"hf:{place}", build, {"config": config})


def _load_config(transformers: Any, place: str, options: Mapping[str, Any]) -> Any:
    folder = Path(place)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise DataNotFoundError(f"{place} has no config.json, expected a Hugging Face model")
    if not folder.is_dir() and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", place):
        near = did_you_mean(folder)
        raise DataNotFoundError(f"{place} is neither a folder nor a valid hub id{near}")
    if not folder.is_dir():
        _ask_hub(place)
    try:
        config, unused = transformers.AutoConfig.from_pretrained(
            place, trust_remote_code=False, return_unused_kwargs=True, **options
        )
    except Exception as error:  # of several libraries
        raise DataNotFoundError(
            f"hf:{place} is neither a folder with a config.json nor a readable model on the hub: "
            f"{first_line(error)}"
        ) from error
    if unused:
        raise InvalidArgumentError(
            f"the config of hf:{place} has no {', '.join(map(repr, sorted(unused)))}"
        )
    for key, count in config.to_dict().items():
        if "layers" in key and isinstance(count, int) and count > _MOST_LAYERS:
            raise InvalidArgumentError(
                f"the config of hf:{place} has {key} {count:,}: at most {_MOST_LAYERS:,} are built"
            )
    return config


def _ask_hub(place: str) -> None:
    """Ask the hub for a model that is not in its cache, without the retries of its libraries.

    Raises
    ------
    DataNotFoundError
        If the hub cannot be reached.
    """
    hub = require("huggingface_hub", "a model of Hugging Face")
    if isinstance(hub.try_to_load_from_cache(place, "config.json"), str):
        return
    try:
        hub.get_session().head(hub.hf_hub_url(place, "config.json"), timeout=_SECONDS)
    except Exception as error:  # of the HTTP library
        raise DataNotFoundError(
            f"hf:{place} is not a local folder, and the hub cannot be reached: {first_line(error)}"
            f"{did_you_mean(place)}"
        ) from error


def _model_class(transformers: Any, place: str, config: Any) -> tuple[Any, str]:
    """Return the model class of a config and its name; any class but a model is an error."""
    names = config.architectures or ["AutoModel"]
    name = names[0] if isinstance(names, list) else names
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not is_model and name != "AutoModel":
        raise InvalidArgumentError(
            f"hf:{place} is a {name}, which transformers {transformers.__version__} does not have"
        )
    return kind, name


def _has_weights(folder: Path) -> bool:
    """Return whether there are weights to read; this is assumed for hub ids."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return True
    pickled = [file for file in sorted(folder.iterdir()) if file.suffix in PICKLED]
    if pickled:
        raise refuse_pickle(pickled[0])
    return False


def _load_pretrained(kind: Any, place: str, config: Any, new_head: bool) -> nn.Module:
    options: dict[str, Any] = {"use_safetensors": True, "ignore_mismatched_sizes": new_head}
    try:
        model, info = kind.from_pretrained(
            place, config=config, output_loading_info=True, **options
        )
    except Exception as error:
        raise ModelMismatchError(
            f"the weights of hf:{place} cannot be read: {first_line(error)}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelMismatchError(
            f"hf:{place} has no weights for {format_names(missing)}, which "
            f"{type(model).__name__} needs"
        )
    if info["unexpected_keys"]:
        unused = format_names(sorted(info["unexpected_keys"]))
        logger.warning("%s has weights that %s does not use: %s", place, kind.__name__, unused)
    assert isinstance(model, nn.Module)
    return model
