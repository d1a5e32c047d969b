"""HTML pages from jinja2 templates: one file without scripts and external resources."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.storage import replacing

__all__ = ["write_html"]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_html(path: str | os.PathLike[str], template: str, *, package: str = __package__, **values: object) -> Path:
    """Render a template to a file atomically; returns the path.

    Values are escaped. The filter ``png`` turns the bytes of a PNG into a data URI.

    Args:
        path: the HTML file; its folder is created.
        template: in the package's folder ``templates``; it extends ``page.html``.
        package: of the template.
        values: the template's variables.

    Raises:
        ConfigError: an image is no PNG.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(__package__)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["png"] = _data_uri
    text = environment.get_template(template).render(**values)
    target = Path(path)
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def _data_uri(png: bytes) -> str:
    if not png.startswith(_PNG_SIGNATURE):
        raise ConfigError(f"an image of the page is not a PNG (it begins with {png[:8]!r}); render it again")
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
