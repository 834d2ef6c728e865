import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tensorpress.errors import InvalidArgumentError
from tensorpress.train import Distillation, Task
from tensorpress.train.distillation import distillation_loss, mix_losses, teacher_loss

CPU = torch.device("cpu")


def example(seed, n=6, classes=5):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, n, classes, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(classes, (n,), generator=generator)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 20))
def test_distillation_is_its_definition(seed, temperature):
    student, teacher, _ = example(seed)
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, temperature), expected)


def test_gradient_does_not_shrink_with_temperature():
    # Hinton et al. 2015, section 2.1: at high temperature and for centred logits the gradient
    # of the T^2-scaled loss tends to (student - teacher) / classes per example.
    student, teacher, _ = example(0)
    student = (student - student.mean(1, keepdim=True)).requires_grad_()
    teacher = teacher - teacher.mean(1, keepdim=True)
    distillation_loss(student, teacher, 1e4).backward()
    expected = (student.detach() - teacher) / student.numel()
    torch.testing.assert_close(student.grad, expected, rtol=1e-3, atol=1e-6)


@given(weight=st.floats(0, 1), smoothing=st.floats(0, 0.9))
def test_mixture(weight, smoothing):
    student, teacher, labels = example(1)
    batch = Task().read((student, labels), CPU)
    soft = teacher_loss(student, teacher, batch, temperature=3.0)
    hard = Task().outcome(student, batch, smoothing).loss
    expected = weight * distillation_loss(student, teacher, 3.0)
    expected += (1 - weight) * functional.cross_entropy(student, labels, label_smoothing=smoothing)
    mixed = mix_losses(hard, soft, Distillation(weight=weight, temperature=3.0))
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    student, teacher, labels = example(2)
    batch = Task().read((student, labels), CPU)
    assert Task().outcome(student.to(dtype), batch).loss.dtype == torch.float32
    assert teacher_loss(student.to(dtype), teacher.to(dtype), batch, 2.0).dtype == torch.float32


def test_pixels_and_tokens_are_rows_and_padding_does_not_count():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 5, generator=generator)  # (examples, tokens, classes)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    labels = torch.zeros(2, 3, dtype=torch.long)
    batch = Task().read({"x": student, "attention_mask": mask, "labels": labels}, CPU)
    rows = [x[mask.bool()] for x in (student, teacher)]
    expected = distillation_loss(*rows, 2.0)
    torch.testing.assert_close(teacher_loss(student, teacher, batch, 2.0), expected)
    pixels = [x.reshape(2, 3, 5, 1).movedim(2, 1) for x in (student, teacher)]
    batch = Task().read((pixels[0], labels.reshape(2, 3, 1)), CPU)
    rows = [x.flatten(0, 1) for x in (student, teacher)]
    expected = distillation_loss(*rows, 2.0)
    torch.testing.assert_close(teacher_loss(*pixels, batch, 2.0), expected)


def test_outputs_that_are_no_class_scores_are_compared_by_their_squared_error():
    x = torch.randn(4, 3)
    for labels in (None, torch.randn(4, 3)):
        batch = Task().read(x if labels is None else (x, labels), CPU)
        expected = functional.mse_loss(x, 2 * x)
        torch.testing.assert_close(teacher_loss(x, 2 * x, batch, 4.0), expected)
    student, teacher = {"box": x, "score": x[:, :1]}, {"box": x + 1, "score": x[:, :1] + 3}
    torch.testing.assert_close(teacher_loss(student, teacher, batch, 4.0), torch.tensor(5.0))
    student["loss"], teacher["loss"] = torch.tensor(3.0), torch.tensor(1.0)
    torch.testing.assert_close(teacher_loss(student, teacher, batch, 4.0), torch.tensor(5.0))


def test_a_teacher_of_other_outputs_is_refused():
    batch = Task().read(torch.zeros(2, 3), CPU)
    with pytest.raises(InvalidArgumentError, match=r"model and teacher.*\(2, 3\).*\(2, 4\)"):
        teacher_loss(torch.zeros(2, 3), torch.zeros(2, 4), batch, 4.0)
