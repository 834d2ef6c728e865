from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from tensorpress.data.transforms import (
    ImageOptions,
    find_transform,
    fit_pixels,
    is_image,
    to_pixels,
)
from tensorpress.errors import InvalidArgumentError
from tensorpress.models import load_model
from tensorpress.models.torchvision import mend_torchvision

PIXELS = torch.randint(0, 256, (3, 40, 30), generator=torch.Generator().manual_seed(0)).byte()
OPTIONS = ImageOptions(size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def test_options_are_yaml_with_or_without_braces() -> None:
    text = "size: [20, 30], resize: 40, mean: [0.5], std: [2]"
    options = ImageOptions.parse(text)
    assert options == ImageOptions.parse(f"{{{text}}}")
    assert (options.sides, options.resize, options.mean, options.std) == (
        *((20, 30), 40),
        *((0.5,), (2.0,)),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size: 8, mean: [0]", "std: Field required"),
        ("size: 8, mean: [0], std: [1], sides: 3", "sides: unknown key"),
        ("size: 0, mean: [0], std: [1]", "size"),
        ("size: 8, mean: [0, 0], std: [1, 1]", "one value for grey images"),
        ("size: 8, mean: [0], std: [1], resize: 4", "resize 4 is below size 8"),
    ],
)
def test_options_with_mistakes(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        ImageOptions.parse(text)


def test_options_scale_and_normalize_the_middle() -> None:
    flat = torch.full((3, 16, 24), 51, dtype=torch.uint8)
    flat[:, :, :4] = flat[:, :, -4:] = 255  # what is cropped
    result = find_transform(None, nn.Identity(), OPTIONS).apply(flat)
    assert result.shape == (3, 8, 8)
    assert torch.allclose(result[..., 2:-2], torch.tensor((51 / 255 - 0.5) / 0.25))


def test_a_network_of_the_zoo_gets_images_as_in_its_training() -> None:
    transform = find_transform("lenet5", nn.Identity())
    grey = PIXELS[:1, :28, :28]
    assert torch.equal(transform.apply(grey), grey.float() / 256)
    assert transform.apply(PIXELS).shape == (1, 28, 28)
    clip = torch.zeros(1, 8, 16, 16, dtype=torch.uint8)
    assert find_transform("clips3d", nn.Identity()).apply(clip).shape == clip.shape
    with pytest.raises(InvalidArgumentError, match="cannot be resized"):
        find_transform("clips3d", nn.Identity()).apply(clip[:, :4])


def test_pixels_of_images_in_any_form() -> None:
    image = pytest.importorskip("PIL.Image")
    picture = image.fromarray(PIXELS.movedim(0, -1).numpy())
    assert torch.equal(to_pixels(picture, 3), PIXELS)
    grey = to_pixels(picture, 1)
    assert grey.shape == (1, 40, 30)
    assert int((grey.int() - to_pixels(PIXELS, 1).int()).abs().max()) <= 1
    assert torch.equal(to_pixels(PIXELS[:1], 3), PIXELS[:1].expand(3, -1, -1))
    with pytest.raises(InvalidArgumentError, match="expected a Pillow image or uint8"):
        to_pixels(torch.zeros(3, 4, 4), 3)
    assert is_image(picture)
    assert not is_image(PIXELS.float())
    assert not is_image("picture")


def test_the_middle_of_an_image_whose_shorter_side_was_resized() -> None:
    assert fit_pixels(PIXELS, (40, 30)) is PIXELS
    assert torch.equal(fit_pixels(PIXELS, (20, 10), 30), PIXELS[:, 10:30, 10:20])
    assert fit_pixels(PIXELS, (15, 15)).shape == (3, 15, 15)
    assert fit_pixels(PIXELS, (60, 50), 45).shape == (3, 60, 50)


def test_what_says_nothing_needs_options() -> None:
    with pytest.raises(InvalidArgumentError, match="set --preprocess 'size: 224"):
        find_transform("own:net", nn.Identity())
    with pytest.raises(InvalidArgumentError, match=r"'size: \[40, 30\], mean: \[0.485, 0.456, 0"):
        find_transform("own:net", nn.Identity(), image=PIXELS)


def needs(package: str) -> Any:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}")


@needs("timm")
def test_a_model_of_timm_says_it() -> None:
    name = "timm:tf_efficientnet_lite0"
    transform = find_transform(name, load_model(name, meta=True))
    assert "CenterCrop(size=(224, 224))" in transform.text
    white = torch.full((3, 300, 200), 255, dtype=torch.uint8)
    assert torch.equal(transform.apply(white), torch.ones(3, 224, 224))  # (1 − 0.5) / 0.5


@needs("torchvision")
def test_a_model_of_torchvision_says_it() -> None:
    transform = find_transform("torchvision:inception_v3", nn.Identity())
    black = torch.zeros(1, 400, 400, dtype=torch.uint8)
    expected = -torch.tensor([0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225])
    result = transform.apply(black)
    assert result.shape == (3, 299, 299)
    assert torch.allclose(result.mean((1, 2)), expected, atol=1e-5)


@needs("transformers")
def test_a_folder_of_transformers_says_it_or_is_asked(tmp_path: Any) -> None:
    mend_torchvision()
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(InvalidArgumentError, match="has no image processor"):
        find_transform(f"hf:{tmp_path}", nn.Identity())
    processor = transformers.ViTImageProcessor(size={"height": 20, "width": 20})
    processor.save_pretrained(tmp_path)
    transform = find_transform(f"hf:{tmp_path}", nn.Identity())
    white = torch.full((3, 50, 60), 255, dtype=torch.uint8)
    assert torch.allclose(transform.apply(white), torch.ones(3, 20, 20), atol=1e-5)
