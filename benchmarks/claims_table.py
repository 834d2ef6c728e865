"""What the sources claim, row by row, beside what the committed results here show.

Every number in the column "here" is read from a result file; a claim without one says so.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"

NOT_TRAINED = "not trained yet"


@dataclass(frozen=True)
class Claim:
    """One statement of a source.

    Attributes
    ----------
    claim : str
        What the source says a method does.
    source : str
        The source's numbers.
    here : callable
        Returns the numbers measured here.
    evidence : str
        The recipe, the test or the page they come from.
    caveat : str
        What a reader has to know to compare the two.
    """

    claim: str
    source: str
    here: Callable[[], str]
    evidence: str
    caveat: str = ""


def claims_table(claims: tuple[Claim, ...]) -> str:
    """Return the claims of one source as a table."""
    rows = ["| claim | the source | here | from | caveat |", "|---|---|---|---|---|"]
    rows += [f"| {c.claim} | {c.source} | {c.here()} | {c.evidence} | {c.caveat} |" for c in claims]
    return "\n".join(rows)


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def _file_row(stem: str) -> str:
    """Return parameters, bytes and error of a recipe's files, means of the seeds."""
    runs = [json.loads(path.read_text()) for path in RESULTS.glob(f"{stem}/seed*/metrics.json")]
    if not runs:
        return NOT_TRAINED
    params, size, error = (
        mean(run[part][key] for run in runs)
        for part, key in (("pressed", "params"), ("file", "bytes"), ("file", "error"))
    )
    ratio = mean(run["ratio"]["file"] for run in runs)
    seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
    return f"{params:,.0f} params, {size:,.0f} B ({ratio:,.0f}×), {error:.2f} % ({seeds})"


def _selection(network: str, speedup: str) -> str:
    """Return the growth of the error with uniform and with selected ranks, fitted nonlinearly."""
    results = _read(f"reconstruction/{network}.json")
    growth = [
        results["speedups"][f"{speedup} {ranks} nonlinear 0"]["error"] - results["dense"]
        for ranks in ("uniform", "selected")
    ]
    return f"{growth[0]:.2f} → {growth[1]:.2f}"


def _responses(network: str, speedup: str) -> str:
    """Return the growth of the error of linear and of nonlinear fits."""
    results = _read(f"reconstruction/{network}.json")
    growth = [
        results["speedups"][f"{speedup} uniform {kind} 0"]["error"] - results["dense"]
        for kind in ("linear", "nonlinear")
    ]
    return f"{growth[0]:.2f} → {growth[1]:.2f}"


def _tt_layer() -> str:
    (layer,) = _read("decompose/decompose.json")["tt_layer"].values()
    parts = []
    for batch in (1, 100):
        times = layer[f"batch_{batch}_ms"]
        dense, train = times["dense"], times["Novikov's modes"]
        parts.append(f"{dense:.1f} → {train:.1f} ms ({batch})")
    return ", ".join(parts)


def _norms() -> str:
    variants = {
        v["name"]: v["validation_error"] for v in _read("lenet5-norms/sweep.json")["variants"]
    }
    with_norms = min(error for name, error in variants.items() if "norms=true" in name)
    without = min(error for name, error in variants.items() if "norms=false" in name)
    return f"LeNet-5, validation error {with_norms:.2f} % with norms, {without:.2f} % without"


def _sparse() -> str:
    run = _read("vgg16-sparse/seed0/metrics.json")
    rows = _read("form_times.json")["rows"]
    row = next(r for r in rows if r["form"] == "low rank + sparse" and 4.4 < r["params"] < 4.5)
    times = " and ".join(f"{ratio:.2f}×" for ratio in row["times"])
    change = run["dense"]["error"] - run["pressed"]["error"]
    return f"{row['params']:.2f}×, {times} (16 and 64 images), {change:+.2f} points"


def _cp() -> str:
    points = _read("cp_vs_tensorly.json")["points"].values()
    ratios = [p["als_over_best_parafac"] for p in points]
    return f"ALS errors {min(ratios):.2f} to {max(ratios):.2f} of the best parafac"


def _clips() -> str:
    runs = [_read(f"clips3d-tucker2/seed{seed}/metrics.json") for seed in range(3)]
    params, errors, dense = (
        mean(run[part][key] for run in runs)
        for part, key in (("pressed", "params"), ("pressed", "error"), ("dense", "error"))
    )
    ratio = runs[0]["dense"]["params"] / params
    return f"{ratio:.1f}× fewer parameters, error {dense:.2f} → {errors:.2f} %"


def _fixed(text: str) -> Callable[[], str]:
    return lambda: text


def _row(stem: str) -> Callable[[], str]:
    return lambda: _file_row(stem)


KIM = (
    Claim(
        "Tucker-2 of a 3-D convolution is 1×1×1 → core → 1×1×1",
        "an equation",
        _fixed("equal to the layer at full rank within 1e-9"),
        "`tests/schemes/test_every_scheme.py`",
    ),
    Claim(
        "Tucker-2 of a Linear is y = A·G·Bᵀ·x + b",
        "an equation",
        _fixed("equal to the layer at full rank within 1e-9"),
        "`tests/schemes/test_every_scheme.py`",
    ),
    Claim(
        "A network of 3-D convolutions and Linears gets smaller by it",
        "no number",
        _clips,
        "`recipes/clips/clips3d-tucker2.yaml`",
        "3 seeds; the pressed network has 12 more epochs",
    ),
)

LECTURE = (
    *(
        Claim(
            f"Ranks by responses beat uniform ones at {speedup}× fewer operations (Zhang et al.)",
            f"error grows by {source} points (VGG on ImageNet)",
            lambda s=speedup: (
                f"ResNet-20 {_selection('resnet20', s)}, "
                f"ResNet-56 {_selection('resnet56', s)} points"
            ),
            "[reconstruction](reconstruction.md)",
            "on CIFAR-10; uniform ranks have up to 7 % fewer operations than asked for",
        )
        for speedup, source in (
            ("2.0", "1.18 → 0.93"),
            ("2.4", "1.77 → 1.35"),
            ("3.0", "2.56 → 2.34"),
            ("4.0", "4.32 → 4.20"),
            ("5.0", "6.53 → 6.47"),
        )
    ),
    Claim(
        "Fitting responses after the ReLU beats fitting them before it",
        "a figure of two layers",
        lambda: (
            f"at 3×: ResNet-20 {_responses('resnet20', '3.0')}, "
            f"ResNet-56 {_responses('resnet56', '3.0')} points"
        ),
        "[reconstruction](reconstruction.md)",
    ),
    Claim(
        "A Linear of 25088×4096 as a tensor train is faster (Novikov et al.)",
        "16.1 → 1.2 ms (1), 97.2 → 94.7 ms (100 images)",
        _tt_layer,
        "`benchmarks/decompose/decompose.py`",
        "r = 4; other hardware, processor time of one thread",
    ),
    Claim(
        "The SVD into vertical and horizontal filters is the global optimum (Tai et al.)",
        "a theorem",
        _fixed("no fit of the same rank is better; error² = Σ_{k>K} D²"),
        "`tests/schemes/test_closed_forms.py`",
    ),
    Claim(
        "Low-rank networks train from scratch with norms between the factors (Tai et al.)",
        "needed in deep networks",
        _norms,
        "`recipes/mnist/lenet5-spatial.yaml`",
        "LeNet-5 is too shallow to need them; a deep network was not trained",
    ),
    Claim(
        "One shot: EVBMF, Tucker-2, fine-tuning (Kim et al.)",
        "AlexNet 5.46×, 1.81× faster, −1.70 points top-5",
        _row("lenet5-kim"),
        "`recipes/mnist/lenet5-kim.yaml`",
        "LeNet-5; no ImageNet here. As printed: `lenet5-kim-printed.yaml`, not trained",
    ),
    Claim(
        "CP by non-linear least squares, then fine-tuning (Lebedev et al.)",
        "a method; no number in the lecture",
        _cp,
        "[decompositions](decompositions.md#cp)",
        "kernels alone; a network was not fine-tuned",
    ),
    Claim(
        "VGG-16 by low rank + sparse (Yu et al.)",
        "4.44×, 2.20×, −0.40 points",
        _sparse,
        "`recipes/cifar10/vgg16-sparse.yaml`",
        "1 seed, dense 10.79 % after 12 epochs, pressed 20 more; low rank alone does better",
    ),
    Claim(
        "NIN by low rank + sparse (Yu et al.)",
        "2.77×, 1.70×, −0.41 points",
        _row("nin-sparse"),
        "`recipes/cifar10/nin-sparse.yaml`",
        "the count of 2.77× is tested",
    ),
    Claim(
        "AlexNet and GoogLeNet on ImageNet",
        "5.56×, 1.10× faster, −1.27 points top-5; 2.87×, 1.35×, 0.00",
        _fixed("not run"),
        "",
        "ImageNet is not available here",
    ),
)

TRAINS = (
    Claim(
        "Counts of the pressed networks",
        "41.65× and 82.87×",
        _fixed("41.651× and 82.868×"),
        "`tests/runs/test_conv_fc_recipes.py`",
        "with batch norms and biases, as the source counts",
    ),
    Claim(
        "TT-conv and TT-FC together at 80×",
        "90.5 → 89.4 %",
        _row("conv-fc-tt"),
        "`recipes/cifar10/conv-fc-tt.yaml`",
        "10 epochs dense and 7 pressed, where the source trained for 100",
    ),
    Claim(
        "The same from a random start",
        "no number",
        _row("conv-fc-tt-scratch"),
        "`recipes/cifar10/conv-fc-tt-scratch.yaml`",
    ),
    Claim(
        "A train of the 4-D kernel is worse at equal parameters",
        "a statement",
        _row("conv-fc-tt-naive"),
        "`recipes/cifar10/conv-fc-tt-naive.yaml`",
    ),
)

ADA_TUCKER = (
    Claim(
        "LeNet-5",
        "2,495 B nominal, 0.94 %",
        _row("lenet5-ada"),
        "`recipes/mnist/lenet5-ada.yaml`",
        "a whole file against a nominal size",
    ),
    Claim(
        "LeNet-5 at the source's count",
        "2.6K params, 0.84 % raw",
        _row("lenet5-ada-2599"),
        "`recipes/mnist/lenet5-ada-2599.yaml`",
        "not reached; the source does not state its shapes",
    ),
    Claim(
        "LeNet-5 with a shared core",
        "2,278 B nominal, 1.18 %",
        _row("lenet5-scada"),
        "`recipes/mnist/lenet5-scada.yaml`",
        "a whole file against a nominal size",
    ),
    Claim(
        "LeNet-5, trained for size",
        "–",
        _row("lenet5-1200"),
        "`recipes/mnist/lenet5-1200.yaml`",
        "beyond the source: [training for size](training-for-size.md)",
    ),
    Claim(
        "LeNet-300-100",
        "4,577 B nominal, 1.91 %",
        _row("lenet300100-ada"),
        "`recipes/mnist/lenet300100-ada.yaml`",
        "a whole file against a nominal size",
    ),
    Claim(
        "LeNet-300-100 at the source's count",
        "4.1K params, 1.88 % raw",
        _row("lenet300100-ada-4108"),
        "`recipes/mnist/lenet300100-ada-4108.yaml`",
        "not reached",
    ),
    Claim(
        "LeNet-300-100 with a shared core",
        "3,322 B nominal, 2.26 %",
        _row("lenet300100-scada"),
        "`recipes/mnist/lenet300100-scada.yaml`",
        "a whole file against a nominal size",
    ),
    Claim(
        "1024-1024-10, 6,824 parameters",
        "1.87 % raw",
        _row("fc1024-ada"),
        "`recipes/mnist/fc1024-ada.yaml`",
        "other shapes of as many parameters",
    ),
    Claim(
        "The same network by tensor trains is no better with 7,698 parameters",
        "1.9 % raw",
        _row("fc1024-tt"),
        "`recipes/mnist/fc1024-tt.yaml`",
        "modes and ranks of ours; the same training as ADA-Tucker's",
    ),
    Claim(
        "CIFAR network of Table 10 at 64×, with a shared core at 73×",
        "17.97 %, 20.27 % (dense 14.37 %)",
        _fixed(NOT_TRAINED),
        "",
        "Table 11 adds up to 68×",
    ),
    Claim(
        "SVHN at 64×, with a shared core at 73× (Table 2)",
        "4.41 %, 3.92 % (dense 3.69 %)",
        _fixed("not run"),
        "",
        "a reader for the official files is there",
    ),
    Claim(
        "ResNet-20, Table 12",
        "8.75 → 9.03 %, “12×”",
        _row("resnet20-ada"),
        "`recipes/cifar10/resnet20-ada.yaml`",
        "not reached: 13 epochs; 3.8× of the parameters, the rest of “12×” must be coding",
    ),
    Claim(
        "ResNet-20 in a twentieth, dense weights trained for size",
        "–",
        _row("resnet20-20x"),
        "`recipes/cifar10/resnet20-20x.yaml`",
        "beyond the source; 0.61 points lost",
    ),
    Claim(
        "WRN-28-10, Table 13",
        "“58×”, 18.8× of the parameters",
        _fixed("counts row by row; not trained"),
        "`recipes/cifar10/wrn28-10-ada.yaml`",
        "18.8 counts the 3×3 convolutions of the blocks; all of it is 16.4×",
    ),
    Claim(
        "Figures 4 to 7: order, evenness, shared core",
        "fourth and fifth order best, square cores best",
        _fixed("partly the same"),
        "[results](results.md#order-evenness-of-the-core-a-shared-core)",
        "one epoch, one seed",
    ),
    Claim(
        "Glorot, Kaiming and HOOI starts perform alike", "a statement", _fixed("not compared"), ""
    ),
    Claim(
        "AlexNet's second convolution against CP and Tucker",
        "less than 4 points lost at 18×",
        _fixed("not run"),
        "",
        "ImageNet is not available here",
    ),
)

ONE_SHOT = tuple(
    Claim(
        f"{network}, Tucker-2 with EVBMF",
        f"{ratio}×, {before} → {after} %",
        lambda n=name: f"EVBMF: {_file_row(f'{n}-evbmf')}; 3×: {_file_row(f'{n}-3x')}",
        f"`recipes/cifar10/{name}-evbmf.yaml`, `{name}-3x.yaml`",
    )
    for network, name, ratio, before, after in (
        ("AlexNet", "alexnet", "1.04", "74.7", "78.3"),
        ("ResNet-18", "resnet18", "1.18", "80.7", "80.5"),
        ("VGG-16", "vgg16-fc", "1.11", "86.6", "80.3"),
        ("ShuffleNet V2", "shufflenet", "1.81", "85.4", "90.0"),
        ("DenseNet-161", "densenet161", "1.08", "86.1", "91.0"),
    )
)

CLAIMS = {
    "claims_tucker": KIM,
    "claims_lecture": LECTURE,
    "claims_trains": TRAINS,
    "claims_ada_tucker": ADA_TUCKER,
    "claims_one_shot": ONE_SHOT,
}
