"""Contact sheet of a segmented volume: selected slices with coloured masks, a legend of all prompts, and caveats."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.data.planes import extract_slices, radiological, slice_spacing
from boltzformer_monai.data.windows import GreyScale, MRPercentiles, default_window
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.overlay import blend, new_figure, plain_text, png_bytes
from boltzformer_monai.findings.lesions import Lesion
from boltzformer_monai.inferers.colours import prompt_colour
from boltzformer_monai.inferers.volume_result import VolumeResult
from boltzformer_monai.io.volume import Volume

__all__ = ["contact_sheet"]

_COLUMNS = 4
_WIDTH = 2.6  # inches of one slice
_LEGEND_LETTERS = 48
_LETTERS_PER_INCH = 15
_MOST_NOTES = 6
_MOST_NUMBERS = 20  # in one slice
_DOUBT = "#B00020"


def contact_sheet(
    result: VolumeResult,
    *,
    plane: str = "axial",
    window: GreyScale | None = None,
    slices: int = 12,
    modality: str | None = None,
    lesions: Sequence[Sequence[Lesion]] = (),
) -> bytes:
    """Render slices of a result as one PNG.

    For every prompt the slice with its largest area; the others are spread evenly over the extent of all masks, or of
    the volume if nothing was found. A voxel that several prompts claim has the colour of the most probable one.

    Args:
        result: of the inferer.
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``, at its physical aspect ratio.
        window: of the grey values; default: soft tissue for CT, percentiles otherwise.
        slices: largest number.
        modality: of a scan that does not state its own.
        lesions: of each prompt, whose numbers are written beside them.

    Raises:
        ConfigError: an unknown plane, or no slices.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch
    from matplotlib.patheffects import withStroke

    if slices < 1:
        raise ConfigError(f"a contact sheet has at least one slice, not {slices}")
    grid = result.grid
    labels = extract_slices(Volume(result.label_map("probability"), grid.affine), plane)
    images = extract_slices(Volume(_grey(grid, window, modality), grid.affine), plane)
    row_mm, column_mm, _ = slice_spacing(grid, plane)
    chosen, notes = _chosen(labels, len(result.prompts), slices), _notes(result.caveats)
    legend = _legend(result, lesions)
    ratio = images.shape[1] * row_mm / (images.shape[2] * column_mm)
    across = min(len(chosen), _COLUMNS)
    down = math.ceil(len(chosen) / across)
    columns = max(1, min(3, round(across * _WIDTH / 3.2)))
    lines = math.ceil(len(legend) / columns)
    height = min(max(_WIDTH * ratio, 0.6), 5.0)
    width = max(across * _WIDTH, 3.4)
    above = [line for text, _ in notes for line in textwrap.wrap(text, int(width * _LETTERS_PER_INCH))]
    figure = new_figure(width, (height + 0.25) * down + 0.22 * lines + 0.3 + 0.16 * len(above))
    colours = np.array([to_rgb(prompt_colour(index)) for index in range(len(legend))])
    outline = withStroke(linewidth=1.5, foreground="black")
    for position, index in enumerate(chosen):
        axes = figure.add_subplot(down, across, position + 1)
        axes.imshow(blend(images[index], labels[index], colours), interpolation="nearest", aspect=row_mm / column_mm)
        axes.set_axis_off()
        axes.set_title(f"{plane} {index + 1} of {len(images)}", fontsize=8)
        for number, column, row in _numbers(grid, plane, labels[index], index, lesions):
            axes.annotate(str(number), (column, row), color="white", fontsize=6, path_effects=[outline])
    handles: list[Any] = [
        Patch(facecolor=colour or "white", edgecolor=colour or "#999999", label=plain_text(text))
        for text, colour in legend
    ]
    if above:
        colour = _DOUBT if any(doubtful for _, doubtful in notes) else "#444444"
        figure.suptitle(plain_text("\n".join(above)), x=0.01, ha="left", fontsize=8, color=colour)
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, fontsize=8, frameon=False)
    return png_bytes(figure)


def _grey(grid: Volume, window: GreyScale | None, modality: str | None) -> np.ndarray:
    if window is not None:
        return window.apply(grid.array)
    known = (modality or "unknown") if grid.modality == "unknown" else grid.modality
    scale = MRPercentiles() if known == "unknown" else default_window(known, "")
    return scale.apply(grid.array)


def _chosen(labels: np.ndarray, prompts: int, slices: int) -> list[int]:
    """Indices of the slices, ascending."""
    areas = np.stack([np.bincount(plane.ravel(), minlength=prompts + 1)[1:] for plane in labels])
    found = [index for index in np.argsort(-areas.sum(axis=0), kind="stable") if areas[:, index].any()]
    chosen = list(dict.fromkeys(int(areas[:, index].argmax()) for index in found))[:slices]
    filled = np.flatnonzero(areas.any(axis=1)) if found else np.arange(len(labels))
    spread = np.linspace(0, len(filled) - 1, min(slices, len(filled))).round().astype(int)
    for index in filled[spread]:
        if len(chosen) < slices and int(index) not in chosen:
            chosen.append(int(index))
    return sorted(chosen)


def _numbers(
    grid: Volume, plane: str, labels: np.ndarray, index: int, lesions: Sequence[Sequence[Lesion]]
) -> list[tuple[int, float, float]]:
    """(number, column, row) of the largest lesions that a slice (H, W) of the plane cuts."""
    slicing = radiological(grid, plane)
    row_mm, column_mm, slice_mm = slicing.spacing(grid)
    to_voxel = np.linalg.inv(slicing.axes.apply_to_affine(grid.affine, grid.shape))  # of slice, row and column
    found = []
    for value, of_prompt in enumerate(lesions, 1):
        rows, columns = np.nonzero(labels == value)
        for lesion in of_prompt if len(rows) else ():
            centre = to_voxel @ (*lesion.centre_mm, 1)
            # Within its sphere only: the nearest pixel of another slice or lesion is not its own.
            squares = ((rows - centre[1]) * row_mm) ** 2 + ((columns - centre[2]) * column_mm) ** 2
            squares += ((index - centre[0]) * slice_mm) ** 2
            nearest = int(squares.argmin())
            if squares[nearest] <= (lesion.diameter_mm / 2) ** 2:
                found.append((lesion.voxels, lesion.number, float(columns[nearest]), float(rows[nearest])))
    return [each[1:] for each in sorted(found, key=lambda each: -each[0])[:_MOST_NUMBERS]]


def _legend(result: VolumeResult, lesions: Sequence[Sequence[Lesion]]) -> list[tuple[str, str | None]]:
    """(text, colour) of each prompt; no colour if it was not found."""
    entries: list[tuple[str, str | None]] = []
    for index, finding in enumerate(result.findings):
        prompt = " ".join(finding.prompt.split())
        if not _has_glyphs(prompt):
            prompt = f"label {index + 1} (see the JSON file)"
        short = prompt if len(prompt) <= _LEGEND_LETTERS else prompt[: _LEGEND_LETTERS - 1] + "…"
        volume = f"{finding.volume_ml:.0f}" if finding.volume_ml >= 100 else f"{finding.volume_ml:.3g}"
        size = f"{volume} ml" if finding.found else "not found"
        if len(lesions) > index and len(lesions[index]) > 1:
            size += f" in {len(lesions[index])} lesions"
        entries.append((f"{short}: {size}", prompt_colour(index) if finding.found else None))
    return entries


def _notes(caveats: Sequence[Caveat]) -> list[tuple[str, bool]]:
    """(line, whether it puts the result in doubt) of the first caveats."""
    notes = []
    for each in caveats[:_MOST_NOTES]:
        text = " ".join(each.text.split())
        if not _has_glyphs(text):
            text = "".join(letter if _has_glyphs(letter) else "?" for letter in text)
        notes.append((f"In doubt: {text}" if each.doubtful else f"Note: {text}", each.doubtful))
    if more := len(caveats) - len(notes):
        notes.append((f"… and {more} more, see the JSON file", any(each.doubtful for each in caveats[_MOST_NOTES:])))
    return notes


def _has_glyphs(text: str) -> bool:
    """Whether the legend's font has all letters."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    letters = get_font(findfont(FontProperties())).get_charmap()
    return all(ord(letter) in letters for letter in text)
