import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tensorpress.train import Distillation, TrainConfig
from tensorpress.train.distillation import distillation_loss, training_loss


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
    config = TrainConfig(
        epochs=1,
        lr=0.1,
        label_smoothing=smoothing,
        distill=Distillation(weight=weight, temperature=3.0),
    )
    expected = weight * distillation_loss(student, teacher, 3.0)
    expected += (1 - weight) * functional.cross_entropy(student, labels, label_smoothing=smoothing)
    torch.testing.assert_close(training_loss(student, labels, config, teacher), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    student, _, labels = example(2)
    loss = training_loss(student.to(dtype), labels, TrainConfig(epochs=1, lr=0.1))
    assert loss.dtype == torch.float32
