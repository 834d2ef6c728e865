import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformers import DENSE, MODELS, bert, decoder, llama, outputs, pressed, transformers
from torch import nn

from tensorpress.checkpoints import load_checkpoint, press_checkpoint, save_checkpoint
from tensorpress.errors import ModelMismatchError, TensorPressError
from tensorpress.planning import plan
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.press.press import press
from tensorpress.press.unpress import unpress


def save_in_one_file(model, dense, folder):
    save_checkpoint(model, folder)


def save_by_transformers_in_shards(model, dense, folder):
    model.save_pretrained(folder, max_shard_size="12KB")


def press_shards(model, dense, folder):
    source = folder.with_name("dense")
    dense.save_pretrained(source, max_shard_size="12KB")
    press_checkpoint(source, folder, plan_from_model(model))


SAVES = [save_in_one_file, save_by_transformers_in_shards, press_shards]


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_loaded_is_the_pressed_model_to_the_last_bit(tmp_path, name, save):
    dense = MODELS[name]()
    model = pressed(dense)
    save(model, dense, tmp_path / "out")
    sharded = save is not save_in_one_file
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) is sharded
    loaded = type(dense).from_pretrained(tmp_path / "out")
    state, expected = loaded.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert torch.equal(outputs(loaded), outputs(model))
    head, table = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    assert (head.weight is table.weight) == (
        dense.get_output_embeddings().weight is dense.get_input_embeddings().weight
    )
    assert not loaded.training
    assert torch.equal(outputs(load_checkpoint(tmp_path / "out")), outputs(model))


@pytest.mark.parametrize("scheme", ["tensor_train", "tt_weight", "low_rank_sparse", "ada_tucker"])
def test_every_form_of_a_layer_is_loaded(tmp_path, scheme):
    dense = llama()
    options = {"budget": "params=70%"} if scheme == "ada_tucker" else {"ranks": 3}
    model = press(dense, plan(dense, scheme=scheme, skip=DENSE, **options))
    save_checkpoint(model, tmp_path / "out")
    loaded = transformers().AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert plan_from_model(loaded).id == plan_from_model(model).id
    assert torch.equal(outputs(loaded), outputs(model))


def test_stacked_experts_are_loaded(tmp_path):
    dense = decoder("Mixtral", num_local_experts=4, num_experts_per_tok=2)
    model = press(dense, plan(dense, scheme="svd_weight", ranks=3, skip=DENSE))
    if "model.layers.0.mlp.experts.down_proj" not in [
        x.name for x in plan_from_model(model).layers
    ]:
        pytest.skip("this version of transformers does not stack experts")
    save_checkpoint(model, tmp_path / "out")
    library = transformers()
    loaded = library.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(outputs(loaded), outputs(model))
    base = library.AutoModel.from_pretrained(tmp_path / "out")
    assert len(plan_from_model(base).layers) == len(plan_from_model(model).layers)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    del tensors["model.layers.0.mlp.experts.parametrizations.down_proj.original1"]
    save_file(tensors, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelMismatchError, match=r"lacks .*parametrizations\.down_proj\.original1"):
        library.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(pressed(llama()), tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize(
    "options",
    [{"device_map": "cpu"}, {"device_map": "auto"}, {"low_cpu_mem_usage": True}],
    ids=str,
)
def test_options_of_loading_change_nothing(folder, options):
    loaded = transformers().AutoModelForCausalLM.from_pretrained(folder, **options)
    assert torch.equal(outputs(loaded), outputs(pressed(llama())))


def test_the_type_of_all_values_can_be_chosen(folder):
    auto = transformers().AutoModelForCausalLM
    loaded = auto.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    expected = pressed(llama()).bfloat16()
    assert torch.equal(outputs(loaded), outputs(expected))
    assert loaded.float().dtype == torch.float32
    assert auto.from_pretrained(folder).half().dtype == torch.float16


def test_a_half_model_is_loaded_as_it_was_saved(tmp_path):
    model = pressed(llama()).bfloat16()
    model.config.dtype = "float32"
    save_checkpoint(model, tmp_path / "out")
    auto = transformers().AutoModelForCausalLM
    loaded = auto.from_pretrained(tmp_path / "out", torch_dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(outputs(loaded), outputs(model))


def test_the_base_of_a_model_and_a_model_on_a_base(tmp_path, folder):
    library = transformers()
    base = library.AutoModel.from_pretrained(folder)
    model = pressed(llama())
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        expected = model.model(tokens).last_hidden_state
        assert torch.equal(base(tokens).last_hidden_state, expected)
    base.save_pretrained(tmp_path / "base")
    again, info = library.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"lm_head.weight"}
    assert torch.equal(again.model(tokens).last_hidden_state, expected)


def test_a_pressed_head_stays_out_of_a_model_without_one(tmp_path):
    dense = bert()
    model = press(dense, plan(dense, scheme="channel_svd", ranks=3, skip=["*embeddings*"]))
    layers = [layer.name for layer in plan_from_model(model).layers]
    assert any(name.startswith("cls.") for name in layers)
    save_checkpoint(model, tmp_path / "out")
    kind = transformers().AutoModelForSequenceClassification
    loaded = kind.from_pretrained(tmp_path / "out", num_labels=3)
    names = [layer.name for layer in plan_from_model(loaded).layers]
    assert names == [name for name in layers if not name.startswith("cls.")]


def test_text_is_generated_as_in_memory(folder):
    loaded = transformers().AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.arange(3, 9)[None]
    options = {"max_new_tokens": 5, "do_sample": False}
    expected = pressed(llama()).generate(tokens, **options)
    assert torch.equal(loaded.generate(tokens, **options), expected)


def test_a_pressed_model_is_saved_again_and_a_dense_one_as_dense(tmp_path, folder):
    auto = transformers().AutoModelForCausalLM
    loaded = auto.from_pretrained(folder)
    loaded.model.norm.weight.data.add_(1)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(outputs(auto.from_pretrained(tmp_path / "again")), outputs(loaded))
    dense = unpress(loaded)
    dense.save_pretrained(tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert not {"quantization_config", "transformers_weights"} & config.keys()
    assert torch.equal(outputs(auto.from_pretrained(tmp_path / "dense")), outputs(dense))


def make_unmarked(folder):
    """Write the config as it was before it said how the model is pressed."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"], config["transformers_weights"]
    path.write_text(json.dumps(config))


def test_a_folder_of_an_older_version_is_loaded(folder):
    make_unmarked(folder)
    loaded = transformers().AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(outputs(loaded), outputs(pressed(llama())))


@pytest.mark.parametrize("older", [True, False])
def test_a_config_that_does_not_know_of_pressing_does_no_harm(folder, older):
    if older:
        make_unmarked(folder)
    library = transformers()
    kind = library.LlamaForCausalLM
    loaded = kind.from_pretrained(folder, config=llama().config)
    assert torch.equal(outputs(loaded), outputs(pressed(llama())))


def test_a_missing_factor_is_an_error(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.0.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelMismatchError, match=r"lacks 'model\.layers\.1\.mlp\.up_proj\.0\.w"):
        transformers().AutoModelForCausalLM.from_pretrained(folder)


def test_a_dense_model_is_loaded_and_saved_as_ever(tmp_path):
    library = transformers()
    dense = llama()
    dense.save_pretrained(tmp_path)
    loaded, info = library.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(outputs(loaded), outputs(dense))
    assert not hasattr(loaded.config, "quantization_config")


def test_models_of_others_have_no_config(tmp_path):
    net = nn.Sequential(nn.Linear(20, 30))
    model = press(net, plan(net, scheme="channel_svd", ranks=2))
    (tmp_path / "dense").mkdir()
    save_file(net.state_dict(), tmp_path / "dense" / "model.safetensors")
    (tmp_path / "dense" / "config.json").write_text('{"architecture": "net"}')
    press_checkpoint(tmp_path / "dense", tmp_path / "out", plan_from_model(model), model=net)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"architecture": "net"}


def test_versions_that_would_leave_values_at_random_are_refused(folder, monkeypatch):
    from tensorpress.hugging_face import quantizer  # imports transformers

    auto = transformers().AutoModelForCausalLM
    monkeypatch.setattr(quantizer, "OLDEST", (99, 1))
    with pytest.raises(TensorPressError, match=r"needs transformers 99\.1 or newer, got"):
        auto.from_pretrained(folder)
    assert torch.equal(outputs(load_checkpoint(folder)), outputs(pressed(llama())))


@pytest.mark.parametrize("save", SAVES[:2])
def test_tensors_have_the_names_of_modules_where_transformers_5_renames_them(tmp_path, save):
    library = transformers()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = library.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, num_hidden_layers=1, num_labels=5, **sizes
    )
    dense = library.ViTForImageClassification(config).eval()
    model = press(dense, plan(dense, scheme="channel_svd", ranks=4))
    save(model, dense, tmp_path / "out")
    images = torch.randn(2, 1, 8, 8)
    expected = model(images).logits
    for loaded in (
        load_checkpoint(tmp_path / "out"),
        library.ViTForImageClassification.from_pretrained(tmp_path / "out"),
    ):
        assert torch.equal(loaded.eval()(images).logits, expected)


def edit_config(folder, **entries):
    """Write entries into the config of a folder; those that are `...` are deleted."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: content[key] for key in content if content[key] is not ...}))


def edit_layers(folder, edit):
    """Change the layers of the plan in the config of a folder."""
    entry = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit(entry["plan"]["layers"])
    edit_config(folder, quantization_config=entry)


@pytest.mark.parametrize(
    "entry",
    [None, {"quant_method": "tensorpress"}, {"quant_method": "tensorpress", "plan": None}],
)
def test_the_plan_file_stands_in_for_an_entry_without_a_plan(folder, entry):
    edit_config(folder, quantization_config=entry)
    library = transformers()
    for options in ({}, {"config": library.AutoConfig.from_pretrained(folder)}):
        for kind in (library.AutoModelForCausalLM, library.LlamaForCausalLM):
            loaded = kind.from_pretrained(folder, **options)
            assert torch.equal(outputs(loaded), outputs(pressed(llama())))
    loaded.save_pretrained(folder.parent / "again")
    again = library.AutoModelForCausalLM.from_pretrained(folder.parent / "again")
    assert torch.equal(outputs(again), outputs(pressed(llama())))
    (folder / "plan.json").unlink()
    with pytest.raises(ModelMismatchError, match=r"plan\.json"):
        library.AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(TensorPressError, match=r"has no plan\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize("kind", ["AutoModelForCausalLM", "AutoModel", "LlamaForCausalLM"])
def test_a_config_whose_entry_is_none_does_no_harm(folder, kind):
    library = transformers()
    config = library.AutoConfig.from_pretrained(folder)
    config.quantization_config = None
    loaded = getattr(library, kind).from_pretrained(folder, config=config)
    assert plan_from_model(loaded).layers
    assert config.quantization_config is None
    (folder / "plan.json").unlink()
    edit_config(folder, quantization_config=...)
    with pytest.raises(ModelMismatchError, match=r"has factors of .*layers\.0.*plan\.json"):
        getattr(library, kind).from_pretrained(folder, config=config)


def lose_all(layers):
    layers.clear()


def lose_one(layers):
    del layers["model.layers.1.mlp.up_proj"]


def rename_one(layers):
    layers["model.layers.1.mlp.upproj"] = layers.pop("model.layers.1.mlp.up_proj")


def rename_to_a_head(layers):
    layers["score"] = layers.pop("model.layers.1.mlp.up_proj")


@pytest.mark.parametrize("edit", [lose_all, lose_one, rename_one, rename_to_a_head])
@pytest.mark.parametrize("kind", ["AutoModelForCausalLM", "AutoModel"])
def test_a_plan_without_a_layer_of_the_files_is_an_error(folder, kind, edit):
    edit_layers(folder, edit)
    with pytest.raises(ModelMismatchError, match=r"has factors of .*layers\.[01]\.mlp.*plan\.json"):
        getattr(transformers(), kind).from_pretrained(folder)
    edit_config(folder, quantization_config=None)
    loaded = getattr(transformers(), kind).from_pretrained(folder)
    assert len(plan_from_model(loaded).layers) == len(plan_from_model(pressed(llama())).layers)


def test_a_base_that_lost_a_layer_is_an_error_for_the_whole_model(tmp_path, folder):
    library = transformers()
    library.AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "base")
    edit_layers(tmp_path / "base", lambda layers: layers.pop("layers.1.mlp.up_proj"))
    for kind in (library.AutoModel, library.AutoModelForCausalLM):
        with pytest.raises(ModelMismatchError, match=r"has factors of .*layers\.1\.mlp\.up_proj'"):
            kind.from_pretrained(tmp_path / "base")


@pytest.mark.parametrize("lost", [False, True])
def test_a_pressed_head_cannot_be_tied(tmp_path, lost):
    dense = llama()
    model = press(dense, plan(dense, scheme="channel_svd", ranks=3, skip=["*embed*"]))
    save_checkpoint(model, tmp_path / "out")
    edit_config(tmp_path / "out", tie_word_embeddings=True)
    if lost:
        edit_layers(tmp_path / "out", lambda layers: layers.pop("lm_head"))
    auto = transformers().AutoModelForCausalLM
    with pytest.raises(ModelMismatchError, match="has factors" if lost else "tie_word_embeddings"):
        auto.from_pretrained(tmp_path / "out")
    if not lost:
        edit_config(tmp_path / "out", tie_word_embeddings=False)
        assert torch.equal(outputs(auto.from_pretrained(tmp_path / "out")), outputs(model))


def test_another_head_of_a_dense_model_may_be_random(tmp_path):
    """The names of its tensors resemble those of factors."""
    library = transformers()
    config = library.RobertaConfig(**bert().config.to_dict() | {"model_type": "roberta"})
    library.RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    loaded = library.RobertaForTokenClassification.from_pretrained(tmp_path)
    assert not plan_from_model(loaded).layers
