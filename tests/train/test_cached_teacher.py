"""A teacher whose outputs are cached."""

import torch
from torch import Tensor, nn

from tensorpress.train import TrainConfig, fit
from tensorpress.train.distillation import CachedTeacher


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return inputs[:, :2] * 3


def test_a_cached_teacher_gives_the_same_student_and_runs_once_per_batch() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long)) for _ in range(3)]
    config = TrainConfig(epochs=5, lr=0.1, distill={"weight": 1.0, "temperature": 2.0})
    students = []
    for wrapped in (False, True):
        torch.manual_seed(1)
        student, teacher = nn.Linear(4, 2), Counting()
        fit(student, batches, config, teacher=CachedTeacher(teacher) if wrapped else teacher)
        assert teacher.calls == (3 if wrapped else 15)
        students.append(student)
    torch.testing.assert_close(students[0].weight, students[1].weight, rtol=0, atol=0)


def test_other_shapes_of_the_same_values_are_other_inputs() -> None:
    teacher = CachedTeacher(nn.Identity())
    assert teacher(torch.zeros(2, 6)).shape == (2, 6)
    assert teacher(torch.zeros(3, 4)).shape == (3, 4)
