"""Generated clips of a moving handwritten digit, from the digits of UCI."""

import numpy as np
import numpy.typing as npt
import torch

from tensorpress.data.digits import read_digits
from tensorpress.data.images import ImageSet
from tensorpress.errors import InvalidArgumentError

CLIPS_PER_DIGIT = 4
FRAMES = 8
SIDE = 16  # of a clip, in pixels

_DIGIT_SIDE = 8
_SQUARE_SIDE = 3
_SLOWEST, _FASTEST = 0.5, 1.0  # pixels per frame
_SQUARE_GREY = 128
_NOISE = 20  # the largest change of a grey value

_Numbers = npt.NDArray[np.float64]
_Positions = npt.NDArray[np.int64]
_Pixels = npt.NDArray[np.int16]


def read_moving_digits() -> tuple[ImageSet, ImageSet]:
    """Return clips of the training digits and clips of the test digits of `read_digits`.

    Returns
    -------
    train, test : ImageSet
        4,804 and 2,384 clips from `moving_digits`; the same at every call.

    Examples
    --------
    >>> train, test = read_moving_digits()
    >>> len(train), len(test), tuple(train.images.shape[1:])
    (4804, 2384, (1, 8, 16, 16))
    """
    train, test = read_digits()
    return moving_digits(train, seed=0), moving_digits(test, seed=1)


def moving_digits(digits: ImageSet, *, seed: int) -> ImageSet:
    """Return four clips of every digit, two moving to the left and two to the right.

    Horizontally, a digit moves by 0.5 to 1 pixels per frame and wraps around; vertically, it moves
    by at most 1 pixel per frame and bounces off floor and ceiling. A grey square bounces off all
    walls, and all grey values are noisy. The class is that of the digit and its direction. Neither
    a single frame nor all frames in unknown order reveal the direction: digits are equally likely
    everywhere, and a clip played backwards is a clip of the other direction.

    Parameters
    ----------
    digits : ImageSet
        Images of shape ``(N, 1, 8, 8)`` and their classes.
    seed : int
        Seed of positions, speeds and noise, not negative.

    Returns
    -------
    ImageSet
        Clips of shape ``(4 N, 1, 8, 16, 16)``; those of one digit are consecutive. A label is twice
        the class of the digit, plus 1 if it moves to the right.

    Raises
    ------
    InvalidArgumentError
        If the digits have another shape, or the seed is negative.

    References
    ----------
    After the moving MNIST of N. Srivastava et al., "Unsupervised learning of video
    representations using LSTMs", ICML 2015, section 3.2.

    Examples
    --------
    >>> sevens = ImageSet(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8), torch.tensor([7]))
    >>> moving_digits(sevens, seed=0).labels
    tensor([14, 15, 14, 15])
    """
    shape = (1, _DIGIT_SIDE, _DIGIT_SIDE)
    if digits.images.shape[1:] != shape:
        raise InvalidArgumentError(
            f"digits must have shape {shape}, got {tuple(digits.images.shape[1:])}"
        )
    if seed < 0:
        raise InvalidArgumentError(f"seed must not be negative, got {seed}")
    random = np.random.default_rng(seed)
    patches = digits.images[:, 0].numpy().astype(np.int16).repeat(CLIPS_PER_DIGIT, axis=0)
    count = len(patches)
    rightward = np.arange(count) % 2 == 1
    square = np.full((count, _SQUARE_SIDE, _SQUARE_SIDE), _SQUARE_GREY, np.int16)
    clips = np.zeros((count, FRAMES, SIDE, SIDE), np.int16)
    _draw(clips, patches, _bounce(random, patches), _pass_through(random, rightward))
    _draw(clips, square, _bounce(random, square), _bounce(random, square))
    clips += random.integers(-_NOISE, _NOISE, clips.shape, np.int16, endpoint=True)
    classes = 2 * digits.labels.repeat_interleave(CLIPS_PER_DIGIT) + torch.from_numpy(rightward)
    return ImageSet(torch.from_numpy(clips.clip(0, 255).astype(np.uint8))[:, None], classes)


def _pass_through(random: np.random.Generator, rightward: npt.NDArray[np.bool_]) -> _Positions:
    """Return left edges of digits that pass through the walls, of shape (clips, frames)."""
    # If walls stopped them, the first and last frame would reveal the direction.
    start = random.uniform(0, SIDE, len(rightward))
    speed = random.uniform(_SLOWEST, _FASTEST, len(rightward))
    return _to_pixels(_move(start, np.where(rightward, speed, -speed)))


def _bounce(random: np.random.Generator, patches: _Pixels) -> _Positions:
    """Return edges of patches that bounce off the walls, of shape (clips, frames)."""
    room = SIDE - patches.shape[-1]
    start = random.uniform(0, room, len(patches))
    velocity = random.uniform(-_FASTEST, _FASTEST, len(patches))
    # The motion without walls, folded into the box: every second copy of the box is mirrored.
    return _to_pixels(room - np.abs(_move(start, velocity) % (2 * room) - room))


def _move(start: _Numbers, velocity: _Numbers) -> _Numbers:
    positions: _Numbers = start[:, None] + velocity[:, None] * np.arange(FRAMES)
    return positions


def _to_pixels(positions: _Numbers) -> _Positions:
    return np.rint(positions).astype(np.int64)


def _draw(clips: _Pixels, patches: _Pixels, top: _Positions, left: _Positions) -> None:
    """Draw a patch into every frame of its clip, where it is brighter than the frame."""
    clip = np.arange(len(clips))[:, None, None, None]
    frame = np.arange(FRAMES)[:, None, None]
    offsets = np.arange(patches.shape[-1])
    rows = top[..., None, None] + offsets[:, None]
    columns = (left[..., None, None] + offsets) % SIDE
    pixels = (clip, frame, rows, columns)
    clips[pixels] = np.maximum(clips[pixels], patches[:, None])
