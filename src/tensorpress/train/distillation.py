"""Knowledge distillation: its losses, and a teacher with cached outputs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.calibrate.batches import Batch, digest
from tensorpress.calibrate.outputs import tensors_by_name, token_mask
from tensorpress.errors import InvalidArgumentError
from tensorpress.train.config import Distillation
from tensorpress.train.task import TaskBatch, class_axis, class_rows, find_scores


class CachedTeacher(nn.Module):
    """A frozen network that computes its outputs once for each batch, without gradients.

    Batches are recognized by a hash of their inputs. Caching pays off if the same batches occur in
    every epoch and their outputs fit into memory.

    Parameters
    ----------
    network : nn.Module
        A network in evaluation mode that maps a batch to outputs.

    Examples
    --------
    >>> teacher = CachedTeacher(nn.Linear(2, 3))
    >>> first = teacher(torch.ones(4, 2))
    >>> _ = nn.init.zeros_(teacher.network.weight)
    >>> torch.equal(teacher(torch.ones(4, 2)), first), torch.equal(teacher(torch.ones(5, 2)), first)
    (True, False)
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._outputs: dict[str, Any] = {}

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the outputs for a batch."""
        key = digest([Batch(inputs, None, named)])
        if key not in self._outputs:
            with torch.no_grad():
                self._outputs[key] = self.network(*inputs, **named)
        return self._outputs[key]


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""Return :math:`T^2 \, \mathrm{KL}(p_T \,\|\, q_T)`, averaged over the batch.

    :math:`p_T` and :math:`q_T` are the softmax of the teacher's and the student's logits at
    temperature :math:`T`. The factor :math:`T^2` makes the size of the gradient independent of
    the temperature.

    Parameters
    ----------
    logits, teacher_logits : Tensor
        Logits of student and teacher, shape (examples, classes).
    temperature : float
        The temperature :math:`T > 0`.

    References
    ----------
    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.

    Examples
    --------
    >>> logits = torch.tensor([[1.0, 2.0, 0.5]])
    >>> distillation_loss(logits, logits + 7.0, temperature=4.0).abs().item() < 1e-6
    True
    """
    student = functional.log_softmax(logits / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits / temperature, dim=1)
    divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def teacher_loss(
    outputs: Any, teacher_outputs: Any, batch: TaskBatch, temperature: float
) -> Tensor:
    """Return the loss between the outputs of a student and its teacher.

    For class scores this is the `distillation_loss` over all tokens but padding. Outputs are class
    scores if the labels are integers, and logits also without labels. For all other outputs it is
    the mean squared error, averaged over the tensors that the model returns.

    Parameters
    ----------
    outputs, teacher_outputs : Any
        Outputs of student and teacher.
    batch : TaskBatch
        The batch.
    temperature : float
        The temperature for class scores.

    Raises
    ------
    InvalidArgumentError
        If student and teacher return tensors of different names or shapes.

    Examples
    --------
    >>> from tensorpress.train.task import Task
    >>> batch = Task().read(torch.zeros(2, 3), torch.device("cpu"))
    >>> teacher_loss(torch.zeros(2, 3), torch.full((2, 3), 2.0), batch, temperature=4.0).item()
    4.0
    """
    students, teachers = tensors_by_name(outputs), tensors_by_name(teacher_outputs)
    shapes, teacher_shapes = (
        {name: tuple(x.shape) for name, x in tensors.items() if not name.endswith("loss")}
        for tensors in (students, teachers)
    )
    if shapes != teacher_shapes:
        raise InvalidArgumentError(
            f"model and teacher must return outputs of the same names and shapes, got {shapes} and "
            f"{teacher_shapes}"
        )
    axis = _score_axis(outputs, batch.labels)
    if axis is None:
        errors = [functional.mse_loss(students[name], teachers[name]) for name in shapes]
        return torch.stack(errors).mean()
    [(student, teacher)] = [(students[name], teachers[name]) for name in shapes]
    rows, teacher_rows = class_rows(student, axis), class_rows(teacher, axis)
    mask = token_mask(student, Batch(batch.inputs.positional, None, batch.inputs.named))
    if mask is not None and student.ndim == 3:
        rows, teacher_rows = rows[mask.flatten()], teacher_rows[mask.flatten()]
    return distillation_loss(rows, teacher_rows, temperature)


def mix_losses(hard: Tensor | None, soft: Tensor, distill: Distillation) -> Tensor:
    """Return the weighted mean of both losses, or the teacher's loss if there are no labels."""
    return soft if hard is None else distill.weight * soft + (1 - distill.weight) * hard


def _score_axis(outputs: Any, labels: Any) -> int | None:
    """Return the class axis of the outputs, or None if they are not class scores."""
    scores = find_scores(outputs)
    if scores is None or scores.ndim < 2:
        return None
    axis = class_axis(scores, labels)
    # Logits are class scores even if only the model's loss can read the labels.
    if axis is not None or scores is outputs:
        return axis
    real = isinstance(labels, Tensor) and labels.is_floating_point()
    if real or scores.shape[-1] < 2:
        return None
    return scores.ndim - 1 if scores.ndim <= 3 else 1
