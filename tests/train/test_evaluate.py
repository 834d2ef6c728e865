import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tensorpress.errors import InvalidArgumentError
from tensorpress.train import evaluate


@given(n=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 100))
def test_evaluation_does_not_depend_on_the_batch_size(n, batch_size, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 4, generator=generator)
    labels = torch.randint(4, (n,), generator=generator)
    result = evaluate(nn.Identity(), DataLoader(TensorDataset(inputs, labels), batch_size))
    assert result.examples == n
    assert result.error == 100 * int((inputs.argmax(1) != labels).sum()) / n
    expected = nn.functional.cross_entropy(inputs.double(), labels).item()
    assert result.loss == pytest.approx(expected, rel=1e-5)


def test_evaluation_mode_without_gradients_and_every_mode_restored():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9), nn.BatchNorm1d(3)).train()
    model[2].eval()
    batches = [(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))]
    assert evaluate(model, batches) == evaluate(model, batches)
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert model[0].weight.grad is None


def test_modes_are_restored_after_an_error():
    model = nn.Linear(3, 3).train()
    with pytest.raises(InvalidArgumentError):
        evaluate(model, [torch.zeros(2, 3)])
    assert model.training


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no example"),
        ([torch.zeros(3, 2)], "without labels has no loss"),
        ([(torch.zeros(3, 2), 3)], r"a batch must be a Tensor.*got tuple of Tensor, int"),
        ([(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long))], r"\(3, 2\).*and.*\(2,\)"),
        (
            [(torch.zeros(3, 2), torch.zeros(3))],
            r"outputs torch.float32 of shape \(3, 2\) and labels torch.float32 of shape \(3,\)",
        ),
        ([(torch.zeros(3, 2, 4), torch.zeros(3, dtype=torch.long))], "no loss for outputs"),
    ],
)
def test_unusable_batches_are_refused(batches, message):
    with pytest.raises(InvalidArgumentError, match=message):
        evaluate(nn.Identity(), batches)


def test_outputs_that_are_not_tensors_are_refused():
    class Pair(nn.Module):
        def forward(self, inputs):
            return inputs, inputs

    with pytest.raises(InvalidArgumentError, match="no loss for outputs tuple"):
        evaluate(Pair(), [(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))])
