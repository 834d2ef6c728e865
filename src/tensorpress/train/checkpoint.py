"""Training checkpoints: the state of a run in one file, from which it can be resumed."""

import json
import random
import zipfile
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn

from tensorpress.errors import (
    CorruptFileError,
    InvalidArgumentError,
    ModelMismatchError,
    TensorPressError,
)
from tensorpress.train.history import History
from tensorpress.train.processes import processes
from tensorpress.utils.atomic_files import make_folder, remove_leftovers, replace_file
from tensorpress.utils.config_parsing import parse_json

TRAINING = {"epoch", "model", "optimizer", "scaler", "history", "random", "config"}


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically: the file is always either the old or the new one.

    The content has tensors and plain values, under the keys that `read_checkpoint` expects.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be written, as on a full disk.
    """
    with replace_file(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch closes its archive even after a failed write
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def read_checkpoint(path: Path, keys: Set[str] = TRAINING) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU; no code in the file is executed.

    Parameters
    ----------
    path : Path
        The file.
    keys : set of str
        The expected keys.

    Raises
    ------
    CorruptFileError
        If the file is truncated, altered or has other keys.
    """
    with refuse_damage(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or set(content) != keys:
        raise CorruptFileError(f"{path} is not a training checkpoint, or is damaged")
    return content


@contextmanager
def refuse_damage(path: Path) -> Iterator[None]:
    """Raise `CorruptFileError` for any error that a library raises on a checkpoint."""
    try:
        yield
    except TensorPressError:
        raise
    except Exception as error:  # parsers raise errors of any class
        raise CorruptFileError(
            f"{path} is not a training checkpoint, or is damaged ({type(error).__name__})"
        ) from error


def check_same_config(path: Path, saved: str, current: str) -> None:
    """Check that a run is resumed with the configuration it was started with.

    Parameters
    ----------
    path : Path
        The checkpoint, for the message.
    saved, current : str
        The two configurations as JSON objects.

    Raises
    ------
    InvalidArgumentError
        If they differ; the message lists every different key with both values.

    Examples
    --------
    >>> check_same_config(Path("run.pt"), '{"lr": 0.1, "seed": 0}', '{"lr": 0.2, "seed": 0}')
    Traceback (most recent call last):
    tensorpress.errors.InvalidArgumentError: run.pt was saved with another configuration: \
lr is 0.1 there and 0.2 here
    """
    there, here = (_flatten(parse_json(text, finite=False)) for text in (saved, current))
    differences = [
        f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
        for key in dict.fromkeys([*there, *here])
        if there.get(key) != here.get(key)
    ]
    if differences:
        raise InvalidArgumentError(
            f"{path} was saved with another configuration: {', '.join(differences)}"
        )


def restore_model(path: Path, model: nn.Module, state: dict[str, Any]) -> None:
    """Load the state of a checkpoint into a model.

    Parameters
    ----------
    path : Path
        The checkpoint, for the message.
    model : nn.Module
        The model, changed in place.
    state : dict
        The checkpoint's ``state_dict``.

    Raises
    ------
    ModelMismatchError
        If parameters or buffers of model and checkpoint differ; the message names the first.
    """
    current = model.state_dict()
    for name in dict.fromkeys([*state, *current]):
        shapes = [
            str(tuple(getattr(values[name], "shape", ()))) if name in values else "absent"
            for values in (state, current)
        ]
        if shapes[0] != shapes[1]:
            raise ModelMismatchError(
                f"{path} is a checkpoint of another model: the shape of {name} is {shapes[0]} in "
                f"the checkpoint and {shapes[1]} in the model"
            )
    model.load_state_dict(state)


def random_state(generators: list[torch.Generator]) -> dict[str, Any]:
    """Return the states of all global random generators of this process, and of `generators`."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (the global one is what users use)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.tensor(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "generators": [generator.get_state() for generator in generators],
    }


def restore_random_state(state: dict[str, Any], generators: list[torch.Generator]) -> None:
    """Restore the states that `random_state` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for device, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device_state, device)
    for generator, generator_state in zip(generators, state["generators"], strict=True):
        generator.set_state(generator_state)


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a flat dictionary, whose keys are joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict)
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


class RunCheckpoint:
    """The checkpoint file of a run, which is saved after every epoch.

    Parameters
    ----------
    path : path-like or None
        The file, or None if the run is not saved.
    model : nn.Module
        The model.
    optimizer : torch.optim.Optimizer
        The optimizer.
    scaler : torch.amp.GradScaler
        The scaler of the loss.
    settings : dict
        Settings that must be the same when the run is resumed; plain JSON values.
    generators : list of torch.Generator
        The random generators of the data loader.

    Raises
    ------
    InvalidArgumentError
        If the path is a folder.
    """

    def __init__(
        self,
        path: Path | str | None,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        settings: dict[str, Any],
        generators: list[torch.Generator],
    ) -> None:
        self._path = None if path is None else Path(path)
        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        self._settings, self._generators = json.dumps(settings), generators
        if self._path is not None:
            if self._path.is_dir():
                raise InvalidArgumentError(
                    f"{path} is a folder, expected the path of a checkpoint file"
                )
            make_folder(self._path.parent)

    def resume(self) -> History:
        """Restore the state in the file, if it exists, and return the history of its epochs.

        Temporary files of killed processes are removed.

        Raises
        ------
        CorruptFileError
            If the file is damaged.
        InvalidArgumentError
            If settings differ; the message names them.
        ModelMismatchError
            If the file is of another model.
        """
        if self._path is not None:
            remove_leftovers(self._path)
        if self._path is None or not self._path.exists():
            return History()
        content = read_checkpoint(self._path)
        with refuse_damage(self._path):
            check_same_config(self._path, content["config"], self._settings)
            restore_model(self._path, self._model, content["model"])
            try:
                self._optimizer.load_state_dict(content["optimizer"])
            except ValueError as error:
                raise ModelMismatchError(
                    f"{self._path}: trainable parameters of checkpoint and model differ: {error}"
                ) from error
            self._scaler.load_state_dict(content["scaler"])
            restore_random_state(content["random"][processes().process_index], self._generators)
            return History.from_json(content["history"])

    def save(self, history: History) -> None:
        """Save the current state; all processes must call this, and the main process writes."""
        if self._path is None:
            return
        random = gather_object([random_state(self._generators)])
        if processes().is_main_process:
            content = {
                "epoch": len(history.epochs),
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "history": history.to_json(),
                "random": random,
                "config": self._settings,
            }
            write_checkpoint(self._path, content)
        processes().wait_for_everyone()
