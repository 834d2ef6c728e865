"""The HTML templates of pages."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


def load_template(name: str, package: str = "tensorpress.report") -> "Template":
    """Return a template of a package, which may extend and include those of reports.

    Text is escaped, and missing values are errors.
    """
    import jinja2

    packages = dict.fromkeys((package, "tensorpress.report"))
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(one, "") for one in packages]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
