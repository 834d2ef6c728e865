import copy
import io
import logging
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from tensorpress.data.digits import read_digits
from tensorpress.errors import DivergedError, InvalidArgumentError
from tensorpress.train import Distillation, StraightThrough, TrainConfig, evaluate, finetune, fit
from tensorpress.utils import progress as progress_module

SGD = TrainConfig(epochs=2, lr=0.1, optimizer="sgd")


@pytest.fixture(scope="module")
def digits():
    """Real 8x8 digits, as (training, validation) data sets."""
    return tuple(TensorDataset(part.images / 255, part.labels) for part in read_digits())


def conv_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    )


def toy(n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 4, generator=generator)
    return [(i, (i[:, 0] > 0).long()) for i in inputs.split(8)]


class Product(nn.Module):
    """A weight rebuilt from two factors."""

    def forward(self, left, right):
        return left @ right

    def right_inverse(self, weight):
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        return u[:, :3] * s[:3], v[:3]


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "lr": 0.1, "schedule": "cosine", "warmup_epochs": 0.5},
        {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.01, "channels_last": True},
        {"optimizer": "adam", "lr": 3e-3, "precision": "bf16", "label_smoothing": 0.1},
        {"optimizer": "adam", "lr": 3e-3, "precision": "fp16", "clip_norm": 1.0},
    ],
)
def test_learns_real_digits(digits, options):
    train, validation = (DataLoader(part, 64, shuffle=True) for part in digits)
    model = conv_net()
    history = fit(model, train, TrainConfig(epochs=4, **options), validation=validation)
    last = history.epochs[-1]
    assert [m.epoch for m in history.epochs] == [1, 2, 3, 4]
    assert last.train_loss < history.epochs[0].train_loss
    assert last.validation_error < 12
    assert last.validation_error == evaluate(model, validation).error
    assert all(m.seconds > 0 for m in history.epochs)


def test_one_step_is_the_textbook_step():
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    expected = copy.deepcopy(model)
    inputs, labels = toy()[0]
    loss = nn.functional.cross_entropy(expected(inputs), labels)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(expected.parameters(), 0.01)
    assert norm > 0.01
    config = TrainConfig(epochs=1, lr=0.5, optimizer="sgd", weight_decay=0.1, clip_norm=0.01)
    history = fit(model, [(inputs, labels)], config)
    with torch.no_grad():
        expected.weight -= 0.5 * (expected.weight.grad + 0.1 * expected.weight)
        expected.bias -= 0.5 * expected.bias.grad
    torch.testing.assert_close(model.state_dict(), expected.state_dict())
    assert history.epochs[0].train_loss == pytest.approx(loss.item(), rel=1e-6)
    assert history.epochs[0].lr == 0.5


def test_a_model_is_not_wrapped_and_its_modes_are_restored():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Dropout(), nn.Linear(12, 2)).eval()
    model[2].train()
    attributes, strides = set(vars(model)), [p.stride() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    batches = [(torch.randn(5, 2, 4, 4), torch.tensor([0, 1, 0, 1, 1]))]
    config = TrainConfig(epochs=1, lr=0.1, channels_last=True, precision="bf16")
    fit(model, batches, config)
    assert set(vars(model)) == attributes
    assert "forward" not in vars(model)
    assert [p.stride() for p in model.parameters()] == strides
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())


def test_precisions_follow_each_other_in_one_process():
    seen = []

    class Probe(nn.Linear):
        def forward(self, inputs):
            output = super().forward(inputs)
            seen.append(output.dtype)
            return output

    model = Probe(4, 2)
    for precision in ("no", "bf16", "fp16", "no"):
        fit(model, toy(8), TrainConfig(epochs=1, lr=0.1, precision=precision))
    assert seen == [torch.float32, torch.bfloat16, torch.float16, torch.float32]


def test_distills_from_a_frozen_teacher():
    teacher = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)).train()
    before = copy.deepcopy(teacher.state_dict())
    torch.manual_seed(1)
    student = nn.Linear(4, 2)
    batches = [(inputs, torch.zeros_like(labels)) for inputs, labels in toy(240)]
    config = TrainConfig(epochs=60, lr=0.05, distill=Distillation(weight=1.0, temperature=2.0))
    fit(student, batches, config, teacher=teacher)
    inputs = torch.cat([inputs for inputs, _ in batches])
    with torch.no_grad():
        student_probabilities, teacher_probabilities = (
            student(inputs).softmax(1),
            teacher[0](inputs).softmax(1),
        )
    torch.testing.assert_close(student_probabilities, teacher_probabilities, atol=0.02, rtol=0)
    torch.testing.assert_close(teacher.state_dict(), before)
    assert teacher.training
    assert all(p.grad is None for p in teacher.parameters())


def test_a_teacher_without_options_gets_the_default_ones():
    students = []
    for distill in (None, Distillation()):
        torch.manual_seed(1)
        teacher, student = nn.Linear(4, 2), nn.Linear(4, 2)
        fit(student, toy(), SGD.model_copy(update={"distill": distill}), teacher=teacher)
        students.append(student.weight)
    assert torch.equal(*students)


def test_distillation_needs_a_teacher():
    with pytest.raises(InvalidArgumentError, match="needs a teacher"):
        fit(nn.Linear(4, 2), toy(), SGD.model_copy(update={"distill": Distillation()}))


def test_a_core_shared_by_parametrized_layers_gets_both_gradients():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Product())
    core = layers[0].parametrizations.weight.original1
    layers[1].parametrizations.weight.original1 = core
    model = nn.Sequential(*layers)
    inputs, labels = toy()[0]
    reference = copy.deepcopy(model)
    nn.functional.cross_entropy(reference(inputs), labels).backward()
    before = core.detach().clone()
    fit(model, [(inputs, labels)], TrainConfig(epochs=1, lr=0.1, optimizer="sgd"))
    assert layers[0].parametrizations.weight.original1 is core
    assert layers[1].parametrizations.weight.original1 is core
    expected = before - 0.1 * reference[0].parametrizations.weight.original1.grad
    torch.testing.assert_close(core.detach(), expected)


def test_validation_sees_the_quantized_weights():
    model = nn.Linear(4, 2)
    swap = StraightThrough({"weight": torch.zeros_like, "bias": torch.zeros_like})
    history = fit(model, toy(), SGD, validation=toy(), weights=swap)
    assert history.epochs[-1].validation_loss == pytest.approx(math.log(2))
    assert model.weight.any()


def test_divergence_names_epoch_step_and_learning_rate():
    model = nn.Linear(4, 2)
    batches = toy(24)
    batches[1] = (batches[1][0] * math.inf, batches[1][1])
    message = "epoch 1, step 2 of 3, at learning rate 0.1: try a lower lr"
    with pytest.raises(DivergedError, match=message):
        fit(model, batches, SGD)


def test_divergence_keeps_the_checkpoint_of_the_epoch_before(tmp_path):
    batches = toy(24)

    def spoil(metrics):
        batches[2] = (batches[2][0] * math.nan, batches[2][1])

    path = tmp_path / "run.pt"
    with pytest.raises(DivergedError, match="epoch 2, step 3"):
        fit(nn.Linear(4, 2), batches, SGD, checkpoint=path, on_epoch=spoil)
    assert len(fit(nn.Linear(4, 2), toy(24), SGD, checkpoint=path).epochs) == 2


def test_equal_seeds_give_equal_weights_and_others_do_not(digits):
    def weights(seed):
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 10))
        with torch.no_grad():
            [p.zero_() for p in model.parameters()]
        config = TrainConfig(epochs=1, lr=0.01, seed=seed)
        fit(model, DataLoader(digits[0], 64, shuffle=True), config)
        return model[2].weight

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_reaches_every_convolution(channels):
    formats = []

    class Probe(nn.Conv2d):
        def forward(self, inputs):
            formats.append(inputs.stride()[1] == 1)
            return super().forward(inputs)

    model = nn.Sequential(Probe(channels, 4, 3), nn.ReLU(), Probe(4, 2, 3), nn.Flatten())
    batches = [(torch.randn(3, channels, 5, 5), torch.tensor([0, 1, 0]))]
    for channels_last in (False, True):
        config = TrainConfig(epochs=1, lr=0.1, channels_last=channels_last)
        fit(model, batches, config, validation=batches)
    assert formats == [False] * 4 + [True] * 4


class Epochs:
    """Records the epochs it is told."""

    def __init__(self, *args):
        super().__init__(*args)
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


class EpochsDataset(Epochs, TensorDataset):
    pass


class EpochsSampler(Epochs, RandomSampler):
    pass


class EpochsBatches(Epochs, list):
    pass


def test_every_part_of_a_loader_gets_the_epoch():
    inputs, labels = (torch.cat(parts) for parts in zip(*toy(), strict=True))
    dataset = EpochsDataset(inputs, labels)
    sampler = EpochsSampler(dataset)
    batches = EpochsBatches(toy())
    whole_batches = DataLoader(dataset, batch_size=None, sampler=BatchSampler(sampler, 8, False))
    fit(nn.Linear(4, 2), batches, SGD)
    fit(nn.Linear(4, 2), DataLoader(dataset, 8, sampler=sampler), SGD)
    fit(nn.Linear(4, 2), whole_batches, SGD)
    assert batches.epochs == [0, 1]
    assert dataset.epochs == sampler.epochs == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (iter(toy()), "must have a length.*got list_iterator"),
        ([], "has 0 batches"),
        ([torch.zeros(3, 4)], "without labels has no loss"),
        ([(torch.zeros(3, 4), torch.zeros(3, 5))], "labels must be class indices"),
        ([(torch.zeros(3, 4), torch.zeros(2, 2))], "same first dimension"),
        (TensorDataset(torch.zeros(3, 4), torch.zeros(3)), "has single examples"),
    ],
)
def test_unusable_training_batches(batches, message):
    with pytest.raises(InvalidArgumentError, match=message):
        fit(nn.Linear(4, 2), batches, SGD)


def test_log_lines_when_there_is_no_terminal(caplog, capsys):
    with caplog.at_level(logging.INFO, logger="tensorpress.train"):
        fit(nn.Linear(4, 2), toy(), SGD, validation=toy())
    assert [record.message.split(":")[0] for record in caplog.records] == ["epoch 1", "epoch 2"]
    assert "validation error" in caplog.text
    assert capsys.readouterr().out == ""


def test_progress_bar_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    console = progress_module.Console(file=screen, force_terminal=True, width=120)  # type: ignore[attr-defined]
    monkeypatch.setattr(progress_module, "Console", lambda: console)
    fit(nn.Linear(4, 2), toy(), SGD, validation=toy())
    shown = screen.getvalue()
    assert "epoch 2/2 batch 3/3" in shown
    assert "validation error" in shown


def test_finetune_takes_the_options_of_a_configuration():
    history = finetune(nn.Linear(4, 2), toy(), epochs=3, lr=0.1, optimizer="sgd", validation=toy())
    assert len(history.epochs) == 3
    with pytest.raises(InvalidArgumentError, match="unknown training option 'optimiser'"):
        finetune(nn.Linear(4, 2), toy(), optimiser="sgd")
