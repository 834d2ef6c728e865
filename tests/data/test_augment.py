import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tensorpress.data import AUGMENTATIONS
from tensorpress.data.augment import crop_flip, distort, mix, shift


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shift_image(image, down, right):
    """The image of shape (C, H, W) moved by whole pixels, zero where nothing moved in."""
    return functional.pad(image, (right, -right, down, -down))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(3, 7), st.integers(3, 7)),
    pixels=st.integers(0, 2),
)
def test_every_image_is_moved_by_one_offset_within_reach(seed, shape, pixels):
    images = torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator(seed))
    result = shift(images, generator(seed), pixels=pixels)
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    offsets = range(-pixels, pixels + 1)
    for before, after in zip(images, result, strict=True):
        fits = [torch.equal(shift_image(before, d, r), after) for d in offsets for r in offsets]
        assert any(fits)


def test_all_offsets_are_equally_likely_and_independent():
    point = torch.zeros(9000, 1, 5, 5)
    point[:, :, 2, 2] = 1
    counts = shift(point, generator(), pixels=1).sum((0, 1))
    assert not counts[0].any()
    assert not counts[:, 4].any()
    assert (counts[1:4, 1:4] - 1000).abs().max() < 150


def test_crop_flip_is_a_crop_of_the_padded_image_or_its_mirror():
    images = torch.randint(1, 256, (200, 3, 6, 6), dtype=torch.uint8, generator=generator())
    result = crop_flip(images, generator(1))
    mirrored = 0
    for before, after in zip(images, result, strict=True):
        crops = [shift_image(before, d, r) for d in range(-4, 5) for r in range(-4, 5)]
        plain = any(torch.equal(crop, after) for crop in crops)
        mirror = any(torch.equal(crop.flip(-1), after) for crop in crops)
        assert plain or mirror
        mirrored += not plain
    assert 60 < mirrored < 140


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_depend_on_the_generator_only_and_keep_their_input(name):
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=generator())
    before = images.clone()
    first, again, other = (AUGMENTATIONS[name](images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_take_floats_too(name):
    images = torch.rand(8, 3, 6, 6)
    result = AUGMENTATIONS[name](images, generator())
    assert result.dtype == torch.float32
    as_bytes = AUGMENTATIONS[name]((images > 0.5).byte(), generator())
    as_floats = AUGMENTATIONS[name]((images > 0.5).float(), generator())
    assert torch.equal(as_floats.round(), as_bytes.float())


def test_mixed_images_lie_between_two_of_the_batch():
    images = torch.rand(50, 1, 2, 2)
    pairs = [torch.stack([a.flatten(), b.flatten()]) for a in images for b in images]
    for result in mix(images, generator()):
        assert any(
            bool(
                (
                    (result.flatten() >= p.amin(0) - 1e-6) & (result.flatten() <= p.amax(0) + 1e-6)
                ).all()
            )
            for p in pairs
        )
    assert not torch.equal(mix(images, generator()), images)


def test_nothing_is_distorted_by_nothing():
    images = torch.randint(0, 256, (9, 3, 7, 5), dtype=torch.uint8, generator=generator())
    assert torch.equal(distort(images, generator(), degrees=0, stretch=0, pixels=0), images)


def test_distorted_images_stay_sharp_and_within_their_values():
    images = 255 * torch.rand(200, 1, 24, 24, generator=generator()).round()
    result = distort(images, generator(), degrees=0, stretch=0, pixels=1)
    inner = result[:, :, 2:-2, 2:-2]
    assert float(inner.var()) > 0.55 * float(images.var())  # straight lines leave 0.46
    assert float(result.min()) >= 0
    assert float(result.max()) <= 255


def test_distortions_are_as_large_as_said_and_no_larger():
    images = torch.zeros(400, 1, 41, 41)
    images[:, :, 15:26, 15:26] = 1
    places = torch.arange(41.0) - 20
    for options in (
        {"degrees": 0, "stretch": 0, "pixels": 3},
        {"degrees": 0, "stretch": 0.2, "pixels": 0},
        {"degrees": 30, "stretch": 0, "pixels": 0},
    ):
        result = distort(images, generator(), **options)[:, 0]
        mass = result.sum((1, 2))
        across = (result.sum(1) * places).sum(1) / mass
        assert float(across.abs().max()) <= options["pixels"] + 0.01
        assert float(across.abs().max()) >= 0.9 * options["pixels"]
        assert float((mass / 121 - 1).abs().max()) < (0.6 if options["stretch"] else 0.06)
        assert not torch.equal(result[0], result[1])
