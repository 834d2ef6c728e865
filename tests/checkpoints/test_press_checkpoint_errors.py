import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import gpt2, interrupt_after_shards, llama, save_sharded, transformers
from torch import nn

from tensorpress.checkpoints import load_checkpoint, press_checkpoint
from tensorpress.errors import (
    CorruptFileError,
    DataNotFoundError,
    InvalidArgumentError,
    ModelMismatchError,
)
from tensorpress.planning import plan

HOW = {"scheme": "channel_svd", "ranks": 0.3}


@pytest.fixture
def source(tmp_path):
    return save_sharded(llama(), tmp_path / "dense")


def change(source, name, edit):
    """Change one stored tensor; None takes it out."""
    index = json.loads((source / "model.safetensors.index.json").read_text())
    path = source / index["weight_map"][name]
    tensors = load_file(path)
    tensors[name] = edit(tensors[name])
    save_file({key: value for key, value in tensors.items() if value is not None}, path)


def test_what_is_no_checkpoint_is_named(source, tmp_path):
    with pytest.raises(DataNotFoundError, match="not a folder"):
        press_checkpoint(tmp_path / "nowhere", tmp_path / "out", **HOW)
    (source / "config.json").unlink()
    with pytest.raises(DataNotFoundError, match=r"no config\.json .* model="):
        press_checkpoint(source, tmp_path / "out", **HOW)
    assert not (tmp_path / "out").exists()


def test_an_architecture_that_transformers_lacks_is_named(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["OurNet"]}))
    with pytest.raises(InvalidArgumentError, match="OurNet"):
        press_checkpoint(source, tmp_path / "out", **HOW)


def test_a_tensor_with_nan_is_named_and_nothing_is_left_of_its_shard(source, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    change(source, name, lambda values: values.fill_(float("nan")))
    message = r"model-0000.*safetensors: layer 'model\.layers\.1\.mlp\.up_proj'.*NaN"
    with pytest.raises(InvalidArgumentError, match=message):
        press_checkpoint(source, tmp_path / "out", **HOW)
    assert not list((tmp_path / "out").glob(".*.tmp"))
    with pytest.raises(DataNotFoundError):
        load_checkpoint(tmp_path / "out")


def test_tensors_that_the_model_lacks_or_that_are_missing_are_named(source, tmp_path):
    path = source / "model-00001-of-99999.safetensors"
    save_file({"model.extra": torch.ones(1)}, path)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.extra"] = path.name
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelMismatchError, match=r"LlamaForCausalLM: it has 'model\.extra'"):
        press_checkpoint(source, tmp_path / "out", **HOW)
    del index["weight_map"]["model.extra"], index["weight_map"]["model.norm.weight"]
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    for shard in set(index["weight_map"].values()):
        tensors = load_file(source / shard)
        tensors.pop("model.norm.weight", None)
        save_file(tensors, source / shard)
    with pytest.raises(ModelMismatchError, match=r"it has no 'model\.norm\.weight'"):
        press_checkpoint(source, tmp_path / "out", **HOW)


def test_names_of_an_older_layout_come_with_advice(tmp_path):
    library = transformers()
    config = library.MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    library.MixtralForCausalLM(config).save_pretrained(tmp_path / "dense")
    with pytest.raises(ModelMismatchError, match="save_original_format=False"):
        press_checkpoint(tmp_path / "dense", tmp_path / "out", **HOW)


def test_another_shape_is_named(source, tmp_path):
    change(source, "model.norm.weight", lambda values: torch.ones(5))
    with pytest.raises(ModelMismatchError, match=r"'model\.norm\.weight' has shape \(5,\)"):
        press_checkpoint(source, tmp_path / "out", **HOW)


def test_tied_tensors_that_differ_are_named(tmp_path):
    gpt2().save_pretrained(tmp_path / "dense")
    path = tmp_path / "dense" / "model.safetensors"
    stored = load_file(path)
    save_file({**stored, "lm_head.weight": stored["transformer.wte.weight"] + 1}, path)
    with pytest.raises(ModelMismatchError, match="differ, but the model ties them"):
        press_checkpoint(tmp_path / "dense", tmp_path / "out", **HOW)


def test_a_truncated_shard_stops_before_anything_is_written(source, tmp_path):
    path = sorted(source.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match=path.name):
        press_checkpoint(source, tmp_path / "out", **HOW)
    assert not (tmp_path / "out").exists()


def test_a_plan_or_what_it_is_made_from_but_not_both(source, tmp_path):
    chosen = plan(llama(), **HOW)
    with pytest.raises(InvalidArgumentError, match="either a plan"):
        press_checkpoint(source, tmp_path / "out", chosen, ranks=0.5)
    with pytest.raises(InvalidArgumentError, match="either a plan"):
        press_checkpoint(source, tmp_path / "out", chosen, example_inputs=torch.ones(1, 4))
    with pytest.raises(TypeError, match="rank"):
        press_checkpoint(source, tmp_path / "out", rank=0.5)


def test_a_plan_of_another_model_names_the_layer(source, tmp_path):
    chosen = plan(nn.Sequential(nn.Linear(20, 20)), scheme="channel_svd", ranks=2)
    with pytest.raises(ModelMismatchError, match="'0'"):
        press_checkpoint(source, tmp_path / "out", plan=chosen)


def test_a_shared_core_needs_the_whole_model(source, tmp_path):
    with pytest.raises(InvalidArgumentError, match="share one core"):
        press_checkpoint(source, tmp_path / "out", scheme="scada_tucker", budget="params=50%")


def test_another_pressing_in_the_same_folder_is_refused(source, tmp_path):
    interrupt_after_shards(source, tmp_path / "out", **HOW)
    with pytest.raises(InvalidArgumentError, match="'plan' is"):
        press_checkpoint(source, tmp_path / "out", scheme="channel_svd", ranks=0.5)
    other = plan(llama(), scheme="channel_svd", ranks=0.5)
    with pytest.raises(InvalidArgumentError, match="'plan' is"):
        press_checkpoint(source, tmp_path / "out", plan=other)


def test_what_cannot_be_planned_may_be_asked_for_in_other_words(source, tmp_path):
    with pytest.raises(InvalidArgumentError, match="mpl"):
        press_checkpoint(source, tmp_path / "out", targets=["*mpl*"], **HOW)
    chosen = press_checkpoint(source, tmp_path / "out", targets=["*mlp*"], **HOW)
    assert {layer.name.split(".")[3] for layer in chosen.layers} == {"mlp"}


def test_a_failed_call_leaves_nothing(source, tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "new", tmp_path / "empty"):
        with pytest.raises(InvalidArgumentError, match="out of reach"):
            press_checkpoint(source, out, budget="params=0.1%")
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_folder_of_something_else_is_not_touched(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InvalidArgumentError, match="has other files"):
        press_checkpoint(source, tmp_path / "out", **HOW)
    with pytest.raises(InvalidArgumentError, match="another output folder"):
        press_checkpoint(source, source / "out", **HOW)
    with pytest.raises(InvalidArgumentError, match="is not a folder"):
        press_checkpoint(source, tmp_path / "out" / "mine.txt", **HOW)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_pressed_shard_that_is_gone_is_an_error(source, tmp_path):
    interrupt_after_shards(source, tmp_path / "out", **HOW)
    next((tmp_path / "out").glob("*.safetensors")).unlink()
    with pytest.raises(CorruptFileError, match="it was written: delete"):
        press_checkpoint(source, tmp_path / "out", **HOW)
