"""The origin of a model in a folder: which dense model it was made from, and for which data."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tensorpress.errors import ModelMismatchError, TensorPressError
from tensorpress.models.names import parse_name
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.config_parsing import parse_json
from tensorpress.utils.paths import read_file

FILE = "origin.json"
"""The file of a folder that holds its origin."""

_TRUSTED = ("", "torchvision", "timm")
"""Libraries of models that a folder may name: to build them runs no code of the folder's author."""


@dataclass(frozen=True)
class Origin:
    """What a folder says of its model.

    Attributes
    ----------
    model : str or None
        The name of the dense model, as for `tensorpress.models.load_model`.
    weights : str or None
        The file of the dense model's weights, where it was when the folder was written.
    data : str or None
        The data that the model was fitted to or tested on.
    preprocess : str or None
        How the model takes images, where its name does not say it.
    """

    model: str | None = None
    weights: str | None = None
    data: str | None = None
    preprocess: str | None = None

    def write(self, folder: Path) -> None:
        """Write the origin into a folder; one in Hugging Face's layout has a config instead."""
        if self.model is None or parse_name(self.model).origin == "hf":
            return
        content = {key: value for key, value in asdict(self).items() if value is not None}
        write_atomically(folder / FILE, json.dumps(content).encode())

    @staticmethod
    def read(folder: Path) -> "Origin":
        """Read the origin of a folder, which is not trusted; it is empty where there is none."""
        try:
            content = parse_json(read_file(folder / FILE))
        except TensorPressError:
            return Origin()
        keys = Origin.__dataclass_fields__
        texts = content.items() if isinstance(content, dict) else ()
        return Origin(**{k: v for k, v in texts if k in keys and isinstance(v, str)})

    def trusted_model(self, folder: Path) -> str | None:
        """Return the name of the dense model, or None where the folder does not have it.

        Raises
        ------
        ModelMismatchError
            If the name is of a function, which only a user may name.
        """
        if self.model is not None and parse_name(self.model).origin not in _TRUSTED:
            raise ModelMismatchError(
                f"{folder} was made from {self.model}, and to build that runs code: say by --model "
                f"{self.model} that you trust it"
            )
        return self.model
