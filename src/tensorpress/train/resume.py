"""The state of a run, in and out of its checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn

from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.train.checkpoint import (
    check_same_config,
    random_state,
    read_checkpoint,
    restore_model,
    restore_random_state,
    write_checkpoint,
)
from tensorpress.train.history import History
from tensorpress.train.processes import processes


class RunCheckpoint:
    """Saves a run after an epoch, and brings it back to that point.

    Parameters
    ----------
    path
        The file, or None for a run that is not saved.
    model, optimizer, scaler
        What changes in a run.
    settings
        What must be the same when a run goes on; plain values that JSON can hold.
    generators
        Random generators of the data loader.

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
                raise InvalidArgumentError(f"{path}: a checkpoint is a file, got a folder")
            self._path.parent.mkdir(parents=True, exist_ok=True)

    def resume(self) -> History:
        """Restore what the file holds, if there is one; return the epochs done so far.

        Raises
        ------
        CorruptFileError
            If the file is damaged.
        InvalidArgumentError
            If the settings differ; the message names them.
        ModelMismatchError
            If the file is of another model.
        """
        if self._path is None or not self._path.exists():
            return History()
        content = read_checkpoint(self._path)
        check_same_config(self._path, content["config"], self._settings)
        restore_model(self._path, self._model, content["model"])
        try:
            self._optimizer.load_state_dict(content["optimizer"])
        except ValueError as error:
            raise ModelMismatchError(
                f"{self._path}: the checkpoint trains other parameters than the model does: {error}"
            ) from error
        self._scaler.load_state_dict(content["scaler"])
        restore_random_state(content["random"][processes().process_index], self._generators)
        return History.from_json(content["history"])

    def save(self, history: History) -> None:
        """Replace the file by the present state; the main process does, all must call."""
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
