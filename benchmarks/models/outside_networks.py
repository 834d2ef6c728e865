"""Networks that others wrote: how each is built, its input, and the schemes to press it by."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.models import load_model, torchvision_models

VOCABULARY = 4000


@dataclass(frozen=True)
class Network:
    """How a network is built and pressed.

    ``inductor`` is the scheme at which torch.compile generates code, which takes minutes for deep
    graphs; else its aot_eager traces the same graphs and runs them as they are. ``targets`` keeps
    the decompositions of a benchmark within minutes. ``budget`` is what all schemes together are
    given: Swin's attention, which reads the weights of its layers, cannot be made cheaper.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    schemes: tuple[str, ...]
    inductor: str | None = None
    targets: tuple[str, ...] = ("*",)
    budget: str = "macs=50%"


def awaken(model: nn.Module, inputs: Callable[[], Tensor]) -> nn.Module:
    """Make every layer of a freshly initialized network count, and return it in eval mode.

    Branches start at zero or nearly so, as does a head, and batch norms know nothing of their
    inputs, so that deep signals vanish: the output would be the same whatever the layers were.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name != "bias" and float(parameter.detach().abs().max()) < 1e-4:
                has_layer = isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
                with torch.no_grad():
                    parameter.normal_(0, 0.02) if has_layer else parameter.fill_(1)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None  # the mean over all that follows
        with torch.no_grad():
            model.train()(torch.cat([inputs() for _ in range(4)]))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model.eval()


def named(name: str) -> Callable[[], nn.Module]:
    """Return a function that builds a model by its name."""
    return lambda: load_model(name)


def images(side: int = 64) -> Callable[[], Tensor]:
    """Return a function that draws a batch of two images."""
    return lambda: torch.randn(2, 3, side, side)


def clips() -> Tensor:
    """Draw a batch of two clips."""
    return torch.randn(2, 3, 8, 32, 32)


def tokens() -> Tensor:
    """Draw a batch of two sequences of words."""
    return torch.randint(VOCABULARY, (2, 12))


def transformers() -> Any:
    """Import transformers, which imports torchvision where that is installed."""
    torchvision_models()
    return import_module("transformers")


def bert() -> nn.Module:
    """Build a small BERT with a classifier."""
    library = transformers()
    config = library.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
    )
    return library.BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    """Build a small GPT-2: Conv1D layers, and a head tied to the embedding."""
    library = transformers()
    config = library.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=256,
        n_layer=4,
        n_head=4,
        n_positions=64,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return library.GPT2LMHeadModel(config)


def llama(*, tied: bool) -> nn.Module:
    """Build a small Llama with grouped queries."""
    library = transformers()
    config = library.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    return library.LlamaForCausalLM(config)


def t5() -> nn.Module:
    """Build a small encoder of T5, whose blocks read the dtype of a weight."""
    library = transformers()
    config = library.T5Config(vocab_size=VOCABULARY, d_model=256, d_ff=1024, d_kv=64, num_layers=3)
    return library.T5EncoderModel(config)


CONV = ("tucker2", "channel_svd", "spatial_svd")
MATRIX = ("channel_svd", "tensor_train", "tt_weight")

NETWORKS: dict[str, Network] = {
    "torchvision alexnet": Network(
        named("torchvision:alexnet"),
        images(),
        (*CONV, "cp"),
        "tucker2",
        ("features.*",),
        budget="macs=70%",
    ),
    "torchvision vgg16": Network(
        named("torchvision:vgg16"), images(32), CONV, "tucker2", ("features.*", "classifier.6")
    ),
    "torchvision resnet18": Network(
        named("torchvision:resnet18"), images(), (*CONV, "tensor_train", "tt_conv"), "tucker2"
    ),
    "torchvision resnet50": Network(named("torchvision:resnet50"), images(), CONV),
    "torchvision googlenet": Network(
        named("torchvision:googlenet,init_weights=false"), images(), CONV
    ),
    "torchvision densenet161": Network(named("torchvision:densenet161"), images(32), CONV),
    "torchvision shufflenet_v2_x1_0": Network(
        named("torchvision:shufflenet_v2_x1_0"), images(), (*CONV, "cp"), "tucker2"
    ),
    "torchvision mobilenet_v2": Network(
        named("torchvision:mobilenet_v2"), images(), (*CONV, "tt_weight"), "tucker2"
    ),
    "torchvision convnext_tiny": Network(
        named("torchvision:convnext_tiny"), images(), (*CONV, "tt_weight"), "tucker2"
    ),
    "torchvision swin_t": Network(named("torchvision:swin_t"), images(), MATRIX, budget="macs=80%"),
    "torchvision vit_b_16": Network(
        named("torchvision:vit_b_16,image_size=64"), images(), MATRIX, "channel_svd"
    ),
    "torchvision r3d_18": Network(named("torchvision:r3d_18"), clips, (*CONV, "tensor_train")),
    "torchvision deeplabv3_mobilenet_v3_large": Network(
        named("torchvision:deeplabv3_mobilenet_v3_large,aux_loss=true"), images(), CONV
    ),
    "timm efficientnet_b0": Network(named("timm:efficientnet_b0"), images(), CONV),
    "timm regnety_002": Network(named("timm:regnety_002"), images(), CONV),
    "timm mixer_s32_224": Network(named("timm:mixer_s32_224"), images(224), MATRIX, "channel_svd"),
    "transformers BERT": Network(bert, tokens, (*MATRIX, "tucker2"), "channel_svd"),
    "transformers GPT-2": Network(gpt2, tokens, (*MATRIX, "tucker2"), "channel_svd"),
    "transformers Llama, untied": Network(lambda: llama(tied=False), tokens, MATRIX, "channel_svd"),
    "transformers Llama, tied": Network(lambda: llama(tied=True), tokens, MATRIX),
    "transformers T5 encoder": Network(t5, tokens, MATRIX),
}
"""Every network of the benchmark."""
