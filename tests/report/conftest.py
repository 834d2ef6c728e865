"""Two contents a report has to cope with: a published one, and a deep network with long names."""

import math
import random

import pytest

from tensorpress.report import Curve, Curves, FilePart, Histogram, LayerRow, ReportContent

RECIPE = """\
# LeNet-5 on MNIST by ADA-Tucker
network: lenet5
data: mnist
scheme: ada-tucker
ranks: {conv1: 5, conv2: 5, ip1: 5, ip2: 5}
train: {epochs: 100, optimizer: adam, learning_rate: 0.001}
quantize: {bits: 3, epochs: 20}
seed: 0
"""


def lenet_content() -> ReportContent:
    dense, stored, size = 431_080, 2_980, 2_104
    shapes = [
        ("conv1", "Conv2d", (20, 1, 5, 5), (25, 20), (5, 5), 0.214),
        ("conv2", "Conv2d", (50, 20, 5, 5), (50, 25, 20), (5, 5, 5), 0.487),
        ("ip1", "Linear", (500, 800), (40, 25, 20, 20), (5, 5, 5, 5), 0.912),
        ("ip2", "Linear", (10, 500), (25, 20, 10), (5, 5, 5), 0.366),
    ]
    layers = []
    for name, kind, shape, modes, ranks, error in shapes:
        params = math.prod(ranks) + sum(m * r for m, r in zip(modes, ranks, strict=True))
        layers.append(
            LayerRow(
                *(name, kind, "ada-tucker", shape, modes, ranks, math.prod(shape), params),
                file_bytes=params * 2.9 / 8,
                bits_per_weight=2.9,
                error=error,
            )
        )
    train, tuned = list(range(1, 101)), list(range(101, 121))
    return ReportContent(
        title="LeNet-5 on MNIST, pressed by ADA-Tucker",
        subtitle="Trained in its factors from scratch, quantized to three bits, entropy coded.",
        metrics={
            "dense": {"params": dense, "bytes": 4 * dense, "macs": 2_293_000, "error": 0.8},
            "pressed": {"params": stored, "macs": 2_293_000, "error": 0.86},
            "file": {"bytes": size, "error": 0.93},
            "ratio": {"params": dense / stored, "macs": 1.0, "file": 4 * dense / size},
            "latency": {"dense_ms": 1.92, "pressed_ms": 1.95},
            "seconds": {"train": 1893.2, "quantize": 402.75, "save": 0.031},
            "recipe": {"network": "lenet5", "scheme": "ada-tucker"},
            "seed": 0,
            "versions": {"tensorpress": "0.1.0", "torch": "2.13.0", "python": "3.12.3"},
            "device": "cpu, 2 threads",
        },
        layers=layers,
        histograms=[_histogram(row.name, row.pressed_params) for row in layers],
        curves=[
            Curves(
                "Training loss",
                "",
                [
                    Curve("train", train, [2.3 * e**-0.95 for e in train]),
                    Curve("quantized", tuned, [0.09 * (e - 100) ** -0.5 for e in tuned]),
                ],
            ),
            Curves(
                "Validation error",
                "%",
                [
                    Curve("train", train, [0.8 + 9 * e**-1.1 for e in train]),
                    Curve("quantized", tuned, [0.9 + 1.2 * (e - 100) ** -1.3 for e in tuned]),
                ],
            ),
        ],
        file_parts=[
            FilePart("header", 36.0),
            FilePart("plan", 148.0),
            FilePart("priors", 58.0),
            *(FilePart(f"factors of {row.name}", row.file_bytes or 0) for row in layers),
            FilePart("biases", 580.0),
            FilePart("checksums", 32.0),
        ],
        recipe_yaml=RECIPE,
    )


def deep_content() -> ReportContent:
    layers = []
    for index in range(60):
        name = f"backbone.stages.{index // 15}.blocks.{index % 15:02d}.mlp.spatial_gating_unit.conv"
        width = 64 * 2 ** (index // 15)
        size = width * width * 9
        if index % 9 == 8:
            note = "kept dense: pressing would make it larger"
            layers.append(
                LayerRow(
                    *(name, "Conv2d", "dense", (width, width, 3, 3), (), (), size, size),
                    file_bytes=4.0 * size,
                    bits_per_weight=32.0,
                    error=0.0,
                    note=note,
                )
            )
            continue
        ranks = (width // 4, width // 3)
        params = ranks[0] * ranks[1] * 9 + width * sum(ranks)
        layers.append(
            LayerRow(
                *(name, "Conv2d", "tucker2", (width, width, 3, 3), (width, width, 9), ranks),
                *(size, params, params * 0.55, 4.4, 0.07 + 0.002 * index),
            )
        )
    dense = sum(row.dense_params for row in layers)
    stored = sum(row.pressed_params for row in layers)
    size = sum(row.file_bytes or 0 for row in layers)
    return ReportContent(
        title="A backbone of sixty layers",
        metrics={
            "dense": {"params": dense, "bytes": 4 * dense, "error": None},
            "pressed": {"params": stored},
            "file": {"bytes": round(size)},
            "ratio": {"params": dense / stored, "file": 4 * dense / size},
        },
        layers=layers,
        histograms=[_histogram(row.name, 5_000) for row in layers[:20]],
        file_parts=[FilePart(f"factors of {row.name}", row.file_bytes or 0) for row in layers],
    )


def _histogram(layer: str, weights: int, bins: int = 48, levels: int = 7) -> Histogram:
    """Normally distributed weights, rounded to a few levels."""
    draw = random.Random(layer)
    edges = [-1.5 + 3 * index / bins for index in range(bins + 1)]
    before, after = [0] * bins, [0] * bins
    for _ in range(weights):
        value = min(max(draw.gauss(0, 0.4), -1.4), 1.4)
        rounded = round(value * (levels - 1) / 2.8) * 2.8 / (levels - 1)
        before[int((value + 1.5) / 3 * bins)] += 1
        after[int((rounded + 1.5) / 3 * bins)] += 1
    return Histogram(layer, edges, before, after)


@pytest.fixture(scope="session")
def lenet() -> ReportContent:
    return lenet_content()


@pytest.fixture(scope="session")
def deep() -> ReportContent:
    return deep_content()
