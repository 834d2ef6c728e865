import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorpress.data import ImageSet
from tensorpress.errors import InvalidArgumentError


def image_set(count=5, channels=1, side=8):
    generator = torch.Generator().manual_seed(count)
    shape = (count, channels, side, side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), "float32"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "N, C, H, W"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), "labels of 2 images"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(3), r"\(2,\)"),
    ],
)
def test_other_dtypes_and_shapes_are_refused(images, labels, message):
    with pytest.raises(InvalidArgumentError, match=message):
        ImageSet(images, labels)


def test_resizing_to_the_same_size_is_the_same_set():
    images = image_set()
    assert images.resize(8, 8) is images
    clips = ImageSet(images.images[:, :, None], images.labels)
    assert clips.resize(1, 8, 8) is clips


@settings(max_examples=20)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 255))
def test_resizing_keeps_a_constant_image(height, width, value):
    flat = ImageSet(torch.full((2, 3, 8, 8), value, dtype=torch.uint8), torch.arange(2))
    resized = flat.resize(height, width)
    assert resized.images.shape == (2, 3, height, width)
    assert (resized.images == value).all()
    assert torch.equal(resized.labels, flat.labels)


def test_halving_averages_with_the_triangle_filter():
    ramp = torch.arange(0, 160, 20, dtype=torch.uint8).expand(1, 1, 8, 8)
    halved = ImageSet(ramp, torch.zeros(1, dtype=torch.int64)).resize(8, 4).images[0, 0, 0]
    # Inside a linear ramp, a symmetric filter gives the value at its centre.
    assert halved[1:3].tolist() == [50, 90]


def test_a_large_set_is_resized_as_its_parts_are():
    many = image_set(count=5000, side=4)
    assert torch.equal(
        many.resize(6, 6).images[4990:], many.subset(range(4990, 5000)).resize(6, 6).images
    )


def test_clips_are_not_resized():
    clips = ImageSet(torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8), torch.arange(2))
    with pytest.raises(InvalidArgumentError, match=r"got \(3, 8, 8\) to \(8, 8\)"):
        clips.resize(8, 8)
    with pytest.raises(InvalidArgumentError, match=r"got \(8, 8\) to \(3, 8, 8\)"):
        image_set().resize(3, 8, 8)


@pytest.mark.parametrize("size", [(0, 8), (8, -1), ()])
def test_empty_sizes_are_refused(size):
    with pytest.raises(InvalidArgumentError, match="positive"):
        image_set().resize(*size)


@given(st.lists(st.integers(0, 4), max_size=10))
def test_subset_keeps_images_with_their_labels(indices):
    images = image_set()
    chosen = images.subset(indices)
    assert chosen.labels.tolist() == indices
    assert torch.equal(chosen.images, images.images[torch.tensor(indices, dtype=torch.int64)])
