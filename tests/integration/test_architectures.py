"""Networks that others wrote, in tiny: pressed, run, exported, written to files."""

import importlib.util
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

import tensorpress as tp
from tensorpress.errors import TensorPressError
from tensorpress.export.onnx import export_onnx
from tensorpress.export.onnx_check import check_onnx, relative_difference
from tensorpress.measure import count_macs, count_params
from tensorpress.models import load_model, torchvision_models
from tensorpress.planning import plan_from_model
from tensorpress.schemes.press_layer import unpress_layer
from tensorpress.schemes.pressed_layer import Pressed
from tensorpress.utils.module_tree import locate_weight

CLOSE = 1e-4
TOKENS = 50


def imported(package):
    """Import a package, or skip; torchvision, which the others import, may need help to load."""
    top = package.partition(".")[0]
    if importlib.util.find_spec(top) is None:
        pytest.skip(f"needs {top}")
    with suppress(TensorPressError):
        torchvision_models()
    return importlib.import_module(package)


def dense_blocks():
    densenet = imported("torchvision.models.densenet")
    return densenet.DenseNet(8, (2, 2), 16, num_classes=5)


def windows():
    swin = imported("torchvision.models.swin_transformer")
    return swin.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=5)


def attention():
    models = imported("torchvision.models")
    return models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5)


def of_timm():
    imported("timm")
    return load_model("timm:test_efficientnet,num_classes=5")


def bert():
    library = imported("transformers")
    config = library.BertConfig(
        vocab_size=TOKENS,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    return library.BertForSequenceClassification(config)


def gpt2():
    library = imported("transformers")
    config = library.GPT2Config(
        vocab_size=TOKENS,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=16,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return library.GPT2LMHeadModel(config)


def llama(tied=False):
    library = imported("transformers")
    config = library.LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    return library.LlamaForCausalLM(config)


def t5():
    library = imported("transformers")
    config = library.T5Config(vocab_size=TOKENS, d_model=32, d_ff=64, d_kv=16, num_layers=1)
    return library.T5EncoderModel(config)


def images():
    return torch.randn(2, 3, 32, 32)


def tokens():
    return torch.randint(TOKENS, (2, 6))


NETWORKS = {
    "dense blocks": (dense_blocks, images),
    "windows": (windows, images),
    "attention": (attention, images),
    "of timm": (of_timm, images),
    "bert": (bert, tokens),
    "gpt2": (gpt2, tokens),
    "llama": (llama, tokens),
    "t5": (t5, tokens),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def built(name):
    torch.manual_seed(0)
    build, inputs = NETWORKS[name]
    return build().eval(), inputs()


def first_output(model, x):
    with torch.no_grad():
        output = model(x)
    return output if isinstance(output, torch.Tensor) else output[0]


def differ(model, other, x):
    return relative_difference(first_output(model, x), first_output(other, x))


@every_network
def test_layers_at_full_rank_compute_what_the_dense_ones_do(name):
    model, x = built(name)
    plan = tp.plan(model, x, scheme="channel_svd", ranks=0.3)
    exact = [
        replace(layer, ranks=tp.scheme(layer.scheme).largest_ranks(layer.spec))
        for layer in plan.layers
    ]
    pressed = tp.press(model, replace(plan, layers=tuple(exact)))
    assert len(exact) > 2
    assert differ(pressed, model, x) < CLOSE


@every_network
@pytest.mark.parametrize("scheme", ["channel_svd", "tensor_train", "tt_weight", "svd_weight"])
def test_a_pressed_network_is_the_network_of_the_weights_it_stands_for(name, scheme):
    model, x = built(name)
    plan = tp.plan(model, x, scheme=scheme, ranks=2)
    pressed = tp.press(model, plan)
    assert count_params(pressed) == plan.params < plan.dense_params
    if tp.scheme(scheme).form == "layer":  # the others multiply as much as the dense network
        assert count_macs(pressed, [x]) == plan.macs < plan.dense_macs
    for layer in plan.layers:
        (module, key), (dense, _) = (locate_weight(net, layer.name) for net in (pressed, model))
        with torch.no_grad():
            getattr(dense, key).copy_(getattr(module, key))
    assert differ(pressed, model, x) < CLOSE


def test_an_exported_network_computes_the_same_at_another_batch(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model, x = built("gpt2")
    pressed = tp.press(model, tp.plan(model, x, scheme="channel_svd", ranks=0.2))
    file = export_onnx(pressed, x, tmp_path / "model.onnx")
    assert file.any_batch
    for inputs in (x, torch.cat([x, x[:1]])):
        assert check_onnx(pressed, inputs, file.path) < CLOSE


def test_a_compiled_network_with_rebuilt_weights_is_one_graph():
    model, x = built("attention")
    pressed = tp.press(model, tp.plan(model, scheme="tt_weight", ranks=2))
    torch.compiler.reset()
    compiled = torch.compile(pressed, backend="eager", fullgraph=True)
    assert differ(compiled, pressed, x) < CLOSE


def test_a_plan_of_gpt2_is_the_same_after_a_file(tmp_path):
    model, x = built("gpt2")
    plan = tp.plan(model, x, scheme="channel_svd", ranks=0.3)
    plan.save(tmp_path / "plan.yaml")
    again = tp.Plan.read(tmp_path / "plan.yaml")
    assert again.layers == plan.layers
    assert differ(tp.press(model, again), tp.press(model, plan), x) == 0


@pytest.mark.parametrize("scheme", ["channel_svd", "tensor_train", "tt_weight"])
def test_a_file_of_a_pressed_gpt2_fills_another(scheme, tmp_path):
    model, x = built("gpt2")
    plan = tp.plan(model, scheme=scheme, ranks=2, targets=["re:.*(attn|mlp).*"])
    pressed = tp.press(model, plan)
    assert len(plan.layers) == 8
    tp.save(pressed, tmp_path / "gpt2.tpz")  # quantized
    torch.manual_seed(1)
    other = gpt2().eval()
    again = tp.load(tmp_path / "gpt2.tpz", model=other)
    assert plan_from_model(again).layers == plan_from_model(pressed).layers
    assert differ(again, pressed, x) < 0.1 < differ(gpt2().eval(), pressed, x)


def test_an_embedding_tied_to_the_head_is_kept_and_an_untied_one_pressed():
    model, x = llama(tied=True), tokens()
    plan = tp.plan(model, x, scheme="channel_svd", ranks=0.3)
    assert "tied to 'lm_head.weight'" in plan.unpressed["model.embed_tokens"]
    pressed = tp.press(model, plan)
    assert pressed.lm_head.weight is pressed.model.embed_tokens.weight
    names = {layer.name for layer in tp.plan(llama(), x, scheme="channel_svd", ranks=0.3).layers}
    assert {"model.embed_tokens", "lm_head"} <= names


def test_layers_that_others_read_the_weight_of_stay_and_may_be_rebuilt():
    model, x = built("windows")
    layers = [f"features.{place}.0.attn.{name}" for place in (1, 3) for name in ("qkv", "proj")]
    plan = tp.plan(model, x, scheme="channel_svd", ranks=2)
    assert [plan.unpressed[name] for name in layers] == ["another module reads its weight"] * 4
    rebuilt = {layer.name for layer in tp.plan(model, x, scheme="tt_weight", ranks=2).layers}
    assert rebuilt.issuperset(layers)


def test_a_network_that_reads_the_weight_of_pressed_layers_computes_the_same():
    model, x = built("windows")
    pressed = tp.press(model, tp.plan(model, scheme="channel_svd", ranks=2))
    assert isinstance(pressed.features[1][0].attn.qkv, Pressed)
    assert differ(pressed, unpressed(pressed), x) < CLOSE


def unpressed(model):
    dense = deepcopy(model)
    for name, module in list(dense.named_modules()):
        if isinstance(module, Pressed):
            dense.set_submodule(name, unpress_layer(module))
    return dense


def test_attention_of_torch_keeps_its_output_layer_dense():
    model, x = built("attention")
    plan = tp.plan(model, x, scheme="channel_svd", ranks=0.3)
    kept = [reason for name, reason in plan.unpressed.items() if name.endswith("out_proj")]
    assert len(kept) == 2
    assert all("nn.MultiheadAttention reads its weight directly" in reason for reason in kept)
