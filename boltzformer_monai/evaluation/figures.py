"""Figures as PNG bytes: learning curves, overlays (the paper's Figure 9), sampled patches (4–8), FROC, reliability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.components import IOU_THRESHOLDS
from boltzformer_monai.evaluation.froc import fractions
from boltzformer_monai.evaluation.overlay import blend, grey_rgb, new_figure, plain_text, png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "OverlayPanel", "focus_by_layer", "froc_curves", "loss_curve", "overlay", "overlay_grid", "reliability_curves",
    "sampled_patches",
]  # fmt: skip

PREDICTION_COLOUR = (0.10, 0.80, 0.30)
TRUTH_COLOUR = (0.95, 0.15, 0.15)
_DIMMED = 0.22  # brightness of patches that were not sampled
_LIFTED = 0.15  # least brightness of sampled patches, so that sampled air is visible
_MAX_COLUMNS = 4
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c")


@dataclass(frozen=True)
class OverlayPanel:
    """One panel of an overlay grid.

    Attributes:
        image: (H, W) uint8.
        prediction: (H, W) bool, filled green.
        truth: (H, W) bool, outlined red; None if unknown.
        title: above the panel.
    """

    image: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray | None
    title: str

    def __post_init__(self) -> None:
        _check_image(self.image)
        _check_mask(self.prediction, self.image.shape, "prediction")
        if self.truth is not None:
            _check_mask(self.truth, self.image.shape, "truth")


def loss_curve(history: Sequence[Mapping[str, float | None]], *, best: float | None = None) -> bytes:
    """Plot training and validation loss and, on a second axis, validation Dice over epochs.

    Args:
        history: dictionaries with "epoch" and any of "train_loss", "val_loss", "val_dice"; values that are missing,
            None or not finite are skipped.
        best: epoch to mark with a dotted line.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(6.4, 3.6)
    axes = figure.add_subplot()
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if best is not None:
        axes.axvline(best, color="#555555", linestyle=":", linewidth=1)
    lines: list[Any] = []
    for key, label, colour in (("train_loss", "training loss", "#1f77b4"), ("val_loss", "validation loss", "#d62728")):
        epochs, values = _series(history, key)
        if epochs:
            lines += axes.plot(epochs, values, color=colour, label=label, marker="." if len(epochs) < 60 else None)
    epochs, values = _series(history, "val_dice")
    if epochs:
        right = axes.twinx()
        right.set_ylabel("validation Dice")
        right.set_ylim(0, 1)
        lines += right.plot(epochs, values, color="#2ca02c", linestyle="--", label="validation Dice", marker=".")
    if lines:
        names = [str(line.get_label()) for line in lines]  # above the axes, which have two scales
        axes.legend(lines, names, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8, frameon=False)
    return png_bytes(figure)


def froc_curves(froc: Mapping[str, Any]) -> bytes:
    """Plot sensitivity over false positives per scan, one curve for each IoU, and the mask itself as a dot on each.

    Args:
        froc: of :func:`~boltzformer_monai.evaluation.froc.summarise_froc`; its ``overall`` is plotted.
    """
    figure = new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    marks = froc["false_positives"]
    for (suffix, entry), colour in zip(froc["overall"].items(), _COLOURS, strict=False):
        if not entry["curve"]:
            continue
        label = f"IoU above {IOU_THRESHOLDS[suffix]:g} ({entry['objects']} objects)"
        axes.plot(*zip(*entry["curve"], strict=True), color=colour, label=label, drawstyle="steps-post")
        left, right = (entry["curve"][end][0] for end in (0, -1))
        place = min(max(entry["mask_false_positives"], left), right)
        axes.plot([place], [entry["mask_sensitivity"]], "o", color=colour, markersize=5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(marks, fractions(froc))
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(f"false positives per {froc['per']}")
    axes.set_ylabel("objects found")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="lower right")
    return png_bytes(figure)


def reliability_curves(calibration: Mapping[str, Mapping[str, Any] | None]) -> bytes:
    """Plot how often probabilities came true, over their mean in each bin; the diagonal is perfect.

    Args:
        calibration: what the probabilities are of → its summary by
            :func:`~boltzformer_monai.evaluation.calibration.summarise_calibration`, of which ``overall`` is plotted.
    """
    figure = new_figure(4.6, 4.2)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#555555", linestyle=":", linewidth=1)
    for (name, summary), colour in zip(calibration.items(), _COLOURS, strict=False):
        if summary is None:
            continue
        points = [(each["probability"], each["frequency"]) for each in summary["overall"]["bins"] if each["count"]]
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=name)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("probability")
    axes.set_ylabel("share that came true")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    return png_bytes(figure)


def focus_by_layer(lines: Mapping[str, Sequence[float | None]]) -> bytes:
    """Plot how much more often than by chance a sampled patch holds the target, layer by layer.

    Args:
        lines: target → value of every layer, in order; values that are None or 0 are left out.
    """
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    figure = new_figure(6.4, 3.6)
    axes = figure.add_subplot()
    axes.set_xlabel("layer")
    axes.set_ylabel("focus (1 = chance)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.axhline(1, color="#555555", linestyle=":", linewidth=1)
    for name, values in lines.items():
        points = [(layer, value) for layer, value in enumerate(values, start=1) if value]
        axes.plot([layer for layer, _ in points], [value for _, value in points], marker=".", label=plain_text(name))
    if lines:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8, frameon=False)
    return png_bytes(figure)


def overlay(image: np.ndarray, prediction: np.ndarray, truth: np.ndarray | None = None, title: str = "") -> bytes:
    """Plot one slice, see :class:`OverlayPanel` for the arguments.

    Raises:
        ConfigError: wrong dtype or shape.
    """
    return overlay_grid([OverlayPanel(image, prediction, truth, title)])


def overlay_grid(panels: Sequence[OverlayPanel], *, columns: int | None = None) -> bytes:
    """Plot several overlays in one figure.

    Args:
        panels: row after row.
        columns: panels per row, by default up to four.

    Raises:
        ConfigError: there is no panel.
    """
    if not panels:
        raise ConfigError("an overlay grid needs at least one panel")
    grid = _grid(len(panels), panels[0].image.shape, columns=columns)
    for axes, panel in zip(grid.axes, panels, strict=False):
        _show(axes, blend(panel.image, panel.prediction, np.array([PREDICTION_COLOUR])), panel.title)
        _outline(axes, panel.truth)
    return png_bytes(grid)


def sampled_patches(
    image: np.ndarray, attend: Sequence[np.ndarray], truth: np.ndarray | None = None, prompt: str = ""
) -> bytes:
    """Plot the patches that a query attended to, one panel per layer: sampled patches bright, the others dark.

    Args:
        image: (H, W) uint8.
        attend: for every layer a bool array (h, w), the attend set of one query (or the union of several) on that
            layer's grid.
        truth: (H, W) bool, outlined red; None if unknown.
        prompt: above the panels.

    Raises:
        ConfigError: wrong dtype or shape, or no layer.
    """
    _check_image(image)
    if truth is not None:
        _check_mask(truth, image.shape, "truth")
    if not attend:
        raise ConfigError("a figure of sampled patches needs at least one layer")
    columns = min(len(attend), 3 if len(attend) in (3, 5, 6, 9) else _MAX_COLUMNS)
    grid = _grid(len(attend), image.shape, columns=columns, heading=prompt)
    grey = grey_rgb(image)
    for layer, (axes, patches) in enumerate(zip(grid.axes, attend, strict=False), start=1):
        if patches.ndim != 2 or patches.dtype != np.bool_ or patches.size == 0:
            msg = f"layer {layer}: an attend set is a bool array (h, w), got {patches.dtype} {patches.shape}"
            raise ConfigError(msg)
        bright = _nearest(patches, image.shape)
        share = 100 * float(patches.mean())
        rgb = np.where(bright[..., None], _LIFTED + (1 - _LIFTED) * grey, _DIMMED * grey)
        _show(axes, rgb, f"layer {layer}: {share:.1f} % of {patches.size}")
        _outline(axes, truth)
    return png_bytes(grid)


def _nearest(patches: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Upsample a coarse grid to the image."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(shape, patches.shape, strict=True))
    return patches[rows[:, None], columns[None, :]]


def _grid(count: int, shape: tuple[int, ...], *, columns: int | None = None, heading: str = "") -> Figure:
    across = columns or min(count, _MAX_COLUMNS)
    down = math.ceil(count / across)
    height = min(max(2.6 * shape[0] / shape[1], 1.0), 6.0)
    figure = new_figure(2.6 * across, (height + 0.3) * down + (0.35 if heading else 0))
    for index in range(count):
        figure.add_subplot(down, across, index + 1)
    if heading:
        figure.suptitle(plain_text(heading), fontsize=10)
    return figure


def _show(axes: Axes, rgb: np.ndarray, title: str) -> None:
    axes.imshow(np.clip(rgb, 0, 1), interpolation="nearest")
    axes.set_axis_off()
    if title:
        axes.set_title(plain_text(title), fontsize=8)


def _outline(axes: Axes, mask: np.ndarray | None) -> None:
    """Trace a mask along its pixel edges: an object of one pixel is a visible square."""
    if mask is None or not mask.any():
        return
    padded = np.pad(mask, 1)
    across, down = padded[:, 1:] != padded[:, :-1], padded[1:] != padded[:-1]
    segments = [((x - 0.5, y - 1.5), (x - 0.5, y - 0.5)) for y, x in np.argwhere(across)]
    segments += [((x - 1.5, y - 0.5), (x - 0.5, y - 0.5)) for y, x in np.argwhere(down)]
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(segments, colors=[TRUTH_COLOUR], linewidths=1.0))


def _series(history: Sequence[Mapping[str, float | None]], key: str) -> tuple[list[float], list[float]]:
    points = []
    for entry in history:
        epoch, value = entry.get("epoch"), entry.get(key)
        if epoch is not None and value is not None and math.isfinite(value):
            points.append((float(epoch), float(value)))
    return [epoch for epoch, _ in points], [value for _, value in points]


def _check_image(image: np.ndarray) -> None:
    if image.ndim != 2 or image.dtype != np.uint8 or image.size == 0:
        raise ConfigError(f"a figure needs a uint8 image (H, W), got {image.dtype} {image.shape}")


def _check_mask(mask: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    if mask.dtype != np.bool_ or mask.shape != shape:
        msg = f"the {name} must be a bool array of the image's shape {shape}, got {mask.dtype} {mask.shape}"
        raise ConfigError(msg)
