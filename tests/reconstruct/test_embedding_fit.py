"""Embeddings, fitted to how often their vectors are looked up."""

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.calibrate.batches import collect_batches
from tensorpress.planning.plan import Plan
from tensorpress.reconstruct.embedding_fit import record_lookups, vector_shares
from tensorpress.reconstruct.layerwise import Reconstruct
from tensorpress.reconstruct.unfitted import unfitted_layers


class Sentences(nn.Module):
    """Words of two kinds, of which data have hardly any of the second, and a mask of padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(200, 24)
        with torch.no_grad():  # each kind in a subspace of its own, the second the larger
            self.words.weight[:40, 8:] = 0
            self.words.weight[40:, :8] = 0
            self.words.weight[40:] *= 2
        self.head = nn.Linear(24, 6)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x: Tensor = self.head(self.words(input_ids))
        return x if attention_mask is None else x * attention_mask[..., None]


def plan_words(net: nn.Module, rank: int = 8) -> Plan:
    return tp.plan(net, scheme="channel_svd", ranks=rank, targets=["words"])


def error(model: nn.Module, dense: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - dense(x)).norm() / dense(x).norm())


@pytest.mark.parametrize("how", ["linear", "inputs", "refit", "nonlinear"])
def test_vectors_that_data_look_up_stay_and_others_give_way(how: Reconstruct) -> None:
    net, frequent = Sentences().eval(), torch.randint(40, (30, 12))
    pressed = tp.press(net, plan_words(net), calibration=[frequent], reconstruct=how)
    assert unfitted_layers(pressed) == {}
    other = torch.randint(40, (30, 12))
    assert error(tp.press(net, plan_words(net)), net, other) > 0.5
    if how == "refit":  # of its weight's factors the last alone moves
        assert error(pressed, net, other) < 1.0
    else:
        assert error(pressed, net, other) < 0.1


def test_what_outputs_do_not_depend_on_gives_way() -> None:
    net, x = Sentences().eval(), torch.randint(200, (300, 12))
    with torch.no_grad():
        net.head.weight[:, 8:] = 0  # of all vectors the first eight numbers alone matter
        net.words.weight[:, 8:] *= 3
        net.words.weight[:, :8] = torch.randn(200, 8)
    pressed = tp.press(net, plan_words(net), calibration=[x])
    assert error(pressed, net, x) < 0.1
    assert error(tp.press(net, plan_words(net)), net, x) > 0.5


def test_without_gradients_the_counts_alone_decide() -> None:
    class Detached(Sentences):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            with torch.no_grad():
                return super().forward(input_ids)

    net, frequent = Detached().eval(), torch.randint(40, (30, 12))
    pressed = tp.press(net, plan_words(net), calibration=[frequent])
    assert error(pressed, net, frequent) < 0.1


def test_the_layers_after_it_are_fitted_to_what_it_leaves() -> None:
    net, x = Sentences().eval(), torch.randint(200, (80, 12))
    plan = tp.plan(net, scheme="channel_svd", ranks=3, overrides={"words": {"ranks": 8}})
    pressed = tp.press(net, plan, calibration=[x])
    assert error(pressed, net, x) < error(tp.press(net, plan), net, x)


def test_padding_is_not_counted() -> None:
    net = Sentences()
    ids, mask = torch.tensor([[3, 3, 5, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
    batches = collect_batches([{"input_ids": ids, "attention_mask": mask}], net)
    counts = record_lookups(net, ["words"], batches)["words"].counts
    assert counts[[0, 3, 5]].tolist() == [0, 2, 1]


def test_all_calls_are_counted() -> None:
    class Twice(Sentences):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(input_ids) + super().forward(input_ids + 1)

    net = Twice()
    [lookups] = record_lookups(
        net, ["words"], collect_batches([torch.tensor([[1]])] * 2, net)
    ).values()
    assert lookups.counts[:4].tolist() == [0, 2, 2, 0]


def test_shares_of_vectors_sum_to_one() -> None:
    for counts in ([5.0, 1.0, 0.0], [1.0, 1.0, 0.0], [2.0, 3.0, 4.0], [7.0, 3.0, 0.0]):
        shares = vector_shares(torch.tensor(counts).double())
        assert float(shares.sum()) == pytest.approx(1)
        assert bool((shares > 0).all())


def test_a_calibration_says_that_it_has_no_counts() -> None:
    net = Sentences()
    x = torch.randint(40, (30, 12))
    pressed = tp.press(net, plan_words(net), calibration=tp.Calibration.collect(net, [x]))
    assert unfitted_layers(pressed) == {"words": "a Calibration does not count look-ups"}
