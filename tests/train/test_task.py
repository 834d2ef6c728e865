"""Any batch, any labels, any loss: what the outputs of a model mean for its training."""

from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tensorpress.errors import InvalidArgumentError
from tensorpress.train import Task, evaluate, finetune

CPU = torch.device("cpu")
FAST = {"epochs": 30, "lr": 0.05}


def outcome(outputs, labels, task=None):
    task = task or Task()
    return task.outcome(outputs, task.read((torch.zeros(len(labels), 1), labels), CPU))


class Model(nn.Module):
    """Computes its loss itself if it gets labels, as models of Transformers do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.calls = []

    def forward(self, x, scale=1.0, labels=None):
        self.calls.append(labels is not None)
        logits = self.layer(x) * scale
        loss = None if labels is None else functional.cross_entropy(logits, labels) + 7
        return SimpleNamespace(loss=loss, logits=logits)


def data(n=24):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].argmax(1)


@given(seed=st.integers(0, 50), ignored=st.integers(0, 5))
def test_cross_entropy_of_pixels_and_tokens_is_pytorchs(seed, ignored):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 7, 4, 3, generator=generator)  # (examples, classes, height, width)
    labels = torch.randint(7, (2, 4, 3), generator=generator)
    labels.flatten()[:ignored] = -100
    expected = functional.cross_entropy(scores, labels)
    wrong = int((scores.argmax(1) != labels)[labels >= 0].sum())
    tokens = scores.flatten(2).mT  # (examples, tokens, classes)
    for result in (outcome(scores, labels), outcome(tokens, labels.flatten(1))):
        torch.testing.assert_close(result.loss, expected)
        assert (int(result.wrong), int(result.count)) == (wrong, 24 - ignored)


def test_masks_of_bytes_are_classes_too():
    scores = torch.randn(2, 200, 3, 3)
    labels = torch.tensor([156, 199] * 9, dtype=torch.uint8).reshape(2, 3, 3)
    result = outcome(scores, labels)
    torch.testing.assert_close(result.loss, functional.cross_entropy(scores, labels.long()))
    wrong = int((scores.argmax(1) != labels.long()).sum())
    assert (int(result.wrong), int(result.count)) == (wrong, 18)


def test_as_many_tokens_as_classes_are_tokens():
    scores, labels = torch.randn(2, 5, 5), torch.randint(5, (2, 5))
    expected = functional.cross_entropy(scores.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(outcome(scores, labels).loss, expected)
    pixels, labels = torch.randn(2, 5, 5, 5), torch.randint(5, (2, 5, 5))
    expected = functional.cross_entropy(pixels, labels)
    torch.testing.assert_close(outcome(pixels, labels).loss, expected)


@pytest.mark.parametrize(("outputs", "labels"), [((5, 3), (5, 3)), ((5, 1), (5,)), ((5,), (5, 1))])
def test_real_labels_mean_a_regression(outputs, labels):
    y, target = torch.randn(outputs), torch.randn(labels)
    result = outcome(y, target)
    torch.testing.assert_close(result.loss, (y.flatten() - target.flatten()).square().mean())
    assert (int(result.count), result.wrong) == (5, None)


def test_a_loss_gets_outputs_and_the_batch_as_it_was_given():
    seen = []

    def loss(outputs, batch):
        seen.append((type(batch), set(batch)))
        return (outputs["y"] - batch["target"]).abs().mean()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x, target):
            return {"y": self.layer(x)}

    x, _ = data()
    batch = {"x": x, "target": x[:, :1] + 1}
    model = Net()
    history = finetune(model, [batch], loss=loss, **FAST)
    assert history.epochs[-1].train_loss < 0.5 * history.epochs[0].train_loss
    assert history.epochs[-1].train_error is None
    assert seen[0] == (dict, {"x", "target"})


def test_several_arguments_in_a_tuple_or_by_name():
    x, labels = data()
    model = Model()
    task = Task()
    forms = (
        ((x, 2.0), labels),
        ({"x": x, "scale": 2.0}, labels),
        {"x": x, "scale": 2.0, "labels": labels},
        UserDict({"x": x, "scale": 2.0, "labels": labels}),
    )
    expected = functional.cross_entropy(2 * model.layer(x), labels) + 7
    for form in forms:
        batch = task.read(form, CPU)
        result = task.outcome(batch.run(model), batch)
        torch.testing.assert_close(result.loss, expected)
        assert int(result.count) == 24


def test_the_models_loss_is_trained_and_labels_of_classes_give_its_error():
    x, labels = data()
    model = Model()
    batches = [{"x": x[i : i + 8], "labels": labels[i : i + 8]} for i in (0, 8, 16)]
    history = finetune(model, batches, validation=batches, epochs=60, lr=0.1)
    last = history.epochs[-1]
    assert 7 < last.train_loss < 7.5
    assert last.validation_error < 10
    assert all(model.calls)


def test_a_loss_of_the_users_goes_before_the_models():
    x, labels = data()
    task = Task(loss=lambda outputs, batch: outputs.logits.square().mean())
    batch = task.read({"x": x, "labels": labels}, CPU)
    outputs = batch.run(Model())
    torch.testing.assert_close(task.outcome(outputs, batch).loss, outputs.logits.square().mean())


def test_labels_by_name_reach_models_that_take_any_name():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Model()

        def forward(self, *args, **kwargs):
            return self.model(*args, **kwargs)

    x, labels = data()
    for form, got in (((x, labels), False), ({"x": x, "labels": labels}, True)):
        batch = Task().read(form, CPU)
        assert (batch.run(Wrapper()).loss is not None) is got


def test_a_metric_is_the_mean_over_all_examples():
    x, labels = data(20)
    batches = [(x[:15], labels[:15]), (x[15:], labels[15:])]
    model = nn.Linear(4, 3)

    def right(outputs, batch):
        return (outputs.argmax(1) == batch[1]).float()

    def share(outputs, batch):
        return right(outputs, batch).mean().item()

    for metric in (right, share):
        result = evaluate(model, batches, task=Task(metric=metric))
        assert 100 * (1 - result.metric) == pytest.approx(result.error)
    history = finetune(model, batches, metric=right, validation=batches, epochs=2, lr=0.1)
    last = history.epochs[-1]
    assert 100 * (1 - last.validation_metric) == pytest.approx(last.validation_error)
    assert "metric 0." in str(last)


def test_evaluation_does_not_depend_on_how_tokens_are_batched():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 5, 9, generator=generator)
    labels = torch.randint(9, (6, 5), generator=generator)
    labels[2:, 3:] = -100
    one, several = (
        evaluate(nn.Identity(), list(zip(scores.split(n), labels.split(n), strict=True)))
        for n in (6, 1)
    )
    assert one.loss == pytest.approx(several.loss, rel=1e-6)
    assert (one.error, one.examples) == (several.error, several.examples)
    assert one.examples == 22


def test_a_batch_in_which_no_label_counts_changes_no_evaluation():
    x, labels = data()
    ignored = torch.full_like(labels, -100)
    model = nn.Linear(4, 3)
    assert evaluate(model, [(x, labels), (x, ignored)]) == evaluate(model, [(x, labels)])


def test_inputs_alone_are_enough_with_a_teacher():
    x, _ = data()
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    history = finetune(student, [x], teacher=teacher, epochs=200, lr=0.05)
    torch.testing.assert_close(student.weight, teacher.weight, atol=0.02, rtol=0)
    assert history.epochs[-1].train_error is None


def test_checkpoint_and_on_epoch(tmp_path):
    x, labels = data()
    path, seen = tmp_path / "run.pt", []
    first, second = Model(), Model()
    batches = [{"x": x, "labels": labels}]
    finetune(first, batches, epochs=2, checkpoint=path, on_epoch=seen.append)
    history = finetune(second, batches, epochs=2, checkpoint=path, on_epoch=seen.append)
    assert [metrics.epoch for metrics in seen] == [1, 2]
    assert history.epochs == seen
    assert torch.equal(first.layer.weight, second.layer.weight)
    with pytest.raises(InvalidArgumentError, match="loss is None there and 'zero' here"):
        finetune(second, batches, epochs=2, checkpoint=path, loss=zero)


def zero(outputs, batch):
    return 0 * outputs.logits.sum()


X, LABELS = data()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": lambda y, batch: y}, r"loss must return a scalar Tensor.*shape \(24, 3\)"),
        ({"loss": lambda y, batch: 0.5}, "loss must return a scalar Tensor.*got float"),
        ({"loss": lambda y, batch: y.mean(), "label_smoothing": 0.1}, "but loss= is set"),
        ({"metric": lambda y, batch: 1.0}, "pass validation="),
        (
            {"metric": lambda y, batch: "good", "validation": [(X, LABELS)]},
            "metric must return a number .* got str",
        ),
    ],
)
def test_a_misfit_is_named(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        finetune(nn.Linear(4, 3), [(X, LABELS)], epochs=1, **options)
