"""A callback for the Trainer of Lightning."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from tensorpress.callbacks.pressing import PlanSource, Pressing, is_pressed
from tensorpress.errors import CorruptFileError, ModelMismatchError
from tensorpress.planning.plan import Plan
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.press.press import build_skeleton

PLAN = "tensorpress_plan"
"""The key of the plan in a checkpoint of Lightning."""

_HOOK = "on_load_checkpoint"


class PressCallback(Callback):  # type: ignore[misc]
    """A callback that saves the plan of a pressed model in every checkpoint.

    Training resumes from such a checkpoint by ``trainer.fit(module, ckpt_path=…)``, with a dense or
    a pressed module; `load_lightning_checkpoint` loads it. If it has a plan, the callback presses
    the module in place, and its optimizers train the factors from then on.

    Parameters
    ----------
    plan : Plan or callable, optional
        The plan of the LightningModule, with its names of layers, or a function of the module that
        returns the plan when the module is pressed. By default the module is already pressed.
    step : int, optional
        Number of optimizer steps before pressing.
    epoch : int, optional
        Number of epochs before pressing. By default the module is pressed before training.

    Raises
    ------
    InvalidArgumentError
        If both step and epoch are set, or one of them without a plan.

    Examples
    --------
    >>> from tensorpress.planning import plan
    >>> class Regression(LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.Linear(40, 20)
    ...     def training_step(self, batch, _):
    ...         return nn.functional.mse_loss(self.layer(batch), torch.ones(len(batch), 20))
    ...     def configure_optimizers(self):
    ...         return torch.optim.Adam(self.parameters())
    >>> module = Regression()
    >>> trainer = Trainer(
    ...     max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
    ...     enable_progress_bar=False, enable_model_summary=False,
    ...     callbacks=[PressCallback(plan(module, scheme="channel_svd", ranks=4), step=2)],
    ... )
    >>> trainer.fit(module, torch.utils.data.DataLoader(torch.ones(16, 40), 4))
    >>> module.layer.ranks
    (4,)
    """

    def __init__(
        self, plan: PlanSource | None = None, *, step: int | None = None, epoch: int | None = None
    ) -> None:
        self._pressing = Pressing(plan, step, epoch)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Press the module, if this is due before training or to load a checkpoint."""
        if stage == "fit":
            self._press_if_due(trainer, pl_module)
            self._pressing.check_processes(pl_module)
        load = pl_module.on_load_checkpoint

        def press_and_load(checkpoint: dict[str, Any]) -> None:
            # Callbacks get a checkpoint only after the module is loaded from it.
            self.teardown(trainer, pl_module, stage)
            press_as_saved(pl_module, checkpoint)
            load(checkpoint)

        pl_module.on_load_checkpoint = press_and_load

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the module's hook."""
        vars(pl_module).pop(_HOOK, None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the module's hook, if no checkpoint was loaded."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Press the module after the chosen step."""
        self._press_if_due(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Press the module after the chosen epoch."""
        self._press_if_due(trainer, pl_module, trainer.current_epoch + 1)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the plan to the checkpoint, if the module is pressed."""
        if is_pressed(pl_module):
            checkpoint[PLAN] = plan_from_model(pl_module).to_dict()

    def _press_if_due(self, trainer: Trainer, module: LightningModule, epoch: int = 0) -> None:
        if self._pressing.due(trainer.global_step, epoch):
            self._pressing.press(module, trainer.optimizers)


def press_as_saved(module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Press a module in place like that of a checkpoint, without values.

    Raises
    ------
    ModelMismatchError
        If the module is pressed but the checkpoint is dense, or layers do not fit.
    """
    if PLAN not in checkpoint:
        if is_pressed(module):
            raise ModelMismatchError(
                "the module is pressed, but the checkpoint is that of a dense module: it has no "
                "plan"
            )
    elif not is_pressed(module):
        build_skeleton(module, Plan.from_dict(checkpoint[PLAN]))


def load_lightning_checkpoint(
    path: str | os.PathLike[str], module: LightningModule
) -> LightningModule:
    """Load the weights of a checkpoint written by training with `PressCallback`.

    `tensorpress.save_checkpoint` can then save the module, or a part of it, as a folder of
    safetensors for `tensorpress.load_checkpoint`.

    Parameters
    ----------
    path : path
        The file. No code in it is executed.
    module : LightningModule
        The module, dense or pressed like the saved one; it is changed in place.

    Returns
    -------
    LightningModule
        The module.

    Raises
    ------
    CorruptFileError
        If the file is not a checkpoint, or has objects other than tensors and plain data.
    ModelMismatchError
        If the checkpoint is of another module.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        state = checkpoint["state_dict"]
    except OSError:
        raise
    except Exception as error:  # parsers raise errors of any class on damaged files
        raise CorruptFileError(f"{path} is not a checkpoint of Lightning: {error}") from error
    press_as_saved(module, checkpoint)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        message = " ".join(str(error).split())
        raise ModelMismatchError(f"{path} is the checkpoint of another module: {message}") from None
    return module
