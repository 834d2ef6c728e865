"""Which tensor of a model each tensor of a checkpoint is."""

import re

from torch import nn

from tensorpress.checkpoints.states import check_fits, listed, tied_names
from tensorpress.checkpoints.tensor_files import TensorFiles
from tensorpress.errors import ModelMismatchError


def model_names(model: nn.Module, files: TensorFiles) -> dict[str, str]:
    """Return the name in a model's state of every tensor of a checkpoint that the model uses.

    Of tied tensors it is the first name. A prefix of the base model (``transformer.``) may be
    missing, or be there although the model has none; tensors that the model's class says to ignore
    are left out.

    Raises
    ------
    ModelMismatchError
        If a tensor is missing, has no place in the model, or has another shape.
    """
    groups = tied_names(model)
    first_of = {name: first for first, names in groups.items() for name in names}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found, unknown = {}, []
    for name in files.tensors:
        own = next((n for n in _spellings(name, prefix) if n in first_of), None)
        if own is not None:
            found[name] = first_of[own]
        elif not _ignored(model, name):
            unknown.append(name)
    missing = [first for first in groups if first not in found.values()]
    if missing or unknown:
        raise _mismatch(model, files, missing, unknown)
    check_fits(model, {first: name for name, first in found.items()}, files)
    return found


def _spellings(name: str, prefix: str) -> list[str]:
    return [name, prefix + name, name.removeprefix(prefix)]


def _ignored(model: nn.Module, name: str) -> bool:
    """Whether a class of transformers says that old files hold a tensor it has no use for."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _mismatch(
    model: nn.Module, files: TensorFiles, missing: list[str], unknown: list[str]
) -> ModelMismatchError:
    parts = [f"has no {listed(missing)}"] if missing else []
    parts += [f"has {listed(unknown)}, which the model has not"] if unknown else []
    advice = ""
    if missing and unknown and hasattr(model, "save_pretrained"):
        advice = (
            ". Where transformers itself can load the checkpoint, save it once under the model's "
            "own names: model.save_pretrained(FOLDER, save_original_format=False)"
        )
    kind = type(model).__name__
    return ModelMismatchError(f"{files.folder} is no {kind}: it {' and '.join(parts)}{advice}")
