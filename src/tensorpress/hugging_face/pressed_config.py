"""The ``config.json`` of a pressed Transformers model."""

import json
from pathlib import Path
from typing import Any

from tensorpress.errors import CorruptFileError, InvalidArgumentError
from tensorpress.planning.plan import Plan
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.config_parsing import parse_json
from tensorpress.utils.paths import read_file

PLAN = "plan.json"
"""The file with the plan in a pressed folder."""

CONFIG = "config.json"
METHOD = "tensorpress"
"""The ``quant_method`` of a pressed model."""

QUANTIZATION = "quantization_config"
WEIGHTS = "transformers_weights"

REFUSAL = "this model is pressed by TensorPress; `import tensorpress` before you load it"
"""The value of ``transformers_weights``, which makes transformers refuse to load a folder.

Transformers only warns about an unknown ``quant_method`` and would initialize pressed layers at
random. For a weight file that is not safetensors, it raises an error with the file's name.
"""


def mark_config(folder: Path, plan: Plan) -> None:
    """Write a plan to the config of a Transformers model, if the folder has one."""
    content = _read(folder / CONFIG)
    if "model_type" in content:
        content |= pressed_entries(plan)
        write_atomically(folder / CONFIG, json.dumps(content, indent=2).encode() + b"\n")


def unmark_config(folder: Path) -> None:
    """Remove the plan from the config of a folder, if any."""
    if is_marked(folder):
        content = _read(folder / CONFIG)
        rest = {key: content[key] for key in content if key not in (QUANTIZATION, WEIGHTS)}
        write_atomically(folder / CONFIG, json.dumps(rest, indent=2).encode() + b"\n")


def pressed_entries(plan: Plan) -> dict[str, Any]:
    """Return the config entries of a pressed model."""
    return {QUANTIZATION: {"quant_method": METHOD, "plan": plan.to_dict()}, WEIGHTS: REFUSAL}


def read_plan(folder: Path) -> Plan | None:
    """Return the plan of a folder, from its file or config, or None.

    Raises
    ------
    CorruptFileError
        If the config is not JSON.
    InvalidArgumentError
        If the plan is invalid.
    """
    if (folder / PLAN).is_file():
        return Plan.read(folder / PLAN)
    if not is_marked(folder):
        return None
    plan = _read(folder / CONFIG)[QUANTIZATION].get("plan")
    return None if plan is None else Plan.from_dict(plan)


def is_marked(folder: Path) -> bool:
    """Return whether the config of a folder is that of a pressed model."""
    method = _read(folder / CONFIG).get(QUANTIZATION)
    return isinstance(method, dict) and method.get("quant_method") == METHOD


def _read(path: Path) -> dict[str, Any]:
    """Return the entries of a config, or nothing if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = parse_json(read_file(path))
    except InvalidArgumentError as error:
        raise CorruptFileError(f"{path} {error}") from None
    return content if isinstance(content, dict) else {}
