"""Tones and speech-like sounds, for audio networks where no recordings can be had."""

import numpy as np
import numpy.typing as npt
import torch
from scipy.signal import lfilter
from torch import Tensor

RATE = 16_000
"""Samples a second."""

VOWELS = (
    (730, 1090, 2440),
    (270, 2290, 3010),
    (300, 870, 2240),
    (530, 1840, 2480),
    (570, 840, 2410),
)
"""Formants in Hz of a, i, u, e and o: Peterson and Barney (1952)."""

_Wave = npt.NDArray[np.float64]


def tones(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return normalized frames of harmonic tones in noise, (count, 1024), and their pitch in Hz."""
    random = np.random.default_rng(seed)
    hertz = 60 * (1000 / 60) ** random.random(count)
    time = np.arange(1024) / RATE
    waves = np.zeros((count, 1024))
    slope = random.uniform(0.3, 0.9, count)
    for harmonic in range(1, 9):
        audible = harmonic * hertz < RATE / 2
        level = (audible * slope**harmonic * random.uniform(0.3, 1, count))[:, None]
        phase = random.uniform(0, 2 * np.pi, count)[:, None]
        waves += level * np.sin(2 * np.pi * harmonic * hertz[:, None] * time + phase)
    waves += 0.05 * random.standard_normal(waves.shape) * waves.std(1, keepdims=True)
    waves = (waves - waves.mean(1, keepdims=True)) / waves.std(1, keepdims=True)
    return torch.from_numpy(waves).float(), torch.from_numpy(hertz).float()


def speech(count: int, samples: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return speech-like waves, (count, samples), and where there is speech in them.

    Phrases of a hiss and a vowel a syllable alternate with pauses of faint noise; every wave has
    the pitch and the vocal tract of a speaker of its own.
    """
    random = np.random.default_rng(seed)
    waves = 0.003 * random.standard_normal((count, samples))
    voiced = np.zeros((count, samples), dtype=bool)
    for wave, mask in zip(waves, voiced, strict=True):
        pitch, tract = random.uniform(85, 240), random.uniform(0.9, 1.2)
        place = int(RATE * random.uniform(0, 0.4))
        while place < samples:
            phrase = np.concatenate(
                [_syllable(random, pitch, tract) for _ in range(random.integers(2, 7))]
            )[: samples - place]
            wave[place : place + len(phrase)] += phrase
            mask[place : place + len(phrase)] = True
            place += len(phrase) + int(RATE * random.uniform(0.3, 1.0))
    return torch.from_numpy(waves).float(), torch.from_numpy(voiced)


def _syllable(random: np.random.Generator, pitch: float, tract: float) -> _Wave:
    """Return a hiss and a vowel."""
    hiss = random.standard_normal(int(RATE * random.uniform(0.03, 0.08)))
    hiss = 0.02 * lfilter([1, -0.9], [1], hiss)
    length = int(RATE * random.uniform(0.12, 0.25))
    glide = np.linspace(random.uniform(0.9, 1.15), random.uniform(0.85, 1.1), length)
    jitter = 1 + 0.01 * random.standard_normal(length)
    cycles = np.cumsum(pitch * glide * jitter) / RATE
    vowel = np.diff(np.floor(cycles), prepend=0) + 0.01 * random.standard_normal(length)
    vowel = lfilter([1], [1, -0.95], vowel)  # the glottis: −6 dB an octave
    for formant in VOWELS[random.integers(len(VOWELS))]:
        angle, radius = 2 * np.pi * formant * tract / RATE, np.exp(-np.pi * 90 / RATE)
        vowel = lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], vowel)
    edge = np.minimum(1, np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.02 * RATE))
    vowel = random.uniform(0.05, 0.2) * edge * vowel / (np.abs(vowel).max() + 1e-9)
    return np.concatenate([hiss, vowel])


def mel_spectra(waves: Tensor) -> Tensor:
    """Return mel spectra of power, 25 ms every 10 ms, as Resemblyzer takes them: no logarithm.

    The filters are those of librosa, which the package uses: Slaney's scale and norm.
    """
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(201, 40, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    window = torch.hann_window(400)
    spectra = torch.stft(waves, 400, 160, window=window, return_complex=True, pad_mode="constant")
    power = spectra.abs().square().mT  # (examples, frames, frequencies)
    return (power @ torch.from_numpy(filters).float())[:, :160]
