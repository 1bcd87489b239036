"""What all pages share: Jinja2 templates that escape everything, and one file without links."""

import functools
from typing import Any

import jinja2
from etils import epath

from ofa_jax.utils import files


@functools.cache
def _environment() -> jinja2.Environment:
    """Returns the environment of the templates beside this module."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("ofa_jax.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: epath.PathLike, template: str, **values: Any) -> None:
    """Renders a template and writes the page atomically.

    Args:
      path: of the page.
      template: file name in `templates/`.
      **values: of the template.
    """
    text = _environment().get_template(template).render(values)
    # Texts of data sets may contain lone surrogates, which are not UTF-8.
    files.write_text(path, text.encode("utf-8", "replace").decode("utf-8"))
