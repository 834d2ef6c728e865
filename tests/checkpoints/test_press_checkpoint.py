import json

import pytest
import torch
from safetensors.torch import load_file, save_file
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

import tensorpress.checkpoints.press_shard as shards
from tensorpress.checkpoints import load_checkpoint, press_checkpoint
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning import Plan, plan
from tensorpress.press.press import press


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_pressing_in_memory_gives(tmp_path, name):
    dense = MODELS[name]()
    source = save_sharded(dense, tmp_path / "dense")
    chosen = press_checkpoint(source, tmp_path / "out", scheme="channel_svd", ranks=0.3)
    assert chosen == plan(dense, scheme="channel_svd", ranks=0.3)
    result = load_checkpoint(tmp_path / "out")
    expected = press(dense, chosen)
    assert result.state_dict().keys() == expected.state_dict().keys()
    assert torch.allclose(logits(result), logits(expected), atol=1e-5)
    assert not torch.allclose(logits(result), logits(dense), atol=1e-3)


def test_tied_embeddings_are_kept_with_the_reason(tmp_path):
    source = save_sharded(llama(tied=True), tmp_path / "dense")
    chosen = press_checkpoint(source, tmp_path / "out", scheme="channel_svd", ranks=0.3)
    assert "tied to 'lm_head.weight'" in chosen.unpressed["model.embed_tokens"]
    model = load_checkpoint(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "how",
    [
        {"scheme": "channel_svd", "ranks": "energy:0.8"},
        {"scheme": ["channel_svd", "tt_weight"], "budget": "params=60%"},
        {"scheme": "tensor_train", "ranks": 4, "skip": ["*embed*"]},
        {"scheme": "ada_tucker", "budget": "params=60%"},
    ],
)
def test_rules_that_look_at_weights_read_them_from_the_shards(tmp_path, how):
    dense = llama()
    source = save_sharded(dense, tmp_path / "dense")
    chosen = press_checkpoint(source, tmp_path / "out", **how)
    assert chosen == plan(dense, **how)
    result, expected = load_checkpoint(tmp_path / "out"), press(dense, chosen)
    assert torch.allclose(logits(result), logits(expected), atol=1e-5)


def test_a_budget_of_macs_takes_inputs(tmp_path):
    dense, tokens = llama(), torch.zeros(1, 8, dtype=torch.long)
    source = save_sharded(dense, tmp_path / "dense")
    how = {"scheme": "channel_svd", "budget": "macs=50%"}
    chosen = press_checkpoint(source, tmp_path / "out", example_inputs=tokens, **how)
    assert chosen.macs is not None
    assert chosen.dense_macs is not None
    assert chosen.macs <= 0.5 * chosen.dense_macs


def test_a_plan_made_before_is_followed(tmp_path):
    dense = gpt2()
    source = save_sharded(dense, tmp_path / "dense")
    chosen = plan(dense, scheme="channel_svd", ranks=4, targets=["*c_fc"])
    assert press_checkpoint(source, tmp_path / "out", plan=chosen) == chosen
    assert Plan.read(tmp_path / "out" / "plan.json") == chosen


def test_types_stay_as_they_are(tmp_path):
    dense = llama().bfloat16()
    dense.model.norm.float()
    source = save_sharded(dense, tmp_path / "dense")
    press_checkpoint(source, tmp_path / "out", scheme="channel_svd", ranks=0.3)
    files = TensorFiles(tmp_path / "out")
    assert {name for name, t in files.tensors.items() if t.dtype != torch.bfloat16} == {
        "model.norm.weight"
    }
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.lm_head[0].weight.dtype == torch.bfloat16
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32


def test_other_files_are_copied_and_other_weights_are_not(tmp_path):
    source = save_sharded(llama(), tmp_path / "dense")
    (source / "tokenizer").mkdir()
    (source / "tokenizer" / "words.txt").write_text("a b c")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "pytorch_model.bin.index.json").write_text("{}")
    (source / ".cache").mkdir()
    (source / ".cache" / "x").touch()
    press_checkpoint(source, tmp_path / "out", scheme="channel_svd", ranks=0.3)
    result = contents(tmp_path / "out")
    dense = contents(source)
    copied = {name for name, data in result.items() if dense.get(name) == data}
    assert copied == {"generation_config.json", "tokenizer/words.txt"}
    config, plan = json.loads(result["config.json"]), json.loads(result["plan.json"])
    assert config.pop("quantization_config") == {"quant_method": "tensorpress", "plan": plan}
    assert "import tensorpress" in config.pop("transformers_weights")
    assert config == json.loads(dense["config.json"])
    assert not [name for name in result if ".bin" in name or "cache" in name]
    index = json.loads(result["model.safetensors.index.json"])
    assert set(index["weight_map"].values()) == {n for n in result if n.endswith(".safetensors")}


def test_any_model_in_one_file_can_be_pressed(tmp_path):
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)).eval()
    (tmp_path / "dense").mkdir()
    save_file(dense.state_dict(), tmp_path / "dense" / "model.safetensors")
    with torch.device("meta"):
        empty = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    chosen = press_checkpoint(
        tmp_path / "dense", tmp_path / "out", model=empty, scheme="tucker2", ranks=0.5
    )
    x = torch.randn(1, 3, 8, 8)
    expected = press(dense, chosen)(x)
    assert torch.allclose(load_checkpoint(tmp_path / "out", empty)(x), expected, atol=1e-6)


def test_a_prefix_of_the_base_model_may_be_missing(tmp_path):
    dense = gpt2()
    dense.save_pretrained(tmp_path / "dense")
    path = tmp_path / "dense" / "model.safetensors"
    old = {name.removeprefix("transformer."): t for name, t in load_file(path).items()}
    save_file(old, path)
    chosen = press_checkpoint(tmp_path / "dense", tmp_path / "out", scheme="channel_svd", ranks=0.3)
    expected = logits(press(dense, chosen))
    assert torch.allclose(logits(load_checkpoint(tmp_path / "out")), expected, atol=1e-5)


def test_a_tied_tensor_that_is_stored_twice_is_written_once(tmp_path):
    dense = gpt2()
    dense.save_pretrained(tmp_path / "dense")
    path = tmp_path / "dense" / "model.safetensors"
    stored = load_file(path)
    save_file({**stored, "lm_head.weight": stored["transformer.wte.weight"].clone()}, path)
    press_checkpoint(tmp_path / "dense", tmp_path / "out", scheme="channel_svd", ranks=0.3)
    names = TensorFiles(tmp_path / "out").tensors.keys()
    assert len(names & {"lm_head.weight", "transformer.wte.weight"}) == 1
    load_checkpoint(tmp_path / "out")


def test_experts_in_one_tensor_are_rebuilt_or_stay_dense(tmp_path):
    library = transformers()
    config = library.MixtralConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    torch.manual_seed(0)
    dense = library.MixtralForCausalLM(config).eval()
    dense.save_pretrained(tmp_path / "dense", save_original_format=False)
    chosen = press_checkpoint(tmp_path / "dense", tmp_path / "out", scheme="channel_svd", ranks=0.3)
    assert "can only be rebuilt" in chosen.unpressed["model.layers.0.mlp.experts.gate_up_proj"]
    result = load_checkpoint(tmp_path / "out")
    assert result.model.layers[0].mlp.experts.gate_up_proj.shape == (3, 96, 32)
    assert torch.allclose(logits(result), logits(press(dense, chosen)), atol=1e-5)
    chosen = press_checkpoint(
        tmp_path / "dense", tmp_path / "rebuilt", scheme="svd_weight", ranks=4
    )
    assert "model.layers.0.mlp.experts.gate_up_proj" in {layer.name for layer in chosen.layers}
    result = load_checkpoint(tmp_path / "rebuilt")
    assert torch.allclose(logits(result), logits(press(dense, chosen)), atol=1e-5)


def test_the_same_call_again_does_nothing_twice(tmp_path, monkeypatch):
    source = save_sharded(llama(), tmp_path / "dense")
    how = {"scheme": "channel_svd", "ranks": 0.3}
    press_checkpoint(source, tmp_path / "whole", **how)
    interrupt_after_shards(source, tmp_path / "out", **how)
    monkeypatch.setattr(shards, "press_weight", None)
    press_checkpoint(source, tmp_path / "out", **how)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    with pytest.raises(InvalidArgumentError, match="already has a pressed model"):
        press_checkpoint(source, tmp_path / "out", **how)


@pytest.mark.parametrize("types", [("bfloat16", "float32"), ("float32", "bfloat16")])
@pytest.mark.parametrize("scheme", ["channel_svd", "svd_weight"])
def test_layers_of_two_types_are_pressed(tmp_path, scheme, types):
    weight_type, bias_type = (getattr(torch, name) for name in types)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(60, 50), nn.Linear(50, 10))
    for layer in net:
        layer.weight.data = layer.weight.data.to(weight_type)
        layer.bias.data = layer.bias.data.to(bias_type)
    (tmp_path / "in").mkdir()
    save_file(net.state_dict(), tmp_path / "in" / "model.safetensors")
    press_checkpoint(tmp_path / "in", tmp_path / "out", model=net, scheme=scheme, ranks=0.2)
    in_memory = press(net, plan(net, scheme=scheme, ranks=0.2)).state_dict()
    streamed = load_file(tmp_path / "out" / "model.safetensors")
    assert streamed.keys() == in_memory.keys()
    for name, tensor in in_memory.items():
        assert streamed[name].dtype == tensor.dtype, name
        assert torch.equal(streamed[name], tensor), name


@pytest.mark.parametrize("name", ["0.bias", "1.weight", "2.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_named_wherever_they_are(tmp_path, name, value):
    net = nn.Sequential(nn.Linear(60, 50), nn.LayerNorm(50), nn.Linear(50, 3))
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    state[name].view(-1)[1] = value
    (tmp_path / "in").mkdir()
    save_file(state, tmp_path / "in" / "model.safetensors")
    with pytest.raises(InvalidArgumentError, match=f"{name[0]}.*NaN or infinite"):
        press_checkpoint(
            *(tmp_path / "in", tmp_path / "out"), model=net, scheme="channel_svd", ranks=0.2
        )
    assert not (tmp_path / "out" / "model.safetensors").exists()
