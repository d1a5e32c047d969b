"""Opening PNG files with a limit on their pixels."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from boltzformer_monai.limits import memory_budget, open_file

__all__ = ["open_picture"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_PIXELS = 1 << 26  # 8192 x 8192: far above any slice, and below Pillow's own warning
_COPIES = 12  # bytes of a pixel while it is decoded and converted: RGBA, RGB, grey, and one to spare


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open a PNG file; its pixels are decoded on access.

    Raises:
        OSError: it cannot be opened, is no regular file or no PNG.
        ValueError: it claims too many pixels.
        SyntaxError: Pillow's error for damaged chunks.
    """
    with open_file(path) as file:
        head = file.read(24)
        if head[:8] == _SIGNATURE and len(head) == 24:  # Pillow reports other damage
            width, height = struct.unpack_from(">2I", head, 16)
            if width * height > min(_MOST_PIXELS, memory_budget() // _COPIES):
                raise ValueError(f"it claims {width}x{height} pixels, more than are read of an image")
        file.seek(0)
        try:
            with Image.open(file, formats=("PNG",)) as image:
                yield image
        except Image.DecompressionBombError as error:  # a second header within the file
            raise ValueError(str(error)) from None
