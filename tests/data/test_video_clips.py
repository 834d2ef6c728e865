import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorpress.data import DATASETS, ImageSet, load
from tensorpress.data.digits import read_digits
from tensorpress.data.video_clips import CLIPS_PER_DIGIT, FRAMES, SIDE, moving_digits
from tensorpress.errors import InvalidArgumentError

DIGIT_GREY, SQUARE_GREY, NOISE = 200, 128, 20


def filled(count):
    """Digits that are squares of one grey, brighter than the one that distracts."""
    return ImageSet(
        torch.full((count, 1, 8, 8), DIGIT_GREY, dtype=torch.uint8), torch.arange(count) % 10
    )


def left_edges(clips):
    """The left column of the digit in every frame; its right part may have come in there."""
    columns = (clips.images[:, 0] >= DIGIT_GREY - NOISE).any(dim=2)
    return (columns & ~columns.roll(1, dims=2)).int().argmax(dim=2)


def steps(clips):
    """How far the digit moves to the right from frame to frame."""
    return (left_edges(clips).diff(dim=1) + SIDE // 2) % SIDE - SIDE // 2


def test_labels_tell_digit_and_direction():
    clips = moving_digits(filled(200), seed=0)
    digits = filled(200).labels.repeat_interleave(CLIPS_PER_DIGIT)
    assert torch.equal(clips.labels // 2, digits)
    assert torch.equal((steps(clips).sum(dim=1) > 0).long(), clips.labels % 2)


def test_a_digit_moves_at_constant_speed_and_does_not_turn_back():
    clips = moving_digits(filled(100), seed=3)
    forward = steps(clips) * (2 * (clips.labels % 2) - 1)[:, None]
    # Half a pixel to one in a frame, shown at whole pixels.
    assert ((forward >= 0) & (forward <= 1)).all()
    travelled = forward.sum(dim=1).double()
    assert travelled.mean().item() == pytest.approx(0.75 * (FRAMES - 1), rel=0.05)


def test_no_single_frame_tells_the_direction():
    clips = moving_digits(filled(1000), seed=0)
    edges, expected = left_edges(clips), 2000 / SIDE
    for frame in range(FRAMES):
        for direction in (0, 1):
            there = edges[clips.labels % 2 == direction, frame].bincount(minlength=SIDE)
            assert (there - expected).abs().max() < 5 * expected**0.5


def test_digit_and_square_stay_whole():
    clips = moving_digits(filled(50), seed=1).images
    assert ((clips >= DIGIT_GREY - NOISE).sum(dim=(1, 3, 4)) == 64).all()
    lit = (clips >= SQUARE_GREY - NOISE).sum(dim=(1, 3, 4))
    assert (lit <= 64 + 9).all()
    assert (lit == 64 + 9).any()


def test_noise_is_everywhere():
    clips = moving_digits(filled(20), seed=1).images
    ground = clips[clips < SQUARE_GREY - NOISE]
    assert ground.max() == NOISE
    assert (ground > 0).float().mean() == pytest.approx(NOISE / (2 * NOISE + 1), abs=0.02)


@settings(max_examples=10)
@given(st.integers(0, 2**63))
def test_a_seed_always_gives_the_same_clips(seed):
    first, again, other = (moving_digits(filled(3), seed=number) for number in (seed, seed, 1))
    assert torch.equal(first.images, again.images)
    assert seed == 1 or not torch.equal(first.images, other.images)


def test_the_published_clips_do_not_change():
    clips = load("moving-digits").test.images
    # Fixed forever: published results were measured on these clips.
    assert int(clips.long().sum()) == 135_247_044
    assert clips[1000, 0, 3, 5, 2:7].tolist() == [16, 113, 239, 255, 58]


@pytest.mark.parametrize("seed", [0, 5])
def test_no_digit_is_in_two_parts(seed):
    splits = load("moving-digits", validation=600, seed=seed)
    whole = load("moving-digits")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (4204, 600, 2384)
    assert torch.equal(splits.test.images, whole.test.images)
    number = {clip.numpy().tobytes(): row for row, clip in enumerate(whole.train.images)}
    parts = [
        {number[clip.numpy().tobytes()] // CLIPS_PER_DIGIT for clip in part.images}
        for part in (splits.train, splits.validation)
    ]
    assert [len(digits) for digits in parts] == [1051, 150]
    assert not parts[0] & parts[1]


def test_clips_are_of_the_digits_of_their_part():
    train, test = read_digits()
    splits = load("moving-digits")
    for digits, clips in ((train, splits.train), (test, splits.test)):
        assert torch.equal(clips.labels // 2, digits.labels.repeat_interleave(CLIPS_PER_DIGIT))


def test_the_registry_describes_the_clips():
    known, splits = DATASETS["moving-digits"], load("moving-digits")
    assert splits.train.images.shape[1:] == splits.test.images.shape[1:] == known.shape
    assert known.shape == (1, FRAMES, SIDE, SIDE)
    assert splits.train.labels.unique().tolist() == list(range(known.classes))


@pytest.mark.parametrize("validation", [1, 602])
def test_validation_never_divides_the_clips_of_a_digit(validation):
    with pytest.raises(InvalidArgumentError, match=f"multiple of 4, .* got {validation}"):
        load("moving-digits", validation=validation)


def test_clips_have_one_size():
    assert load("moving-digits", size=(8, 16, 16)).test.images.shape[2:] == (8, 16, 16)
    with pytest.raises(InvalidArgumentError, match=r"got \(8, 16, 16\) to \(28, 28\)"):
        load("moving-digits", size=(28, 28))
    with pytest.raises(InvalidArgumentError, match=r"got \(8, 8\) to \(8, 16, 16\)"):
        load("digits", size=(8, 16, 16))


@pytest.mark.parametrize(
    ("shape", "seed", "message"),
    [
        ((2, 3, 8, 8), 0, r"shape \(1, 8, 8\), got \(3, 8, 8\)"),
        ((2, 1, 28, 28), 0, r"got \(1, 28, 28\)"),
        ((2, 1, 8, 8), -1, "negative, got -1"),
    ],
)
def test_impossible_arguments(shape, seed, message):
    digits = ImageSet(torch.zeros(shape, dtype=torch.uint8), torch.zeros(2).long())
    with pytest.raises(InvalidArgumentError, match=message):
        moving_digits(digits, seed=seed)


def test_clips_of_no_digits_are_none():
    assert moving_digits(filled(0), seed=0).images.shape == (0, 1, FRAMES, SIDE, SIDE)
