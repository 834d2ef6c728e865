"""Peak memory of one decomposition: run by ``decompose.py`` in a process of its own.

python -m benchmarks.decompose.decompose_memory {ours,tensorly} SHAPE R_IN R_OUT
"""

import argparse
import json
import re
from pathlib import Path

import torch
from benchmarks.decompose.decompose_cases import (
    layer_of,
    numpy_evbmf,
    tensorly_svd,
    tensorly_tucker,
    trained_like,
)

from tensorpress.schemes.press_layer import press_layer

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """Return bytes: ``VmRSS``, resident now, or ``VmHWM``, the most since the last reset."""
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return 1024 * int(found[1])


def main() -> None:
    """Decompose once and print what it took beyond the weight itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("ours", "tensorly"))
    parser.add_argument("shape")
    parser.add_argument("ranks", type=int, nargs=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Libraries allocate their work space at first use: that is not of this decomposition.
    small = trained_like((16, 16, 3, 3))
    press_layer(layer_of(small), "tucker2", "evbmf")
    tensorly_tucker(small, (4, 4))(), numpy_evbmf(small)
    weight = trained_like(tuple(map(int, arguments.shape.split("×"))))
    layer = layer_of(weight)
    before = resident("VmRSS")
    CLEAR.write_text("5")
    if arguments.side == "ours":
        press_layer(layer, "tucker2", "evbmf")
    elif weight.ndim == 2:
        tensorly_svd(weight, arguments.ranks[0])()
    else:
        numpy_evbmf(weight, thin=True)
        tensorly_tucker(weight, arguments.ranks)()
    print(json.dumps({"bytes": resident("VmHWM") - before}))


if __name__ == "__main__":
    main()
