"""Second moments of inputs and of the loss's gradients, by hooks in one pass."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.calibrate.loss_curvature import MOST, LossCurvature
from tensorpress.errors import InvalidArgumentError


class Tokens(nn.Module):
    """Two projections of one tensor, their sum, and logits of every token."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 8, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.head(self.left(x).relu() + self.right(x))}


def test_moments_are_those_of_inputs() -> None:
    x = torch.randn(10, 3, 6)
    curvature = LossCurvature.collect(Tokens().double(), [x[:6].double(), x[6:].double()])
    moment, rows = curvature.inputs["left"], x.flatten(0, 1).double()
    assert (moment.rows, curvature.examples) == (30, 10)
    torch.testing.assert_close(moment.mean(centred=False), rows.T @ rows / 30, atol=1e-5, rtol=1e-5)
    expected = rows.T.cov(correction=0)
    torch.testing.assert_close(moment.mean(centred=True), expected, atol=1e-5, rtol=1e-5)


def test_layers_with_one_input_share_its_moment() -> None:
    inputs = LossCurvature.collect(Tokens(), [torch.randn(4, 3, 6)]).inputs
    assert inputs["left"] is inputs["right"]
    assert inputs["head"] is not inputs["left"]


def test_gradients_have_the_moment_of_fishers_information() -> None:
    # Of logits, E g gᵀ = diag(p) − p pᵀ.
    net = nn.Sequential(nn.Linear(3, 4)).double()
    x = torch.ones(40_000, 3).double()
    second = LossCurvature.collect(net, [x]).gradients["0"] / len(x)
    p = net(x[:1]).softmax(1)[0].detach()
    torch.testing.assert_close(second.double(), p.diag() - p[:, None] * p, atol=0.01, rtol=0)


class TinyForCausalLM(nn.Module):
    """A language model by its name, as those of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 6), nn.Linear(6, 7)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.head(self.embedding(input_ids))}


def test_the_loss_of_a_language_model_is_that_of_its_texts() -> None:
    net, ids = TinyForCausalLM().double(), torch.tensor([[1, 2, 3, 4], [4, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"attention_mask": mask, "input_ids": ids}
    logits = net(ids)["logits"].detach().requires_grad_()
    pairs = [(0, 0), (0, 1), (0, 2), (1, 0)]  # text and position of tokens with a next one
    loss = sum(functional.cross_entropy(logits[i, j], ids[i, j + 1]) for i, j in pairs)
    [gradients] = torch.autograd.grad(loss, logits)
    rows = gradients[mask.bool()]
    for seed in (0, 1):
        moment = LossCurvature.collect(net, [batch], seed=seed).gradients["head"]
        torch.testing.assert_close(moment.double(), rows.T @ rows, atol=1e-5, rtol=1e-5)
    positional = LossCurvature.collect(net, [ids[:1]]).gradients["head"]
    expected = gradients[0].T @ gradients[0]
    torch.testing.assert_close(positional.double(), expected, atol=1e-5, rtol=1e-5)


def test_padding_does_not_count() -> None:
    net, x = Tokens(), torch.randn(2, 4, 6)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    garbage = torch.where(mask[..., None].bool(), x, 100.0)
    parts = [
        LossCurvature.collect(net, [{"x": rows, "attention_mask": mask}]) for rows in (x, garbage)
    ]
    assert parts[0].inputs["left"].rows == 5
    for name in ("left", "head"):
        torch.testing.assert_close(parts[0].inputs[name].second, parts[1].inputs[name].second)
        torch.testing.assert_close(parts[0].gradients[name], parts[1].gradients[name])


def test_labels_and_parameters_are_left_alone() -> None:
    net, x = Tokens(), torch.randn(4, 3, 6)
    first = LossCurvature.collect(net, [(x, torch.zeros(4, 3, dtype=torch.int64))])
    second = LossCurvature.collect(net, [(x, torch.ones(4, 3, dtype=torch.int64))])
    assert torch.equal(first.gradients["left"], second.gradients["left"])
    assert all(parameter.grad is None for parameter in net.parameters())


def test_only_named_layers_are_watched() -> None:
    curvature = LossCurvature.collect(Tokens(), [torch.randn(4, 3, 6)], names=["head"])
    assert list(curvature.gradients) == list(curvature.inputs) == ["head"]


def test_the_head_of_a_large_vocabulary_is_left_out() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, MOST + 1))
    assert list(LossCurvature.collect(net, [torch.randn(2, 3)]).gradients) == ["0"]


def test_what_has_no_gradient_or_is_not_finite_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(InvalidArgumentError, match="layer '0'"):
        LossCurvature.collect(net, [torch.full((2, 3), 1e30)])
    with pytest.raises(InvalidArgumentError, match="no gradient"):
        LossCurvature.collect(nn.Sequential(nn.Flatten()), [torch.randn(2, 3)])


def test_moments_of_a_model_in_half_precision_do_not_overflow() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    x = 5 * torch.randn(4096, 64)
    half = LossCurvature.collect(copy.deepcopy(net).half(), [x.half()]).inputs["0"]
    full = LossCurvature.collect(net, [x]).inputs["0"]
    assert torch.allclose(half.second, full.second, rtol=1e-2, atol=1e3)
