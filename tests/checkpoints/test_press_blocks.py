"""Checkpoints pressed block by block on calibration data."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import (
    MODELS,
    contents,
    gpt2,
    interrupt_after_shards,
    llama,
    logits,
    save_sharded,
    transformers,
)
from torch import nn

from tensorpress.checkpoints import load_checkpoint, press_checkpoint
from tensorpress.checkpoints.block_scores import GRADIENTS
from tensorpress.checkpoints.press_shard import ShardPress
from tensorpress.checkpoints.streamed_model import StreamedModel
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning import plan
from tensorpress.press.press import press
from tensorpress.sensitivity.kfac import kfac_scores

HOW = {"scheme": "channel_svd", "ranks": 0.5}


def tokens(seed: int = 0, examples: int = 4, batches: int = 6) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 96, (examples, 24), generator=random) for _ in range(batches)]


def qwen2() -> nn.Module:
    """Biases of queries, keys and values alone."""
    library = transformers()
    torch.manual_seed(0)
    config = library.Qwen2Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return library.Qwen2ForCausalLM(config).eval()


def deviation(model: nn.Module, dense: nn.Module) -> float:
    """Relative error of logits on other tokens."""
    [test] = tokens(1, examples=32, batches=1)
    with torch.no_grad():
        expected = dense(test).logits
        return float((model(test).logits - expected).norm() / expected.norm())


@pytest.mark.parametrize("build", [lambda: llama(tied=True), gpt2, qwen2])
def test_layers_are_fitted_as_they_are_in_memory(
    tmp_path: Path, build: Callable[[], nn.Module]
) -> None:
    dense = build()
    source = save_sharded(dense, tmp_path / "dense")
    chosen = press_checkpoint(source, tmp_path / "out", calibration=tokens(), **HOW)
    result = load_checkpoint(tmp_path / "out")
    assert torch.allclose(
        logits(result), logits(press(dense, chosen, calibration=tokens())), atol=1e-3
    )
    assert deviation(result, dense) < 0.95 * deviation(press(dense, chosen), dense)
    assert not (tmp_path / "out" / ".press").exists()


@pytest.mark.parametrize("name", MODELS)
def test_a_budget_is_divided_by_curvature(tmp_path: Path, name: str) -> None:
    dense, data = MODELS[name](), tokens(batches=20)
    source = save_sharded(dense, tmp_path / "dense")
    chosen = press_checkpoint(source, tmp_path / "out", budget="params=85%", calibration=data)
    assert chosen.params <= 0.85 * chosen.dense_params
    # By other labels drawn, but of the same probabilities
    expected = plan(dense, budget="params=85%", allocation=kfac_scores(dense, data, of="loss"))
    ranks = {layer.name: layer.ranks[0] for layer in chosen.layers}
    others = {layer.name: layer.ranks[0] for layer in expected.layers}
    same = ranks.keys() & others.keys()
    assert len(same) >= 0.6 * max(len(ranks), len(others))
    assert sum(abs(ranks[x] - others[x]) <= 2 for x in same) >= 0.8 * len(same)
    assert deviation(load_checkpoint(tmp_path / "out"), dense) < deviation(
        press(dense, plan(dense, budget="params=85%")), dense
    )


def test_padding_is_not_looked_at(tmp_path: Path) -> None:
    dense, chosen = llama(tied=True), None
    source = save_sharded(dense, tmp_path / "dense")
    outputs = []
    for place, filler in enumerate((1, 50)):
        data = []
        for ids in tokens():
            mask = torch.ones_like(ids)
            mask[:, 15:] = 0
            data.append({"input_ids": ids.where(mask == 1, filler), "attention_mask": mask})
        out = tmp_path / f"out{place}"
        chosen = press_checkpoint(source, out, budget="params=85%", calibration=data)
        outputs.append((chosen, logits(load_checkpoint(out))))
    assert outputs[0][0] == outputs[1][0]
    assert torch.allclose(outputs[0][1], outputs[1][1], atol=1e-4)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_stays_and_gives_nearly_the_same(tmp_path: Path, half: torch.dtype) -> None:
    dense = llama(tied=True)
    sources = {
        "single": save_sharded(dense.to(half).float(), tmp_path / "single"),
        "half": save_sharded(dense.to(half), tmp_path / "half"),
    }
    results = {}
    for name, source in sources.items():
        out = tmp_path / f"{name}-out"
        press_checkpoint(source, out, calibration=tokens(), **HOW)
        results[name] = load_checkpoint(out)
    assert results["half"].model.layers[0].mlp.up_proj[0].weight.dtype == half
    dense = dense.float()
    errors = {name: deviation(model.float(), dense) for name, model in results.items()}
    assert errors["half"] == pytest.approx(errors["single"], rel=0.1)


def test_layers_outside_of_the_blocks_are_pressed_as_well(tmp_path: Path) -> None:
    dense = llama()
    source = save_sharded(dense, tmp_path / "dense")
    chosen = press_checkpoint(source, tmp_path / "out", calibration=tokens(), **HOW)
    assert {"model.embed_tokens", "lm_head"} <= {layer.name for layer in chosen.layers}
    result = load_checkpoint(tmp_path / "out")
    # The head makes up for what was lost before it, of which the weight alone knows nothing.
    by_weight = load_checkpoint(tmp_path / "out")
    by_weight.lm_head = press(dense, chosen).lm_head
    assert deviation(result, dense) < deviation(by_weight, dense)


def test_stopped_at_any_file_it_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "dense"
    llama(tied=True).save_pretrained(source)
    how = {"budget": "params=80%", "calibration": tokens(batches=2)}
    count, stop = 0, 10_000
    fsync = os.fsync

    def stopping(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == stop:
            raise KeyboardInterrupt
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", stopping)
    press_checkpoint(source, tmp_path / "whole", **how)
    expected, files = contents(tmp_path / "whole"), count
    assert files > 20
    for stop in range(1, files + 1):
        count, out = 0, tmp_path / f"out{stop}"
        with pytest.raises(KeyboardInterrupt):
            press_checkpoint(source, out, **how)
        press_checkpoint(source, out, **how)
        assert contents(out) == expected, stop


def die(stop: int, source: Path, out: Path, how: dict[str, Any]) -> None:
    """Press in a process of its own, and kill it where it has written its n-th file."""

    def work() -> None:
        count, fsync = 0, os.fsync

        def killed(descriptor: int) -> None:
            nonlocal count
            count += 1
            if count == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        os.fsync = killed
        press_checkpoint(source, out, **how)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def leftovers(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.suffix == ".tmp" or path.name == GRADIENTS]


def test_killed_at_any_file_it_goes_on_and_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "dense"
    llama(tied=True).save_pretrained(source)
    how = {"budget": "params=80%", "calibration": tokens(batches=2)}
    files, fsync = 0, os.fsync

    def counting(descriptor: int) -> None:
        nonlocal files
        files += 1
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counting)
        press_checkpoint(source, tmp_path / "whole", **how)
    assert leftovers(tmp_path / "whole") == []
    expected = contents(tmp_path / "whole")
    for stop in range(1, files + 1, 2):
        out = tmp_path / f"out{stop}"
        die(stop, source, out, how)
        assert leftovers(out)
        press_checkpoint(source, out, **how)
        assert leftovers(out) == []
        assert contents(out) == expected


def test_another_budget_for_what_is_begun_is_refused_before_layers_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = save_sharded(gpt2(), tmp_path / "dense"), tmp_path / "out"
    data = tokens(batches=2)
    interrupt_after_shards(source, out, budget="params=80%", calibration=data)
    before = contents(out)
    monkeypatch.setattr(StreamedModel, "open", fail)
    for budget, batches in (("params=70%", data), ("params=80%", data[:1])):
        with pytest.raises(InvalidArgumentError, match="other options or other"):
            press_checkpoint(source, out, budget=budget, calibration=batches)
    assert press_checkpoint(source, out, budget="params=80%", calibration=data).params > 0
    assert before.items() < contents(out).items()


def test_a_budget_that_gave_no_plan_may_be_replaced(tmp_path: Path) -> None:
    source, out = save_sharded(gpt2(), tmp_path / "dense"), tmp_path / "out"
    data = tokens(batches=2)
    with pytest.raises(InvalidArgumentError, match="budget"):
        press_checkpoint(source, out, budget="params=0.1%", calibration=data)
    press_checkpoint(source, out, budget="params=80%", calibration=data)
    assert leftovers(out) == []
    press_checkpoint(source, tmp_path / "whole", budget="params=80%", calibration=data)
    assert contents(out) == contents(tmp_path / "whole")


def fail(*_: object) -> None:
    raise AssertionError("the model was run")


SCRIPT = """
import sys, torch
sys.path[:0] = {paths!r}
from test_press_blocks import HOW, tokens
from tensorpress.checkpoints import press_checkpoint
press_checkpoint({source!r}, {out!r}, calibration=tokens(), **HOW)
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])  # KiB, at most
"""


def run_script(source: Path, out: Path) -> "subprocess.Popen[str]":
    values = {"paths": [str(Path(__file__).parent)], "source": str(source), "out": str(out)}
    command = [sys.executable, "-c", SCRIPT.format(**values)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = save_sharded(qwen2(), tmp_path / "dense")
    press_checkpoint(source, tmp_path / "whole", calibration=tokens(), **HOW)
    out = tmp_path / "out"
    process = run_script(source, out)
    while not list((out / ".press" / "blocks").glob("model-layers-0*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "plan.json").exists()
    press_checkpoint(source, out, calibration=tokens(), **HOW)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak of memory")
def test_memory_holds_a_block_and_not_the_model(tmp_path: Path) -> None:
    library = transformers()
    peaks = {}
    for layers in (2, 12):
        config = library.LlamaConfig(
            vocab_size=96,
            hidden_size=512,
            intermediate_size=1024,
            num_hidden_layers=layers,
            num_attention_heads=4,
        )
        source = tmp_path / f"dense{layers}"
        library.LlamaForCausalLM(config).save_pretrained(source)
        output, _ = run_script(source, tmp_path / f"out{layers}").communicate()
        peaks[layers] = 1024 * int(output.split()[-1])
    block = 4 * (4 * 512 * 512 + 3 * 512 * 1024)
    assert peaks[12] - peaks[2] < 5 * block  # and not the ten that there are more


def test_other_data_do_not_go_on_with_what_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_sharded(llama(), tmp_path / "dense")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ShardPress, "press", stop)
        with pytest.raises(KeyboardInterrupt):
            press_checkpoint(source, tmp_path / "out", calibration=tokens(), **HOW)
    with pytest.raises(InvalidArgumentError, match="other settings: 'data'"):
        press_checkpoint(source, tmp_path / "out", calibration=tokens(5), **HOW)


class Scaled(nn.Module):
    """A chain of blocks behind a buffer that is in the file."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(24, 24)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.scale
        for layer in self.layers:
            x = layer(x)
        return x


def test_buffers_have_the_values_of_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense, x = Scaled(3.0), torch.randn(500, 24)
    (tmp_path / "dense").mkdir()
    save_file(dense.state_dict(), tmp_path / "dense" / "model.safetensors")
    how = {"scheme": "channel_svd", "ranks": 8, "calibration": list(x.split(100))}
    chosen = press_checkpoint(tmp_path / "dense", tmp_path / "out", model=Scaled(0.0), **how)
    result = load_checkpoint(tmp_path / "out", Scaled(0.0))
    expected = press(dense, chosen, calibration=list(x.split(100)))
    assert torch.allclose(result(x), expected(x), atol=1e-3)


def test_batches_that_the_model_does_not_take_are_named(tmp_path: Path) -> None:
    source = save_sharded(llama(), tmp_path / "dense")
    data = [*tokens(), {"words": torch.zeros(1, 4)}]
    with pytest.raises(InvalidArgumentError, match=r"calibration batch 6: .* words="):
        press_checkpoint(source, tmp_path / "out", calibration=data, **HOW)


class Pair(nn.Module):
    """Two blocks between which something happens."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[1](self.layers[0](x) + 1)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(2))
        self.decoder = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), "has no ModuleList of blocks"),
        (Two(), "blocks in 'encoder' and in 'decoder'"),
        (Pair(), "'layers.1' does not receive the output of the block before it"),
    ],
)
def test_a_model_that_is_no_chain_of_blocks_is_refused_with_advice(
    tmp_path: Path, model: nn.Module, message: str
) -> None:
    (tmp_path / "dense").mkdir()
    save_file(model.state_dict(), tmp_path / "dense" / "model.safetensors")
    data = [torch.randn(4, 8)]
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        press_checkpoint(tmp_path / "dense", tmp_path / "out", model=model, calibration=data, **HOW)
    assert "press the loaded model by tensorpress.press(model" in str(caught.value)


def test_what_does_not_go_with_calibration(tmp_path: Path) -> None:
    source = save_sharded(llama(), tmp_path / "dense")
    data = {"calibration": tokens()}
    with pytest.raises(InvalidArgumentError, match="in one process"):
        press_checkpoint(source, tmp_path / "out", processes=2, **data, **HOW)
    with pytest.raises(
        InvalidArgumentError, match="among ranks of channel_svd only, got tt_weight"
    ):
        press_checkpoint(source, tmp_path / "a", scheme="tt_weight", budget="params=80%", **data)


def test_other_schemes_take_part(tmp_path: Path) -> None:
    dense = llama(tied=True)
    source = save_sharded(dense, tmp_path / "dense")
    overrides = {
        "*.q_proj": {"scheme": "tt_weight", "ranks": 8},
        "*.down_proj": {"scheme": "tensor_train", "ranks": 12},
        "*.up_proj": {"scheme": "channel_pruning", "ranks": 24},
    }
    chosen = plan(dense, **HOW, overrides=overrides)
    press_checkpoint(source, tmp_path / "out", plan=chosen, calibration=tokens())
    result = load_checkpoint(tmp_path / "out")
    assert deviation(result, dense) < deviation(press(dense, chosen), dense)
    content = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert content["layers"]["model.layers.0.self_attn.q_proj"]["scheme"] == "tt_weight"
