"""Results print as words and numbers, not as the fields of their classes."""

from pathlib import Path

import torch
from torch import nn

import tensorpress as tp


def test_results_are_readable(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10)), torch.randn(128, 40)
    encoded = tp.encode(net, tmp_path / "a.tpz", bits=4)
    assert str(encoded).startswith(f"{encoded.bytes:,} bytes, ")
    history = tp.finetune(net, [(x, torch.arange(128) % 10)], epochs=2)
    assert str(history).splitlines()[1].startswith("epoch 2: train loss ")
    inspection = tp.inspect(tmp_path / "a.tpz")
    assert "0.weight" in str(inspection).splitlines()[1]
    chosen = tp.plan(net, scheme="channel_svd", ranks=4)
    assert (
        repr(chosen) == f"<Plan {chosen.id}: 2 layers by channel_svd, 1,540 parameters become 480>"
    )
    fidelity = tp.fidelity(net, net, [x])
    assert str(fidelity) == fidelity.verdict
    compressed = tp.compress(net, "params=50%", [x], refine=False)
    results = [encoded, history, inspection, chosen, compressed, compressed.trial]
    for result in results:
        text = repr(result)
        assert text.startswith(f"<{type(result).__name__} ") or isinstance(result, tp.EncodeResult)
        assert len(text) < 200
        assert "=(" not in text


def test_layers_that_stay_dense_have_a_reason(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 1, groups=8),
        nn.Conv2d(8, 16, 3),
        nn.Flatten(),
        nn.Linear(16 * 4, 2),
    )
    x = torch.randn(2, 3, 6, 6)
    chosen = tp.plan(net, x, scheme="tucker2", ranks=0.5, skip=["0"])
    pressed = tp.press(net, chosen)
    content = tp.report(net, pressed, example_inputs=x, plan=chosen)
    assert content["unpressed"]["0"] == "skipped by '0'"
    reasons = tp.report(net, pressed, example_inputs=x)["unpressed"]
    assert reasons["0"] == "it could be pressed, but the plan leaves it dense"
    assert "one input and one output channel" in reasons["1"] or "smaller" in reasons["1"]
