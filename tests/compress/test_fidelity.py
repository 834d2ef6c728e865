import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from tensorpress.compress.fidelity import fidelity
from tensorpress.errors import InvalidArgumentError


def shifted(net: nn.Linear, by: float) -> nn.Linear:
    other = nn.Linear(net.in_features, net.out_features)
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        other.bias += by
    return other


def test_of_itself_a_model_is_perfect() -> None:
    net = nn.Linear(6, 4)
    result = fidelity(net, net, [torch.randn(32, 6)])
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
    assert fidelity(net, other, [inputs]).divergence == pytest.approx(float(expected), rel=1e-4)


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
