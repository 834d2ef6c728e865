"""Language models of Transformers: pressed by one call, better than by weights, saved and read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.models.hugging_face import transformers_library

pytest.importorskip("transformers")


def llama() -> nn.Module:
    """Return a model of grouped queries, whose head is its embedding."""
    transformers = transformers_library()
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=60,
        tie_word_embeddings=True,
    )
    return _varied(transformers.LlamaForCausalLM(config))


def gpt2() -> nn.Module:
    """Return a model whose Linear layers are Conv1D, with biases."""
    transformers = transformers_library()
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=64)
    return _varied(transformers.GPT2LMHeadModel(config))


def _varied(model: nn.Module) -> nn.Module:
    """Make weights large enough that tokens matter."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                noise = torch.randn(parameter.shape, generator=random)
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
    return model.eval()


@pytest.fixture
def batches() -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(1)
    rows = [torch.randint(60, (8, 24), generator=random) for _ in range(6)]
    return [{"input_ids": ids, "labels": ids} for ids in rows]


@pytest.mark.parametrize("build", [llama, gpt2])
def test_outputs_are_nearer_than_by_weights(build: Any, batches: list[dict[str, Tensor]]) -> None:
    torch.manual_seed(0)
    model = build()
    result = tp.compress(model, "params=80%", batches)
    assert result.plan is not None
    assert {layer.scheme for layer in result.plan.layers} == {"pivoted_svd"}
    assert result.costs["params"][1] <= 0.8 * result.costs["params"][0]
    by_weights = tp.press(model, tp.plan(model, budget="params=80%"))
    other = tp.fidelity(model, by_weights, batches).divergence
    assert result.fidelity is not None
    assert result.fidelity.divergence is not None
    assert other is not None
    assert result.fidelity.divergence < 0.8 * other


def test_projections_of_one_tensor_share_a_moment(batches: list[dict[str, Tensor]]) -> None:
    inputs = tp.LossCurvature.collect(llama(), batches).inputs
    block = "model.layers.0"
    assert inputs[f"{block}.self_attn.q_proj"] is inputs[f"{block}.self_attn.v_proj"]
    assert inputs[f"{block}.mlp.gate_proj"] is inputs[f"{block}.mlp.up_proj"]
    assert inputs[f"{block}.mlp.down_proj"] is not inputs[f"{block}.mlp.up_proj"]


def test_a_compressed_model_is_saved_and_read(
    batches: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    model = llama()
    result = tp.compress(model, "params=80%", batches)
    tp.save_checkpoint(result.model, tmp_path, result.plan)
    loaded = tp.load_checkpoint(tmp_path, model)
    ids = batches[0]["input_ids"]
    torch.testing.assert_close(loaded(ids).logits, result.model(ids).logits)
