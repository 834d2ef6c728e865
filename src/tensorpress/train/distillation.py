"""Losses with and without knowledge distillation, and a teacher whose outputs are cached."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.train.config import TrainConfig
from tensorpress.utils.tensor_hash import fingerprint


class CachedTeacher(nn.Module):
    """A frozen network whose outputs are computed once for each batch, without gradients.

    Batches are recognized by a hash of their inputs. Caching pays where the same batches come in
    every epoch: the memory for outputs is small compared with the time to compute them.

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
        self._outputs: dict[str, Tensor] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs for a batch."""
        key = fingerprint([inputs])
        if key not in self._outputs:
            with torch.no_grad():
                self._outputs[key] = self.network(inputs)
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


def training_loss(
    logits: Tensor, labels: Tensor, config: TrainConfig, teacher_logits: Tensor | None = None
) -> Tensor:
    """Return the loss of one batch: cross entropy, mixed with distillation if configured.

    Parameters
    ----------
    logits : Tensor
        Logits, shape (examples, classes); those in half precision are converted to float32.
    labels : Tensor
        Class indices, shape (examples,).
    config : TrainConfig
        The configuration, of which ``distill`` and ``label_smoothing`` matter.
    teacher_logits : Tensor, optional
        The teacher's logits, shape (examples, classes); needed if ``config.distill`` is set.

    Examples
    --------
    >>> config = TrainConfig(epochs=1, lr=0.1)
    >>> loss = training_loss(torch.zeros(5, 4), torch.tensor([0, 1, 2, 3, 0]), config)
    >>> round(loss.exp().item(), 3)
    4.0
    """
    logits = to_float32(logits)
    hard = functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    if config.distill is None or teacher_logits is None:
        return hard
    soft = distillation_loss(logits, to_float32(teacher_logits), config.distill.temperature)
    return config.distill.weight * soft + (1 - config.distill.weight) * hard


def to_float32(values: Tensor) -> Tensor:
    """Return half-precision values in float32, and all others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
