"""What mkdocs does beyond its pages: the generated reference, links into the repository, checks of the built site."""

from __future__ import annotations

import logging
import posixpath
import re
import runpy
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "https://github.com/boltzformer-monai/boltzformer-monai/blob/main"
LIST = "external-links.txt"
"""Of the site: every address outside of it that a page links to, one a line. They are not fetched."""

_log = logging.getLogger("mkdocs.hooks.boltzformer")  # warnings below mkdocs fail a strict build
_reference = runpy.run_path(str(Path(__file__).with_name("reference.py")))
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
_LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*?\bsrc=["'](?:https?:)?//[^"']*"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preconnect|preload))[^>]*?\bhref=["'](?:https?:)?//[^"']*"""
)
_CELL = re.compile(r"<td\b.*?</td>", re.DOTALL)
_HREF = re.compile(r"""<a\b[^>]*?\bhref=["'](https?://[^"'#]+)""")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the API's pages to the navigation."""
    names = {package: package.partition(".")[2] or package for package in _reference["packages"]()}
    pages = [{name: f"reference/api/{package}.md"} for package, name in names.items()]
    section = next(entry["Reference"] for entry in config.nav or [] if "Reference" in entry)
    section.append({"Python": pages})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the repository's own files that are pages too."""
    generated = {f"reference/{name}.md": text for name, text in _reference["pages"]().items()}
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        generated[f"{name.lower()}.md"] = _LINK.sub(_from_root, text)
    for path, text in generated.items():
        files.append(File.generated(config, path, content=text))
    return files


def _from_root(link: re.Match[str]) -> str:
    """A link of a file in the repository's root, as one of a page in docs/."""
    before, target, after = link.groups()
    if target.startswith(("http:", "https:", "#")):
        return link[0]
    return f"{before}{target.removeprefix('docs/') if target.startswith('docs/') else f'../{target}'}{after}"


def on_page_markdown(markdown: str, page: Page, **settings: Any) -> str:
    """Links that leave docs/ become links to the repository; those to nothing are warned of."""

    def outside(link: re.Match[str]) -> str:
        before, target, after = link.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), target.split("#")[0]))
        if re.match(r"[a-z]+:|#", target) or path.startswith("docs/"):
            return link[0]
        if not (ROOT / path).exists():
            _log.warning("%s links to %s, which the repository does not have", page.file.src_uri, target)
        return f"{before}{SOURCE}/{path}{after}"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(outside, part) for part in parts)


def on_page_content(html: str, **settings: Any) -> str:
    """A bar of code in a table's cell is escaped in Markdown; GitHub takes the backslash away, mkdocs does not."""
    return _CELL.sub(lambda cell: cell[0].replace("\\|", "|"), html)


def on_post_build(config: MkDocsConfig) -> None:
    """List the links that leave the site; warn of what a page would load from elsewhere."""
    site, addresses = Path(config.site_dir), set()
    for path in site.rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        addresses.update(_HREF.findall(html))
        if found := _LOADED.search(html):
            _log.warning("%s loads something from elsewhere: %s", path.relative_to(site), found[0])
    (site / LIST).write_text("".join(f"{address}\n" for address in sorted(addresses)), encoding="utf-8")
    _log.info("%d external links, not fetched: %s", len(addresses), site / LIST)
