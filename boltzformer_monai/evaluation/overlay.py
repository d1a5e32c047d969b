"""Coloured masks on a grey slice, and matplotlib figures as PNG bytes; shared by contact sheets and reports.

Without pyplot, which is global and not thread-safe. matplotlib is imported on first use.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["OPACITY", "blend", "grey_rgb", "new_figure", "png_bytes", "plain_text"]

OPACITY = 0.45
_DPI = 100


def grey_rgb(image: np.ndarray) -> np.ndarray:
    """Grey image ``(H, W)`` uint8 → RGB ``(H, W, 3)`` float64, 0–1."""
    return np.repeat(image[..., None] / 255.0, 3, axis=2)


def blend(image: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Fill labelled pixels with half-transparent colours.

    Args:
        image: ``(H, W)`` uint8.
        labels: ``(H, W)``, integer or bool; 0 stays grey.
        colours: ``(N, 3)`` RGB 0–1 for the labels 1 … N.

    Returns:
        ``(H, W, 3)`` float64, 0–1.
    """
    rgb = grey_rgb(image)
    mask = labels > 0
    rgb[mask] = (1 - OPACITY) * rgb[mask] + OPACITY * np.asarray(colours)[labels[mask].astype(int) - 1]
    return rgb


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")


def png_bytes(figure: Figure) -> bytes:
    """Render a figure, reproducibly: the file omits matplotlib's version."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def plain_text(text: str) -> str:
    """Escape dollar signs, which matplotlib would read as mathematics."""
    return text.replace("$", r"\$")
