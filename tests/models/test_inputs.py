import pytest
import torch
from libraries import needed
from torch import nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.models import check_inputs, default_inputs, load_model, parse_input
from tensorpress.models.hugging_face import transformers_library
from tensorpress.models.zoo import NETWORKS


def test_an_input_is_read_from_text() -> None:
    result = parse_input("2x3x4", nn.Identity())
    assert (result.shape, result.dtype) == ((2, 3, 4), torch.float32)
    assert result.std() > 0.5
    assert parse_input("5:bfloat16", nn.Identity()).dtype == torch.bfloat16
    assert torch.equal(result, parse_input("2x3x4", nn.Identity()))


def test_tokens_are_below_every_vocabulary() -> None:
    model = nn.ModuleList([nn.Embedding(90, 2), nn.Embedding(7, 2)])
    tokens = parse_input("4x200:int64", model)
    assert (int(tokens.min()), int(tokens.max())) == (0, 6)


def test_inputs_are_on_the_device_of_the_model() -> None:
    assert parse_input("2x3", nn.Linear(3, 2, device="meta")).is_meta


@pytest.mark.parametrize("text", ["", "3x", "x3", "0x3", "2,3", "-1x3", "3 x 4", "3xfloat"])
def test_text_that_is_no_input_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is not an input"):
        parse_input(text, nn.Identity())


def test_an_unknown_type_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidArgumentError, match="'int46': did you mean 'int64'"):
        parse_input("3:int46", nn.Identity())


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_the_zoo_take_their_default_inputs(name: str) -> None:
    model = load_model(name, meta=True)
    inputs = default_inputs(name, model)
    assert inputs is not None
    check_inputs(model, inputs)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchvision:efficientnet_b1", (1, 3, 240, 240)),
        ("torchvision:r3d_18", (1, 3, 16, 112, 112)),
        ("timm:test_vit", (1, 3, 160, 160)),
    ],
)
def test_models_of_libraries_take_their_default_inputs(name: str, shape: tuple[int, ...]) -> None:
    needed("timm")
    model = load_model(name, meta=True)
    inputs = default_inputs(name, model)
    assert inputs is not None
    assert inputs[0].shape == shape
    check_inputs(model, inputs)


def test_models_of_transformers_get_their_main_input() -> None:
    needed("transformers")
    transformers = transformers_library()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = transformers.BertModel(transformers.BertConfig(**sizes, max_position_embeddings=9))
    image = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32, patch_size=16))
    for model, shape in ((text, (1, 9)), (image, (1, 3, 32, 32))):
        inputs = default_inputs("hf:somewhere", model)
        assert inputs is not None
        assert inputs[0].shape == shape
        check_inputs(model, inputs)


def test_inputs_of_other_models_are_unknown() -> None:
    assert default_inputs("torch.nn:Linear", nn.Linear(3, 2)) is None


def test_a_scripted_model_takes_inputs() -> None:
    scripted = torch.jit.script(nn.Linear(3, 2))
    check_inputs(nn.Sequential(scripted), [torch.zeros(1, 3)])
    with pytest.raises(InvalidArgumentError, match="fails on the input 1x4"):
        check_inputs(scripted, [torch.zeros(1, 4)])


def test_the_layer_that_does_not_take_an_input_is_named() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 2)))
    with pytest.raises(InvalidArgumentError, match=r"2x3: layer '1\.1' \(Linear.*got 2x4: mat1"):
        check_inputs(net, [torch.zeros(2, 3)])
    with pytest.raises(InvalidArgumentError, match=r"inputs 2x3, 2x1:int64: .*positional"):
        check_inputs(net, [torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.int64)])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    assert net.training
