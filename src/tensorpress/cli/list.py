"""The command list."""

from pathlib import Path

from rich.table import Table

from tensorpress.cli.options import Json
from tensorpress.cli.output import print_json, print_table
from tensorpress.runs.library import list_library
from tensorpress.utils.config_parsing import parse_yaml

MODELS = {
    "NAME": "a network of the zoo, above",
    "torchvision:NAME": "of torchvision",
    "timm:NAME": "of timm",
    "hf:FOLDER_OR_ID": "of transformers, with its weights",
    "package.module:function": "the result of a function, which may be in this folder",
}
RANKS = {
    "0.5": "half of the largest ranks",
    "8": "rank 8 at every position",
    "16x32": "these ranks",
    "energy:0.9": "the lowest ranks with 90 % of the squared singular values",
    "evbmf": "the components above the noise",
    "evbmf:0.7": "0.7 of the way from the largest ranks down to these",
}
BUDGETS = {
    "params=50%": "parameters, relative to the dense model or absolute: 1.5M",
    "bytes=10MB": "bytes of parameters and buffers",
    "macs=300M": "multiply–accumulates per example",
    "latency=12ms": "time of a forward pass on this machine",
    "latency=60%@onnxruntime": "the same in onnxruntime, or in openvino",
}
SPREADS = {
    "error": "least sum of the layers' e² / (1 − e²), e the relative error of a weight",
    "energy": "greatest product of preserved PCA energies (Zhang et al. 2016)",
    "uniform": "the same fraction of the largest ranks for all layers; one scheme",
    "evbmf": "EVBMF's ranks, all scaled equally; one scheme",
    "responses": "greatest product of preserved response energies, with --data",
    "SCORES.json": "least sum of losses measured by tensorpress.sensitivity",
}


def list_command(as_json: Json = False) -> None:
    """List schemes, rank rules, budgets, networks, datasets, recipes and sweeps.

    Example: tensorpress list
    """
    from tensorpress.data import DATASETS
    from tensorpress.models.zoo import NETWORKS
    from tensorpress.schemes.registry import SCHEMES

    kinds = {
        "schemes": {name: scheme.summary for name, scheme in SCHEMES.items()},
        "ranks": RANKS,
        "budgets": BUDGETS,
        "ranks with a budget": SPREADS,
        "networks": {name: net.description for name, net in NETWORKS.items()},
        "models": MODELS,
        "data sets": {name: data.description for name, data in DATASETS.items()},
        "recipes": {name: _title(path) for name, path in list_library("recipe").items()},
        "sweeps": {name: _describe(path) for name, path in list_library("sweep").items()},
    }
    if as_json:
        print_json(kinds)
        return
    for kind, entries in kinds.items():
        table = Table(title=kind, title_justify="left", show_header=False, box=None)
        table.add_column(overflow="fold")
        for name, description in entries.items():
            table.add_row(name, description)
        print_table(table)


def _title(path: Path) -> str:
    return str(parse_yaml(path.read_text(encoding="utf-8"))["title"])


def _describe(path: Path) -> str:
    recipe = parse_yaml(path.read_text(encoding="utf-8"))["recipe"]
    return f"variants of {Path(recipe).stem}"
