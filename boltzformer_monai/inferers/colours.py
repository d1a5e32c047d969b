"""Colours of prompts, the same in the contact sheet and in an RTSTRUCT."""

from __future__ import annotations

import colorsys

__all__ = ["prompt_colour"]

# Distinct on grey: Okabe and Ito's colours without grey and black, then lighter ones; then any hue.
_COLOURS = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#4C8DFF", "#B3E600", "#FF6F91", "#7FDBCA",
    "#C08CFF", "#FFB4A2",
)  # fmt: skip


def prompt_colour(index: int) -> str:
    """``"#RRGGBB"`` of a prompt; ``index`` counts from 0."""
    if index < len(_COLOURS):
        return _COLOURS[index]
    hue = 0.618034 * index % 1  # the golden section keeps hues apart
    return "#" + "".join(f"{round(255 * part):02X}" for part in colorsys.hsv_to_rgb(hue, 0.65, 0.95))
