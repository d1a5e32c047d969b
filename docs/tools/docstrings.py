"""Docstrings of the package, which name things as Sphinx does, as Markdown with links."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)\.?([\w.]+)(?:\(\))?`")
_LITERAL_BLOCK = re.compile(r"::$", re.MULTILINE)


def as_markdown(text: str, place: str = "") -> str:
    """Replace roles by links to what they name, where a page has it, and ``::`` before a block by a colon.

    Args:
        text: docstring.
        place: dotted name of the module it stands in, where names without dots are looked up.
    """

    def link(role: re.Match[str]) -> str:
        short, name = role.groups()
        shown = name.rsplit(".", 1)[-1] if short else name
        target = name if name.startswith("boltzformer_monai") else f"{place}.{name}"
        return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'

    return _ROLE.sub(link, _LITERAL_BLOCK.sub(":", text))


class Docstrings(griffe.Extension):
    """Applies :func:`as_markdown` to every docstring that mkdocstrings reads."""

    def on_object(self, *, obj: griffe.Object, **settings: Any) -> None:
        """Rewrite the object's docstring in place."""
        if obj.docstring and not obj.is_alias:
            obj.docstring.value = as_markdown(obj.docstring.value, obj.module.path)
