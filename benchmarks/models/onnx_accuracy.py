"""Test error of a pressed ResNet-20 on CIFAR-10, in PyTorch and in onnxruntime.

python -m benchmarks.models.onnx_accuracy --data DIRECTORY
"""

import argparse
import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import onnxruntime
import torch

from tensorpress import export_onnx, plan, press
from tensorpress.data import load
from tensorpress.models import zoo
from tensorpress.utils.atomic_files import write_atomically

RESULT = Path(__file__).parents[2] / "results" / "onnx_accuracy.json"
BUDGET, BATCH = "macs=60%", 250


def main() -> None:
    """Classify the test images by both, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    root = parser.parse_args().data
    model = zoo.build("resnet20").eval()
    zoo.load_weights(model, root / "cifar10_resnet" / "resnet20.safetensors")
    example = torch.zeros(2, 3, 32, 32)
    pressed = press(model, plan(model, example, budget=BUDGET)).eval()
    images = load("cifar10", root, validation=0).test
    preprocess = zoo.network("resnet20").preprocess
    wrong = {"dense": 0, "pytorch": 0, "onnxruntime": 0}
    disagree, difference = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        file = export_onnx(pressed, example, Path(folder) / "resnet20.onnx")
        session = onnxruntime.InferenceSession(file.path, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        for start in range(0, len(images), BATCH):
            x = preprocess(images.images[start : start + BATCH])
            labels = images.labels[start : start + BATCH]
            with torch.inference_mode():
                found = {"dense": model(x), "pytorch": pressed(x)}
            found["onnxruntime"] = torch.from_numpy(session.run(None, {name: x.numpy()})[0])
            for side, logits in found.items():
                wrong[side] += int((logits.argmax(1) != labels).sum())
            ours, theirs = found["pytorch"], found["onnxruntime"]
            disagree += int((ours.argmax(1) != theirs.argmax(1)).sum())
            difference = max(difference, float((ours - theirs).abs().max() / ours.abs().max()))
    content = {
        "command": "python -m benchmarks.models.onnx_accuracy --data DIRECTORY",
        "pressed": f"scheme auto, {BUDGET}, no fine-tuning",
        "images": len(images),
        "test_error": {side: 100 * count / len(images) for side, count in wrong.items()},
        "images_classified_otherwise": disagree,
        "largest_relative_difference": difference,
        "onnx_bytes": file.bytes,
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
    }
    write_atomically(RESULT, json.dumps(content, indent=1).encode() + b"\n")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
