"""Overlays as one small picture, quickly enough to be made after every validation."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from boltzformer_monai.evaluation.figures import PREDICTION_COLOUR, TRUTH_COLOUR, OverlayPanel
from boltzformer_monai.evaluation.overlay import blend

__all__ = ["tile_panels", "tiles_png"]

_EDGE = 256  # pixels of a panel
_TITLE = 22
_FONT_SIZE = 13
_COLUMNS = 4
_OUTLINE = 2


def tile_panels(panels: Sequence[OverlayPanel], *, aspects: Sequence[float] | None = None) -> np.ndarray:
    """Panels side by side, up to four per row, each enlarged or reduced to the same size.

    Args:
        panels: at least one.
        aspects: of each panel, the height of a pixel over its width; default: square pixels.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    columns = min(len(panels), _COLUMNS)
    rows = math.ceil(len(panels) / columns)
    sheet = Image.new("RGB", (columns * _EDGE, rows * (_EDGE + _TITLE)), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for index, panel in enumerate(panels):
        left, top = index % columns * _EDGE, index // columns * (_EDGE + _TITLE)
        draw.text((left + 4, top + 3), _fitted(panel.title, font), fill="black", font=font)
        tile = _tile(panel, 1.0 if aspects is None else aspects[index])
        offsets = ((_EDGE - tile.width) // 2, (_EDGE - tile.height) // 2)
        sheet.paste(tile, (left + offsets[0], top + _TITLE + offsets[1]))
    return np.asarray(sheet)


def tiles_png(sheet: np.ndarray) -> bytes:
    """A sheet of :func:`tile_panels` as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG")
    return buffer.getvalue()


def _tile(panel: OverlayPanel, aspect: float) -> Image.Image:
    """A panel as large as its square allows, with the truth outlined in pixels of the sheet."""
    height, width = panel.image.shape[0] * aspect, float(panel.image.shape[1])
    scale = (_EDGE - 2) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    rgb = blend(panel.image, panel.prediction, np.array([PREDICTION_COLOUR]))
    filled = np.asarray(Image.fromarray((255 * rgb).round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    if panel.truth is None:
        return Image.fromarray(filled)
    truth = np.asarray(Image.fromarray(panel.truth).resize(size, Image.Resampling.NEAREST)).astype(bool)
    outline = truth & ~ndimage.binary_erosion(truth, iterations=_OUTLINE)
    colour = (255 * np.array(TRUTH_COLOUR)).round().astype(np.uint8)
    return Image.fromarray(np.where(outline[..., None], colour, filled))


def _font() -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), _FONT_SIZE)


def _fitted(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Text cut to the width of a panel."""
    if font.getlength(text) <= _EDGE - 8:
        return text
    while text and font.getlength(f"{text}…") > _EDGE - 8:
        text = text[:-1]
    return f"{text}…"
