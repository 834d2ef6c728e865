"""Saving of a pressed model as a folder."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

from torch import Tensor, nn

from tensorpress.checkpoints.meta_model import tied_names
from tensorpress.checkpoints.safetensors_writer import (
    CODES,
    divide_into_shards,
    open_shard_writer,
    write_index,
)
from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.hugging_face.pressed_config import PLAN, mark_config
from tensorpress.planning.plan import Plan
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.utils.atomic_files import real_path, remove_leftovers, temporary_path
from tensorpress.utils.tensor_kinds import is_plain

SHARD_BYTES = 5 * 10**9
"""Largest size of a weight file; larger models are divided into shards."""

UNINITIALIZED = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)


def save_checkpoint(
    model: nn.Module, folder: str | os.PathLike[str], plan: Plan | None = None
) -> None:
    """Save a pressed model as a folder with its weights, plan and Transformers config.

    The folder has ``model.safetensors``, or shards of at most 5 GB and their index; ``plan.json``;
    and ``config.json`` if the model has a config. Tied tensors are written once. If saving fails,
    no folder is left behind.

    Parameters
    ----------
    model : nn.Module
        A pressed model.
    folder : path
        A new or empty folder.
    plan : Plan, optional
        The plan of the pressed model. By default it is read from the model, without the reasons why
        layers stayed dense.

    Raises
    ------
    ModelMismatchError
        If the model does not match the plan, or no plan describes it.
    InvalidArgumentError
        If the folder has files or cannot be written, or a tensor cannot be stored (the message
        names it).

    Examples
    --------
    >>> import tempfile
    >>> from tensorpress.planning import plan
    >>> from tensorpress.press.press import press
    >>> net = nn.Sequential(nn.Linear(80, 50))
    >>> folder = Path(tempfile.mkdtemp())
    >>> save_checkpoint(press(net, plan(net, scheme="channel_svd", ranks=4)), folder)
    >>> sorted(path.name for path in folder.iterdir())
    ['model.safetensors', 'plan.json']
    """
    pressed = plan_from_model(model)
    if plan is not None:
        _check_pressed(pressed, plan)
    state = model.state_dict(keep_vars=True)
    tensors = {name: state[name] for name in tied_names(model)}
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
    with create_folder(Path(folder)) as temporary:
        _write_config(model, temporary)
        (plan or pressed).save(temporary / PLAN)
        mark_config(temporary, plan or pressed)
        shards = divide_into_shards(tensors, SHARD_BYTES)
        for file, part in shards.items():
            with open_shard_writer(temporary / file, part) as shard:
                for name, tensor in part.items():
                    shard.write(name, tensor)
        if len(shards) > 1:
            write_index(temporary, shards)


def _check_pressed(pressed: Plan, plan: Plan) -> None:
    actual = {layer.name: layer for layer in pressed.layers}
    expected = {layer.name: layer for layer in plan.layers}
    for name in {**expected, **actual}:
        if actual.get(name) != expected.get(name):
            raise ModelMismatchError(f"layer {name!r} of the model does not match the plan")


def _check_tensor(name: str, tensor: Tensor) -> None:
    if tensor.is_meta or isinstance(tensor, UNINITIALIZED):
        raise InvalidArgumentError(f"tensor {name!r} has no values")
    if not is_plain(tensor):
        raise InvalidArgumentError(
            f"safetensors cannot store tensor {name!r} of class {type(tensor).__name__}: "
            "press and save the model before it is quantized, or use torch.save"
        )
    if tensor.dtype not in CODES or tensor.is_sparse or tensor.is_quantized:
        kind = tensor.dtype if tensor.dtype not in CODES else tensor.layout
        raise InvalidArgumentError(f"tensor {name!r} is {kind}, which safetensors cannot store")


def _write_config(model: nn.Module, folder: Path) -> None:
    """Write the configs from which transformers builds its models."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "save_pretrained"):
        return
    config = deepcopy(config)
    config.architectures = [type(model).__name__]
    if hasattr(model, "dtype"):  # which else would be that of the config
        key = "dtype" if hasattr(config, "dtype") else "torch_dtype"
        setattr(config, key, str(model.dtype).removeprefix("torch."))
    config.save_pretrained(folder)
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(folder)


@contextmanager
def create_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to ``folder`` at the end of the block.

    A killed process leaves it, and the next one that makes the same folder removes it.
    """
    target = real_path(folder)
    temporary = temporary_path(target)
    try:
        remove_leftovers(target)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InvalidArgumentError(f"{folder} already exists: choose a new or empty folder")
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except OSError as error:
        reason = error.strerror or error
        raise InvalidArgumentError(f"{folder} cannot be written: {reason}") from error
    except InvalidArgumentError as error:  # of a file in it
        raise InvalidArgumentError(str(error).replace(str(temporary), str(folder))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
