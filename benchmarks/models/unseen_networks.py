"""Networks that were run once nothing was changed any more: no choice was made by their results."""

import json
from collections.abc import Callable
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from benchmarks.models.real_networks import RealNetwork, batched, data_folder, fetch, outputs
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

LETTERS = range(0x1780, 0x17A3)  # the consonants of Khmer
WIDTH, HEIGHT, COUNT = 256, 48, 7  # of an image of a line, and its letters


class FaceNet(nn.Module):
    """The last network of MTCNN, as in the package facenet-pytorch."""

    def __init__(self) -> None:
        super().__init__()
        channels = [3, 32, 64, 64, 128]
        for place, size in enumerate((3, 3, 3, 2)):
            self.add_module(f"conv{place + 1}", nn.Conv2d(*channels[place : place + 2], size))
            self.add_module(f"prelu{place + 1}", nn.PReLU(channels[place + 1]))
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2 = nn.Linear(256, 2), nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return box, landmarks and probabilities of a face for images, (examples, 3, 48, 48)."""
        for place in range(1, 5):
            x = self.get_submodule(f"prelu{place}")(self.get_submodule(f"conv{place}")(x))
            if place < 4:
                size = 3 if place < 3 else 2
                x = nn.functional.max_pool2d(x, size, 2, ceil_mode=True)
        x = self.prelu5(self.dense5(x.permute(0, 3, 2, 1).flatten(1)))
        return self.dense6_2(x), self.dense6_3(x), self.dense6_1(x).softmax(1)


def face_net() -> RealNetwork:
    """Return the last network of MTCNN, on parts of photographs."""
    model = FaceNet()
    path = fetch("facenet-pytorch", "facenet_pytorch/data/onet.pt")
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    paths = sorted(data_folder("imagenet_sample").glob("*/*.jpg"))
    random = torch.Generator().manual_seed(0)
    x = torch.stack([_part(path, random) for path in paths])
    test = x[1::2].split(64)

    def rows(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([torch.cat(model.eval()(batch), dim=1) for batch in test])

    expected = rows(model)
    mean = expected.mean(0)

    def evaluate(model: nn.Module) -> float:
        pair = rows(model) - mean, expected - mean
        return 100 * float(nn.functional.cosine_similarity(*pair, dim=0).mean())

    calibration = batched(x[::2])
    return RealNetwork(model.eval(), calibration, (x[:1],), "correlation × 100", evaluate)


def _part(path: Path, random: torch.Generator) -> Tensor:
    """Return a square part of an image, (3, 48, 48)."""
    image = Image.open(path).convert("RGB")
    side = int(torch.randint(60, min(image.size) + 1, (), generator=random))
    left, top = (int(torch.randint(n - side + 1, (), generator=random)) for n in image.size)
    pixels = image.resize((48, 48), box=(left, top, left + side, top + side))
    return (torch.from_numpy(np.array(pixels)).float().movedim(-1, 0) - 127.5) / 128


class LineReader(nn.Module):
    """The reader of lines of the package khmer-ocr-ocm: convolutions, LSTMs, a class a step."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for width, pool in ((64, 2), (128, 2), (256, 0), (256, 1), (512, 0), (512, 1)):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            if pool:
                layers += [nn.MaxPool2d((2, pool)), nn.Identity()]
            before = width
        layers += [nn.Conv2d(512, 512, 2), nn.BatchNorm2d(512), nn.ReLU()]
        self.cnn = nn.Sequential(*layers)
        self.rnn = nn.LSTM(512, 256, 2, bidirectional=True)
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of classes, (steps, examples, classes), for (examples, 1, 48, n)."""
        return self.fc(self.rnn(self.cnn(x).mean(2).permute(2, 0, 1))[0])


def line_reader() -> RealNetwork:
    """Return the reader, on lines of letters at random."""
    assets = fetch("khmer-ocr-ocm", "khmer_ocr_ocm/assets/model.pth").parent
    state = torch.load(assets / "model.pth", map_location="cpu", weights_only=True)
    state = state.get("model_state_dict", state)
    model = LineReader(len(state["fc.bias"])).eval()
    model.load_state_dict(state)
    names = json.loads((assets / "vocab.json").read_text())["idx2char"]
    font = ImageFont.truetype(str(assets / "fonts" / "khmer" / "KhmerOS.ttf"), 32)
    random = torch.Generator().manual_seed(0)
    lines = ["".join(_letters(random)) for _ in range(200)]
    x = torch.stack([_draw(line, font) for line in lines])
    test = x[100:].split(25)

    def evaluate(model: nn.Module) -> float:
        steps = torch.cat([outputs(model, [batch]).argmax(2).T for batch in test]).tolist()
        right = 0
        for line, row in zip(lines[100:], steps, strict=True):
            read = "".join(names.get(str(number), "") for number, _ in groupby(row) if number)
            matches = SequenceMatcher(None, line, read, autojunk=False).get_matching_blocks()
            right += sum(match.size for match in matches)
        return 100 * right / (COUNT * len(steps))

    calibration = batched(x[:100], size=20)
    return RealNetwork(model, calibration, (x[:1],), "letters read %", evaluate)


def _letters(random: torch.Generator) -> list[str]:
    places = torch.randint(len(LETTERS), (COUNT,), generator=random).tolist()
    return [chr(LETTERS[place]) for place in places]


def _draw(text: str, font: ImageFont.FreeTypeFont) -> Tensor:
    """Return the image of a line, (1, 48, WIDTH), from -1 to 1."""
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("L", (int(right - left) + 24, int(bottom - top) + 24), 255)
    ImageDraw.Draw(image).text((12 - left, 12 - top), text, font=font, fill=0)
    pixels = np.array(image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR), dtype=np.float32)
    return torch.from_numpy(pixels)[None] / 127.5 - 1


UNSEEN: dict[str, Callable[[], RealNetwork]] = {
    "MTCNN O-Net": face_net,
    "Khmer reader": line_reader,
}
"""Every network of this file, by the name in the tables."""
