import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorpress.compress.fidelity import fidelity
from tensorpress.compress.verdict import Fidelity
from tensorpress.errors import InvalidArgumentError


def shifted(net: nn.Linear, by: float) -> nn.Linear:
    other = nn.Linear(net.in_features, net.out_features)
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        other.bias += by
    return other


def test_of_itself_a_model_is_perfect() -> None:
    net = nn.Linear(6, 4)
    result = fidelity(net, net, [(torch.randn(32, 6), torch.arange(32) % 4)])
    assert result.error == 0
    assert result.cosine == pytest.approx(1)
    assert result.agreement == 1
    assert result.divergence == pytest.approx(0, abs=1e-9)
    assert result.usable
    assert "100.0 % of the predictions agree" in result.verdict


def test_error_is_relative_to_the_deviation_from_the_mean() -> None:
    net, inputs = nn.Linear(6, 1), torch.randn(500, 6)
    net.bias.data.fill_(100.0)  # a mean that says nothing of the inputs
    outputs = net(inputs).detach()
    expected = 0.5 / float(outputs.std(correction=0))
    assert fidelity(net, shifted(net, 0.5), [inputs]).error == pytest.approx(expected, rel=1e-3)


def test_a_constant_in_place_of_outputs_has_error_one() -> None:
    net, inputs = nn.Linear(6, 3), torch.randn(400, 6)

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(inputs).mean(0).expand(len(x), 3)

    assert fidelity(net, Constant(), [inputs]).error == pytest.approx(1, rel=1e-4)


def test_batches_of_different_sizes_are_as_one() -> None:
    net, inputs = nn.Linear(6, 4), torch.randn(50, 6)
    other = nn.Linear(6, 4)
    one = fidelity(net, other, [inputs])
    many = fidelity(net, other, [inputs[:7], inputs[7:30], inputs[30:]])
    for key, value in one.to_dict().items():
        if isinstance(value, float):
            assert many.to_dict()[key] == pytest.approx(value, rel=1e-5), key


def test_divergence_is_that_of_torch() -> None:
    net, other, inputs = nn.Linear(6, 4), nn.Linear(6, 4), torch.randn(64, 6)
    p, q = (m(inputs).log_softmax(1).detach() for m in (net, other))
    expected = nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    batch = inputs, torch.arange(64) % 4
    assert fidelity(net, other, [batch]).divergence == pytest.approx(float(expected), rel=1e-4)


def test_losses_with_labels() -> None:
    net, other, inputs = nn.Linear(6, 4), nn.Linear(6, 4), torch.randn(64, 6)
    labels = torch.randint(4, (64,))
    result = fidelity(net, other, [(inputs, labels)])
    cross_entropy = nn.functional.cross_entropy
    assert result.dense_loss == pytest.approx(cross_entropy(net(inputs), labels).item(), rel=1e-4)
    assert result.loss == pytest.approx(cross_entropy(other(inputs), labels).item(), rel=1e-4)


class Probabilities(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(1)


def test_outputs_that_are_no_logits_have_no_divergence() -> None:
    net = Probabilities(nn.Linear(6, 4))
    result = fidelity(net, net, [torch.randn(20, 6)])
    assert result.divergence is None
    assert result.agreement == 1


class Normalized(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(super().forward(x))


@pytest.mark.parametrize("net", [Normalized(6, 4), nn.Sequential(nn.Linear(6, 4), nn.Sigmoid())])
def test_embeddings_and_separate_probabilities_are_no_choice_of_a_class(net: nn.Module) -> None:
    result = fidelity(net, net, [torch.randn(20, 6)])
    assert result.agreement is None
    assert result.divergence is None
    labelled = fidelity(net, net, [(torch.randn(20, 6), torch.arange(20) % 4)])
    assert labelled.agreement == 1


@dataclass
class Parts:
    image: Tensor
    maps: dict[str, Tensor]


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Parts:
        y = self.net(x)
        return Parts(
            y.reshape(-1, 2, 2), {"sum": y.sum(1), "count": torch.ones(3, dtype=torch.int)}
        )


def test_outputs_in_dataclasses_and_mappings() -> None:
    net, other = Structured(), Structured()
    inputs = torch.randn(40, 6)
    assert fidelity(net, net, [inputs]).error == 0
    result = fidelity(net, other, [inputs])
    assert result.error > 0.1
    assert result.agreement is None
    assert "outputs differ by" in result.verdict


def test_outputs_that_are_nan_are_infinitely_far() -> None:
    net, other = nn.Linear(6, 4), nn.Linear(6, 4)
    other.weight.data.fill_(math.nan)
    result = fidelity(net, other, [torch.randn(10, 6)])
    assert result.error == math.inf
    assert result.distance == math.inf
    assert not result.usable


def test_padding_does_not_count() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Embedding(10, 3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.net(input_ids)

    net, other = Tagger(), Tagger()
    other.load_state_dict(net.state_dict())
    other.net.weight.data[0] += torch.tensor([100.0, 0, -100.0])  # of the padding
    ids = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]])
    labels = torch.zeros_like(ids)
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}
    result = fidelity(net, other, [batch])
    assert result.agreement == 1


def test_models_that_cannot_be_compared() -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be compared"):
        fidelity(nn.Linear(6, 4), nn.Linear(6, 3), [torch.randn(10, 6)])


def test_models_without_floating_outputs() -> None:
    class Classes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1)

    with pytest.raises(InvalidArgumentError, match="without a floating-point tensor"):
        fidelity(Classes(), Classes(), [torch.randn(10, 6)])


def test_agreement_alone_does_not_make_a_model_usable() -> None:
    net, inputs = nn.Linear(6, 3), torch.randn(100, 6)
    net.bias.data = torch.tensor([100.0, 0.0, 0.0])  # all inputs are of one class
    constant = nn.Linear(6, 3)
    constant.weight.data.zero_()
    constant.bias.data = net.bias.data
    result = fidelity(net, constant, [inputs])
    assert result.agreement == 1
    assert result.error > 0.9
    assert not result.usable


def test_a_language_model_is_judged_by_its_perplexity() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Embedding(50, 50)

        def forward(self, ids: Tensor) -> Tensor:
            return self.net(ids)

    net, other = Tokens(), Tokens()
    ids = torch.randint(50, (4, 12))
    result = fidelity(net, other, [(ids, ids)])
    assert result.tokens
    assert result.loss is not None
    assert f"perplexity {math.exp(result.loss):.4g}" in result.verdict
    assert fidelity(net, net, [(ids, ids)]).usable


class Given(nn.Module):
    """Returns what it was made with, whatever the inputs."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, **_: Tensor) -> Any:
        return self.output


X = torch.zeros(8, 2)


@pytest.mark.parametrize("shape", [(8, 1, 4000), (8, 4, 1024)])
def test_waveforms_and_hidden_states_are_no_tokens(shape: tuple[int, ...]) -> None:
    y = torch.randn(shape)
    result = fidelity(Given(y), Given(2 * y), [X])
    assert not result.tokens
    assert result.agreement is None
    assert result.error == pytest.approx(1, rel=0.2)
    assert not result.usable


def test_logits_of_three_axes_by_name_are_tokens_and_their_error_counts() -> None:
    y = torch.randn(8, 5, 30)
    result = fidelity(Given({"logits": y}), Given({"logits": y + 3}), [X])
    assert result.tokens
    assert result.divergence == pytest.approx(0, abs=1e-9)
    assert result.error > 1
    assert not result.usable


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_examples_have_no_verdict(count: int) -> None:
    net = nn.Linear(6, 4)
    result = fidelity(net, net, [torch.randn(count, 6)])
    assert "too few to judge" in result.verdict
    assert "nearly the same" not in result.verdict
    assert not result.usable
    assert not result.nearly_same


def test_a_large_mean_hides_no_difference() -> None:
    y = (1e4 + torch.randn(200, 3, dtype=torch.double)).float()
    result = fidelity(Given(y), Given(y.mean(0).expand(200, 3)), [torch.zeros(200, 1)])
    assert result.error == pytest.approx(1, rel=1e-2)


def test_batches_of_other_sizes_are_centred_by_channel() -> None:
    means = torch.tensor([0.0, 100.0, -300.0])[:, None, None]

    class Maps(nn.Module):
        def __init__(self, constant: bool) -> None:
            super().__init__()
            self.constant = constant

        def forward(self, x: Tensor) -> Tensor:
            return means + (0 if self.constant else 1) * x

    batches = [torch.randn(6, 3, size, size) for size in (8, 12)]
    assert fidelity(Maps(False), Maps(True), batches).error == pytest.approx(1, rel=1e-2)


def test_padding_counts_in_no_number() -> None:
    y = torch.randn(4, 5, 3)
    mask = torch.ones(4, 5, dtype=torch.long)
    mask[:, 3:] = 0
    other = y + 0.1 * torch.randn_like(y)
    batch = {"x": torch.zeros(4, 5), "attention_mask": mask}
    loud, loud_other = y.clone(), other.clone()
    loud[:, 3:], loud_other[:, 3:] = 50, -50
    plain, padded = (
        fidelity(Given(a), Given(b), [batch]) for a, b in ((y, other), (loud, loud_other))
    )
    assert padded.to_dict() == plain.to_dict()


def test_a_large_output_does_not_drown_a_small_one() -> None:
    large, boxes = torch.randn(20, 500), 0.01 * torch.randn(20, 4)
    x = torch.zeros(20, 2)
    dense = Given({"logits": large, "boxes": boxes})
    result = fidelity(dense, Given({"logits": large, "boxes": 2 * boxes}), [x])
    assert result.error == result.errors["boxes"] == pytest.approx(1, rel=0.2)
    assert result.errors["logits"] == 0
    assert "'boxes'" in result.verdict
    assert result.divergence == pytest.approx(0, abs=1e-9)


def test_labels_that_are_the_inputs_are_of_the_next_token() -> None:
    ids = torch.randint(10, (6, 7))
    y = torch.randn(6, 7, 10)
    expected = nn.functional.cross_entropy(y[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert fidelity(Given(y), Given(y), [(ids, ids)]).loss == pytest.approx(float(expected))
    shifted_labels = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], 1)
    as_given = fidelity(Given(y), Given(y), [(ids, shifted_labels)])
    assert as_given.loss == pytest.approx(float(expected))


def test_labels_that_are_no_class_are_ignored() -> None:
    y, labels = torch.randn(8, 4), torch.arange(8) % 4
    expected = nn.functional.cross_entropy(y[1:], labels[1:])
    labels[0] = 255
    result = fidelity(Given(y), Given(y + torch.randn_like(y)), [(X, labels)])
    assert result.dense_loss == pytest.approx(float(expected), rel=1e-5)
    assert result.divergence is not None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    y, labels = torch.randn(8, 4), torch.arange(8) % 4
    result = fidelity(Given(y), Given(y), [(X, labels.to(dtype))])
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(y, labels)), rel=1e-5)


def test_regressions_are_ranked_by_error() -> None:
    y = torch.randn(8, 3)
    near, far = (fidelity(Given(y), Given(y + shift), [X]) for shift in (0.1, 1.0))
    assert near.divergence is None  # a shift of all would be none of probabilities
    assert near.distance < far.distance


def test_among_equal_divergences_the_error_decides_and_none_is_negative() -> None:
    y = 30 * torch.randn(8, 3)
    labels = torch.zeros(8, dtype=torch.long)
    near, far = (fidelity(Given(y), Given(y + shift), [(X, labels)]) for shift in (0.0, 1.0))
    assert far.divergence is not None
    assert far.divergence >= 0
    assert near.order < far.order


def test_masked_classes_in_both_count_zero() -> None:
    y = torch.randn(8, 4)
    y[:, 0] = -math.inf
    other = y + 0.01
    result = fidelity(Given(y), Given(other), [(X, torch.ones(8, dtype=torch.long))])
    assert 0 < result.error < 0.1
    assert result.divergence == pytest.approx(0, abs=1e-6)
    assert result.cosine == pytest.approx(1, abs=1e-2)
    other[:, 1] = -math.inf
    worse = fidelity(Given(y), Given(other), [(X, torch.ones(8, dtype=torch.long))])
    assert worse.error == math.inf
    content = json.dumps(worse.to_dict(), allow_nan=False)
    assert json.loads(content)["error"] is None


def test_scalars_beside_outputs_and_alone() -> None:
    y = torch.randn(8, 3)
    assert fidelity(Given((y, y.mean())), Given((y, y.mean())), [X]).error == 0
    assert fidelity(Given(y.mean()), Given(2 * y.mean()), [X]).error == pytest.approx(1)


def test_huge_losses_are_no_overflow() -> None:
    y = torch.zeros(8, 5, 10)
    y[..., 0] = 1e4
    labels = torch.ones(8, 5, dtype=torch.long)
    assert "perplexity" in fidelity(Given(y), Given(y), [(torch.zeros(8, 5), labels)]).verdict


def test_a_model_that_does_not_run_is_named_with_its_inputs() -> None:
    net = nn.Linear(6, 4)
    with pytest.raises(InvalidArgumentError, match=r"a batch of \(8, 2\) torch.float32: mat1"):
        fidelity(net, net, [X])


def test_tokens_are_judged_and_described_by_their_divergence() -> None:
    fidelity = Fidelity(100, 0.05, 0.99, tokens=True, agreement=0.89, divergence=0.01)
    assert str(fidelity).startswith("probabilities of tokens diverge by 0.01 nats, outputs differ")
    assert str(fidelity).endswith("nearly the same")
