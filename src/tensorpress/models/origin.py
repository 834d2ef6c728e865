"""The origin of a model in a folder: its dense model, weights and data."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tensorpress.errors import ModelMismatchError, TensorPressError
from tensorpress.models.names import parse_name
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.config_parsing import parse_json
from tensorpress.utils.paths import read_file

FILE = "origin.json"
"""The file with the origin of the model in a folder."""

_TRUSTED = ("", "torchvision", "timm")
"""Libraries that a folder may name, because they run no code of the folder's author."""


@dataclass(frozen=True)
class Origin:
    """The origin of a model in a folder.

    Attributes
    ----------
    model : str or None
        The name of the dense model, as in `tensorpress.models.load_model`.
    weights : str or None
        The path of the dense model's weights when the folder was written.
    data : str or None
        The data that the model was fitted to or tested on.
    preprocess : str or None
        The preprocessing of images, if the name of the model does not determine it.
    """

    model: str | None = None
    weights: str | None = None
    data: str | None = None
    preprocess: str | None = None

    def write(self, folder: Path) -> None:
        """Write the origin to a folder, unless it is in Hugging Face's layout and has a config."""
        if self.model is None or parse_name(self.model).origin == "hf":
            return
        content = {key: value for key, value in asdict(self).items() if value is not None}
        write_atomically(folder / FILE, json.dumps(content).encode())

    @staticmethod
    def read(folder: Path) -> "Origin":
        """Read the origin of an untrusted folder; it is empty if there is none."""
        try:
            content = parse_json(read_file(folder / FILE))
        except TensorPressError:
            return Origin()
        keys = Origin.__dataclass_fields__
        texts = content.items() if isinstance(content, dict) else ()
        return Origin(**{k: v for k, v in texts if k in keys and isinstance(v, str)})

    def trusted_model(self, folder: Path) -> str | None:
        """Return the name of the dense model, or None if the folder does not have it.

        Raises
        ------
        ModelMismatchError
            If the name is that of a function, which only the user may choose.
        """
        if self.model is not None and parse_name(self.model).origin not in _TRUSTED:
            raise ModelMismatchError(
                f"{folder} was made from {self.model}, and building that runs its code: pass "
                f"--model {self.model} if you trust it"
            )
        return self.model
