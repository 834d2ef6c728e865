"""A pressed model that is kept, so that a run which goes on does not fit it to images again."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import nn

from tensorpress.planning import Plan
from tensorpress.pressing import press, skeleton
from tensorpress.schemes.factorized_weight import FactorizedWeight
from tensorpress.schemes.pressed import Pressed
from tensorpress.train.checkpoint import read_checkpoint, restore_model, write_checkpoint

_KEYS = {"model", "errors"}


def pressed_once(dense: nn.Module, plan: Plan, path: Path, **how: Any) -> nn.Module:
    """Press a copy of a model, or read what was pressed before.

    Parameters
    ----------
    dense : nn.Module
        The model.
    plan : Plan
        How.
    path : Path
        Where the pressed model is kept, or will be.
    **how
        For `tensorpress.press`.

    Raises
    ------
    CorruptFileError
        If the file is not what was written.
    ModelMismatchError
        If it is of another model or plan.
    """
    if path.exists():
        return _read(skeleton(deepcopy(dense), plan), path)
    model = press(dense, plan, **how)
    errors = {name: held.relative_error for name, held in _held(model)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, {"model": model.state_dict(), "errors": errors})
    return model


def _read(model: nn.Module, path: Path) -> nn.Module:
    content = read_checkpoint(path, _KEYS)
    restore_model(path, model, content["model"])
    for name, held in _held(model):
        held.relative_error = content["errors"][name]
    return model


def _held(model: nn.Module) -> list[tuple[str, Pressed | FactorizedWeight]]:
    """Return what knows how far its weight is from the dense one."""
    modules = model.named_modules()
    return [(name, x) for name, x in modules if isinstance(x, Pressed | FactorizedWeight)]
