"""Preprocessing of images, as the model requires or as options specify."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from torch import Tensor, nn

from tensorpress.data.images import ImageSet
from tensorpress.errors import InvalidArgumentError, first_line
from tensorpress.models.hugging_face import transformers_library
from tensorpress.models.names import parse_name
from tensorpress.models.optional_imports import require
from tensorpress.models.torchvision import mend_torchvision, torchvision_models
from tensorpress.models.zoo import NETWORKS, Network, Preprocess
from tensorpress.utils.config_parsing import parse_yaml, validate

SIZE = 224
"""The usual size of the images of photo classifiers."""

Side = Annotated[int, Field(ge=1, le=1 << 14)]
Channels = Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]


class ImageOptions(BaseModel):
    """The size of a model's images, and the mean and standard deviation of their channels.

    An image is resized so that its shorter side has ``resize`` pixels, or by default so that it
    just covers ``size``. Its centre is cropped, pixels are scaled to the range 0 to 1, ``mean`` is
    subtracted, and the result is divided by ``std``, both with one value per channel.

    Examples
    --------
    >>> options = ImageOptions(size=28, mean=(0.5,), std=(0.5,))
    >>> str(options), ImageOptions.parse(str(options)) == options
    ('size: 28, mean: [0.5], std: [0.5]', True)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Side | tuple[Side, Side]
    mean: Channels
    std: Channels
    resize: Side | None = None

    @model_validator(mode="after")
    def _check(self) -> "ImageOptions":
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError("mean and std need one value for grey images, three for colour")
        if self.resize is not None and self.resize < min(self.sides):
            raise ValueError(f"resize {self.resize} is below size {self.size}")
        return self

    def __str__(self) -> str:
        """Return the options as text for `parse`."""
        values = self.model_dump(mode="json", exclude_none=True)
        return ", ".join(f"{key}: {value}" for key, value in values.items())

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @staticmethod
    def parse(text: str) -> "ImageOptions":
        """Parse options from YAML, with or without braces.

        Examples
        --------
        >>> ImageOptions.parse("size: 28, mean: [0], std: [1]").sides
        (28, 28)
        """
        braces = text.lstrip().startswith("{")
        return validate(ImageOptions, parse_yaml(text if braces else f"{{{text}}}"), "preprocess")


@dataclass(frozen=True)
class Transform:
    """A function from an image to an input, and its description.

    Images are Pillow images, or uint8 pixels of shape (C, H, W) or (C, T, H, W).
    """

    apply: Callable[[Any], Tensor]
    text: str


def network_options(net: Network) -> ImageOptions | None:
    """Return the image options of a network; None for clips and for networks of the zoo."""
    if net.name in NETWORKS or len(net.input_shape) != 3:
        return None
    _, height, width = net.input_shape
    size = height if height == width else (height, width)
    return ImageOptions(size=size, mean=net.preprocess.mean, std=net.preprocess.std)


def suggest_options(image: Any = None) -> ImageOptions:
    """Return options to suggest for images such as this one; smaller images keep their size.

    Examples
    --------
    >>> str(suggest_options(torch.zeros(1, 8, 8, dtype=torch.uint8)))
    'size: 8, mean: [0.5], std: [0.5]'
    """
    height, width, channels = SIZE, SIZE, 3
    if is_image(image):
        pixels = isinstance(image, Tensor)
        height, width = image.shape[-2:] if pixels else image.size[::-1]
        channels = len(image) if pixels else len(image.getbands())
    size = SIZE if min(height, width) >= SIZE else height if height == width else (height, width)
    if channels < 3:  # grey, with or without transparency
        return ImageOptions(size=size, mean=(0.5,), std=(0.5,))
    return ImageOptions(size=size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def find_transform(
    name: str | None, model: nn.Module, options: ImageOptions | None = None, image: Any = None
) -> Transform:
    """Return the preprocessing of images for a model.

    Networks of the zoo define it. For timm it is in the model's configuration, for torchvision it
    belongs to the first published weights, and for Transformers it is the image processor next to
    the weights.

    Parameters
    ----------
    name : str or None
        The name of the model, as in `tensorpress.models.load_model`.
    model : nn.Module
        The model.
    options : ImageOptions, optional
        Options that take precedence over the model's preprocessing.
    image : Pillow image or Tensor, optional
        An image, for which the error suggests options.

    Raises
    ------
    InvalidArgumentError
        If the preprocessing is unknown.
    TensorPressError
        If a package is missing; the message names it.

    Examples
    --------
    >>> transform = find_transform("lenet5", nn.Identity())
    >>> transform.apply(torch.zeros(1, 8, 8, dtype=torch.uint8)).shape
    torch.Size([1, 28, 28])
    """
    if options is not None:
        preprocess = Preprocess(255, options.mean, options.std)
        return pixel_transform(preprocess, options.sides, options.resize)
    parsed = None if name is None else parse_name(name)
    net = NETWORKS.get(name or "")
    if net is not None:
        return pixel_transform(net.preprocess, net.input_shape[1:])
    if getattr(model, "pretrained_cfg", None):
        return _timm_transform(model)
    if parsed is not None and parsed.origin == "torchvision":
        return _torchvision_transform(parsed.name)
    if parsed is not None and parsed.origin == "hf":
        return _processor(parsed.name, image)
    raise InvalidArgumentError(
        f"the preprocessing of images for {name or 'this model'} is unknown: set --preprocess "
        f"'{suggest_options(image)}'"
    )


def pixel_transform(
    preprocess: Preprocess, size: tuple[int, ...], resize: int | None = None
) -> Transform:
    """Return a transform by tensor operations: resize, crop, scale and normalize."""

    def apply(image: Any) -> Tensor:
        pixels = to_pixels(image, len(preprocess.mean))
        return preprocess(fit_pixels(pixels, size, resize)[None])[0]

    mean, std = (", ".join(f"{x:g}" for x in x) for x in (preprocess.mean, preprocess.std))
    crop = f"{resize} → " if resize else ""
    shape = "×".join(map(str, size))
    text = f"{crop}{shape}, pixels over {preprocess.scale:g}, minus {mean}, over {std}"
    return Transform(apply, text)


def to_pixels(image: Any, channels: int) -> Tensor:
    """Return a Pillow image or pixels as uint8 of shape (channels, H, W).

    Raises
    ------
    InvalidArgumentError
        If it is neither.
    """
    if hasattr(image, "convert"):
        array = np.array(image.convert("L" if channels == 1 else "RGB"))
        return torch.from_numpy(array.reshape(*array.shape[:2], channels)).movedim(-1, 0)
    if not is_image(image):
        raise InvalidArgumentError(
            "expected a Pillow image or uint8 pixels of shape (C, H, W), got "
            f"{describe_content(image)}"
        )
    pixels: Tensor = image
    if len(pixels) == channels:
        return pixels
    if len(pixels) == 1:
        return pixels.expand(channels, *pixels.shape[1:])
    weights = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's "L"
    grey: Tensor = torch.tensordot(weights, pixels.float(), 1).round().to(torch.uint8)
    return grey[None]


def fit_pixels(pixels: Tensor, size: tuple[int, ...], resize: int | None = None) -> Tensor:
    """Resize the shorter side of an image and crop the centre; clips keep their size."""
    height, width = pixels.shape[-2:]
    if pixels.shape[1:] == size and resize is None:
        return pixels
    images = ImageSet(pixels[None], torch.zeros(1, dtype=torch.int64))
    if pixels.ndim != 3 or len(size) != 2:
        return images.resize(*size).images[0]  # which raises the error
    scale = max(size[0] / height, size[1] / width)
    scale = scale if resize is None else max(scale, resize / min(height, width))
    sides = round(height * scale), round(width * scale)
    top, left = (sides[0] - size[0]) // 2, (sides[1] - size[1]) // 2
    resized = images.resize(*sides).images[0]
    return resized[:, top : top + size[0], left : left + size[1]]


def is_image(content: object) -> bool:
    """Return whether a content is an image or a clip, as pixels or a Pillow image."""
    if isinstance(content, Tensor):
        return content.dtype == torch.uint8 and content.ndim in (3, 4) and len(content) in (1, 3)
    return hasattr(content, "convert") and hasattr(content, "getbands")


def describe_content(content: object) -> str:
    """Return type and shape of a content for messages."""
    if isinstance(content, Tensor):
        return f"a Tensor {tuple(content.shape)} {content.dtype}"
    return type(content).__name__


def _to_pillow(image: Any, channels: int = 3) -> Any:
    if isinstance(image, Tensor):
        mend_torchvision()
        functional = require("torchvision.transforms.functional", "preprocessing of images")
        image = functional.to_pil_image(to_pixels(image, channels))
    return image.convert("L" if channels == 1 else "RGB")


def _timm_transform(model: nn.Module) -> Transform:
    mend_torchvision()
    timm = require("timm.data", "a model of timm")
    config = timm.resolve_data_config({}, model=model)
    transform = timm.create_transform(**config)
    channels = config["input_size"][0]
    return Transform(
        lambda image: transform(_to_pillow(image, channels)), f"by timm: {_one_line(transform)}"
    )


def _torchvision_transform(name: str) -> Transform:
    published = torchvision_models().get_model_weights(name)
    transform = next(iter(published)).transforms()
    return Transform(
        lambda image: transform(_to_pillow(image)), f"by torchvision: {_one_line(transform)}"
    )


def _processor(place: str, image: Any) -> Transform:
    transformers = transformers_library()
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(place)
    except Exception as error:  # of the library
        reason = first_line(error)
        raise InvalidArgumentError(
            f"hf:{place} has no image processor ({reason}): set --preprocess "
            f"'{suggest_options(image)}'"
        ) from error

    def apply(content: Any) -> Tensor:
        pixels: Tensor = processor(images=_to_pillow(content), return_tensors="pt")["pixel_values"]
        return pixels[0]

    return Transform(apply, f"by transformers: {type(processor).__name__}")


def _one_line(transform: object) -> str:
    return " ".join(repr(transform).split()).replace("( ", "(").replace(" )", ")")
