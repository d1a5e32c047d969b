"""The form of our HTML pages: one file, no scripts, no external resources, safe to mail and to archive."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from boltzformer_monai.errors import ConfigError

__all__ = ["figure", "html_page", "table"]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Nothing may be fetched or run, even if a text slipped through the escaping.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --text: #1d2330; --soft: #5a6375; --line: #d5dae3; --page: #ffffff; --card: #f5f7fa; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ef; --soft: #a3adbf; --line: #3a4252; --page: #14171d; --card: #1d222b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 64rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.note, figcaption { color: var(--soft); font-size: .92rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; padding: 0;
  list-style: none; }
.numbers li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.numbers strong { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .92rem; padding-bottom: .3rem; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, .facts td { text-align: left; }
tbody tr.total > * { font-weight: 600; }
figure { margin: 1rem 0 1.6rem; } img { max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
.swatch { display: inline-block; width: .9em; height: .9em; vertical-align: -.1em; border-radius: .15em; }
.green { background: #1acc4d; } .red { border: 2px solid #f22626; }
"""


def html_page(title: str, body: Iterable[str], *, style: str = "") -> str:
    """Return a whole page.

    Args:
        title: plain text.
        body: HTML, a section each.
        style: CSS beside that of all pages.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, total: bool = False) -> str:
    """Return a table of plain texts; the first cell of a row is its heading, ``total`` sets off the last row."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in headings)
    lines = []
    for index, (first, *others) in enumerate(rows):
        mark = ' class="total"' if total and index == len(rows) - 1 else ""
        cells = "".join(f"<td>{escape(text)}</td>" for text in others)
        lines.append(f'<tr{mark}><th scope="row">{escape(first)}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def figure(caption: str, png: bytes, *, alt: str) -> str:
    """Return a picture with its caption.

    Raises:
        ConfigError: it is not a PNG.
    """
    if not png.startswith(_PNG_SIGNATURE):
        msg = f"the picture {caption!r} of the report is not a PNG"
        raise ConfigError(msg)
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
