"""A callback for the Trainer of Transformers."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers.trainer_callback import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.training_args import TrainingArguments

from tensorpress.callbacks.pressing import PlanSource, Pressing, is_pressed
from tensorpress.errors import ModelMismatchError
from tensorpress.hugging_face.pressed_config import PLAN
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.utils.module_tree import unwrap

RECORD = "pressed_layers"
"""The key of a log entry of the Trainer for a pressed model."""


class PressCallback(TrainerCallback):  # type: ignore[misc]
    """A callback that saves the plan of a pressed model with every checkpoint.

    `tensorpress.load_checkpoint` loads these checkpoints. If it has a plan, the callback presses
    the model in place, and the optimizer trains the factors from then on.

    Training resumes from a checkpoint by ``trainer.train(resume_from_checkpoint=…)``. If the model
    was pressed before the checkpoint was written, the Trainer must get the pressed model from
    `tensorpress.load_checkpoint`: factors cannot be loaded into a dense model.

    Parameters
    ----------
    plan : Plan or callable, optional
        The plan, or a function of the model that returns it when the model is pressed. By default
        the model is already pressed.
    step : int, optional
        Number of optimizer steps before pressing.
    epoch : int, optional
        Number of epochs before pressing. By default the model is pressed before training.

    Raises
    ------
    InvalidArgumentError
        If both step and epoch are set, or one of them without a plan.
    ModelMismatchError
        If training of a dense model resumes from the checkpoint of a pressed model.

    Examples
    --------
    >>> import tempfile, torch
    >>> from transformers import Trainer, TrainingArguments
    >>> from tensorpress.planning import plan
    >>> class Regression(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.Linear(40, 20)
    ...     def forward(self, x, labels):
    ...         return {"loss": nn.functional.mse_loss(self.layer(x), labels)}
    >>> model = Regression()
    >>> folder = tempfile.mkdtemp()
    >>> arguments = TrainingArguments(
    ...     folder, max_steps=4, save_steps=4, use_cpu=True, disable_tqdm=True, report_to=[]
    ... )
    >>> callback = PressCallback(plan(model, scheme="channel_svd", ranks=4), step=2)
    >>> data = [{"x": torch.ones(40), "labels": torch.ones(20)}] * 8
    >>> trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback])
    >>> result = trainer.train()  # doctest: +ELLIPSIS
    {'train_runtime': ...}
    >>> model.layer.ranks
    (4,)
    >>> from tensorpress.checkpoints import load_checkpoint
    >>> load_checkpoint(f"{folder}/checkpoint-4", Regression()).layer.ranks
    (4,)
    """

    def __init__(
        self, plan: PlanSource | None = None, *, step: int | None = None, epoch: int | None = None
    ) -> None:
        self._pressing = Pressing(plan, step, epoch)

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **parts: Any,
    ) -> None:
        """Press the model, if this is due before training."""
        self._press_if_due(state, model, parts, moment=(0, 0.0))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **parts: Any,
    ) -> None:
        """Check that resumed training has the model of its checkpoint."""
        recorded = any(RECORD in entry for entry in state.log_history)
        if recorded and not is_pressed(model):
            raise ModelMismatchError(
                f"training resumes at step {state.global_step} from the checkpoint of a pressed "
                "model, but the model is dense: pass the pressed model to the Trainer, "
                "tensorpress.load_checkpoint(CHECKPOINT)"
            )
        self._pressing.check_processes(model)
        self._press_if_due(state, model, parts)
        if is_pressed(model) and not recorded:
            self._record(state, model)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **parts: Any,
    ) -> None:
        """Press the model after the chosen step, or the last step of the chosen epoch."""
        self._press_if_due(state, model, parts)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **parts: Any,
    ) -> None:
        """Write the plan to the checkpoint, if the model is pressed."""
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir() and is_pressed(model):
            plan_from_model(unwrap(model)).save(folder / PLAN)

    def _press_if_due(
        self,
        state: TrainerState,
        model: nn.Module,
        parts: dict[str, Any],
        moment: tuple[int, float] | None = None,
    ) -> None:
        step, epoch = moment or (state.global_step, state.epoch)
        if self._pressing.due(step, epoch) and not is_pressed(model):
            optimizer = parts.get("optimizer")
            self._pressing.press(model, [] if optimizer is None else [optimizer])
            if step:
                self._record(state, model)

    @staticmethod
    def _record(state: TrainerState, model: nn.Module) -> None:
        layers = len(plan_from_model(unwrap(model)).layers)
        entry = {RECORD: layers, "epoch": state.epoch, "step": state.global_step}
        state.log_history.append(entry)
