"""A sweep as one self-contained HTML page, in the look of a run's report."""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from tensorpress.report import formatting, require_extra
from tensorpress.sweep.table import in_order, spread


def render(content: Mapping[str, Any]) -> str:
    """Return the page as HTML with everything it needs inside, about 5 MB.

    As with a run's report the browser may load nothing, and all text of the content is escaped.

    Parameters
    ----------
    content
        What `tensorpress.sweep.sweep` returns.

    Raises
    ------
    TensorPressError
        If plotly or jinja2, the extra ``report``, is not installed.

    Examples
    --------
    >>> sweep = {"title": "LeNet-5 & co", "network": "lenet5", "data": "mnist", "seeds": [0]}
    >>> page = render({**sweep, "variants": [], "picks": [], "references": []})
    >>> "LeNet-5 &amp; co" in page
    True
    """
    require_extra()
    import jinja2
    from plotly.offline import get_plotlyjs

    from tensorpress.sweep.figure import frontier_figure

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [
                jinja2.PackageLoader("tensorpress.sweep", ""),
                jinja2.PackageLoader("tensorpress.report", ""),
            ]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figure = frontier_figure(content)
    return environment.get_template("sweep.html.jinja").render(
        content=content,
        variants=in_order(content),
        fmt=formatting,
        spread=spread,
        as_yaml=_as_yaml,
        plots={"frontier": [json.loads(figure.to_json())]},
        plotlyjs=get_plotlyjs(),
    )


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
