"""Batches as users give them, and tokens that are padding."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.calibrate.batches import collect_batches, digest, model_outputs
from tensorpress.calibrate.input_moments import input_moments
from tensorpress.errors import InvalidArgumentError


class Tokens(nn.Module):
    """A network on tokens that does not mix them, as far as its layers are concerned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(12, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        result: Tensor = self.down(torch.relu(self.up(self.table(input_ids))))
        return result * attention_mask[..., None]


def sentences(lengths: list[int], padding: int) -> dict[str, Tensor]:
    """Sentences side by side; what is padding has a token of its own."""
    random = torch.Generator().manual_seed(3)
    ids = torch.full((len(lengths), max(lengths)), padding)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.randint(10, (length,), generator=random)
    return {"input_ids": ids, "attention_mask": (ids != padding).long()}


def test_arguments_by_name_reach_the_model() -> None:
    model, arguments = Tokens(), sentences([4, 2], padding=11)
    [batch] = collect_batches([arguments | {"labels": torch.tensor([0, 1])}], model)
    assert len(batch) == 2
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1]
    torch.testing.assert_close(model_outputs(model, batch), model(**arguments))
    [other] = collect_batches([arguments], model)
    assert digest([batch]) != digest([other])


def test_moments_ignore_padding() -> None:
    model = Tokens()
    padded = collect_batches([sentences([4, 1, 3], padding=11)], model)
    result = input_moments(model, padded)["up"]
    assert result.rows == 8
    ids = padded[0].named["input_ids"]
    rows = model.table(ids[ids != 11]).double()
    torch.testing.assert_close(result.blocks[0][0], rows.T @ rows, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["inputs", "linear", "nonlinear"])
def test_what_is_fitted_does_not_depend_on_padding(kind: Any) -> None:
    model = Tokens()
    plan = tp.plan(model, scheme="channel_svd", ranks=3, skip=["table"])
    result = []
    for padding in (10, 11):
        batches = [sentences([9, 30, 17, 2], padding), sentences([40, 3], padding)]
        result.append(tp.press(model, plan, calibration=batches, reconstruct=kind))
    for one, other in zip(result[0].parameters(), result[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_convolution_as_wide_as_a_sentence_is_long_is_not_masked() -> None:
    conv = nn.Conv1d(5, 6, 3, padding=1)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    [batch] = collect_batches([{"attention_mask": mask}], conv)
    x = torch.randn(1, 5, 7)
    assert batch.unpadded(conv, x) is x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "such a mapping: the inputs of a model have no Tensor: {}"),
        ({"input_ids": [1, 2]}, "no Tensor: {'input_ids': [1, 2]}"),
        ({"input_ids": torch.zeros(2, 3), "labels": "yes"}, "such a mapping; got dict"),
        ({"input_ids": torch.zeros(0, 3)}, "no examples"),
        (
            {"input_ids": torch.zeros(2, 3), "attention_mask": torch.zeros(2, 3)},
            "attention_mask all zero",
        ),
        ("text", "got str"),
    ],
)
def test_unusable_batches_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        collect_batches([arguments], Tokens())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (torch.zeros(4, 3), "a Tensor is one batch: give a list"),
        ({"x": torch.zeros(4, 3)}, "a dict is one batch"),
        ((torch.zeros(4, 3), torch.arange(4)), "a pair (inputs, labels) is one batch"),
        (torch.utils.data.TensorDataset(torch.zeros(4, 3)), "DataLoader"),
        (3, "not int"),
    ],
)
def test_one_batch_in_place_of_many_is_refused(batches: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        collect_batches(batches, Tokens())


def test_a_model_gets_copies_of_its_inputs() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    x = torch.ones(2, 3)
    [batch] = collect_batches([x], InPlace())
    assert model_outputs(InPlace(), batch).eq(2).all()
    assert model_outputs(InPlace(), batch).eq(2).all()
    assert x.eq(1).all()
