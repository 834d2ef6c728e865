"""The page of a compressed model: one self-contained HTML file without scripts."""

import os
from collections.abc import Mapping
from typing import Any

from tensorpress.report import formatting
from tensorpress.utils.atomic_files import write_atomically

_LABELS = {
    "params": "parameters",
    "bytes": "bytes",
    "macs": "multiply–accumulates",
    "latency_ms": "milliseconds a pass",
}
_MEASURES = (
    ("error", "error", True),
    ("cosine", "cosine", False),
    ("agreement", "same prediction", True),
    ("divergence", "divergence, nats", False),
    ("dense_loss", "dense loss, nats", False),
    ("loss", "loss, nats", False),
)


def write_compression_page(
    result: Mapping[str, Any], title: str, path: str | os.PathLike[str], *, command: str = ""
) -> None:
    """Write the page of a compressed model.

    Parameters
    ----------
    result : mapping
        What `CompressResult.to_dict` returns.
    title : str
        Name of the model.
    path : path-like
        The file to write or replace.
    command : str
        What was run, for the foot of the page.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be written.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tensorpress.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("compression.html.jinja").render(
        result=result,
        title=title,
        labels=_LABELS,
        measures=_MEASURES,
        fmt=formatting,
        command=command,
    )
    write_atomically(path, page.encode())
