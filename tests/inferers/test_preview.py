from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from boltzformer_monai.data.windows import NAMED_WINDOWS
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers.preview import contact_sheet
from boltzformer_monai.io.volume import Volume
from tests.inferers.volume_stub import StubResult

NOTHING = (slice(0), slice(0), slice(0))


def _result(shape: tuple[int, int, int] = (40, 30, 16), **masks: tuple[slice, slice, slice]) -> Any:
    rng = np.random.default_rng(0)
    grid = Volume(rng.normal(40, 60, shape).astype(np.float32), np.diag([1, 1, 3, 1.0]), modality="CT")
    boxes = {}
    for name, box in masks.items():
        boxes[name] = np.zeros(grid.shape, bool)
        boxes[name][box] = True
    return StubResult(grid, boxes)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, which are not rendered."""
    figures: list[Figure] = []
    monkeypatch.setattr("boltzformer_monai.inferers.preview.png_bytes", lambda figure: figures.append(figure) or b"")
    return figures


def _slices(figure: Figure) -> list[int]:
    return [int(axes.get_title().split()[1]) - 1 for axes in figure.axes]


def _legend(figure: Figure) -> list[tuple[str, str]]:
    """Text and colour of each entry."""
    legend = figure.legends[0]
    colours = [to_hex(patch.get_facecolor()).upper() for patch in legend.get_patches()]
    return list(zip([text.get_text() for text in legend.get_texts()], colours, strict=True))


def test_every_found_prompt_has_its_largest_slice_and_the_rest_is_spread(drawn: list[Figure]) -> None:
    liver, nodule = (slice(0, 2), slice(0, 2), slice(3, 15)), (slice(4, 5), slice(4, 5), slice(17, 18))
    result = _result((6, 6, 20), liver=liver, nodule=nodule)
    result.mask(0)[0:3, 0:2, 9] = True
    contact_sheet(result, slices=6)
    chosen = _slices(drawn[0])
    assert {9, 17} <= set(chosen)
    assert len(chosen) == len(set(chosen)) == 6
    assert set(chosen) <= {*range(3, 15), 17}
    contact_sheet(result, slices=1)
    assert _slices(drawn[1]) == [9]
    contact_sheet(_result((2, 2, 5), liver=NOTHING), slices=3)
    assert _slices(drawn[2]) == [0, 2, 4]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_masks_are_coloured_and_the_same_result_gives_the_same_bytes(plane: str) -> None:
    box = (slice(5, 20), slice(5, 20), slice(4, 9))
    with_mask, without = _result(liver=box), _result(liver=NOTHING)
    png = contact_sheet(with_mask, plane=plane)
    assert png == contact_sheet(with_mask, plane=plane)

    def coloured(png: bytes) -> int:
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
        return int((np.ptp(pixels, axis=2) > 30).sum())

    assert coloured(png) > 1000
    assert coloured(contact_sheet(without, plane=plane)) == 0


def test_the_legend_says_what_was_not_found(drawn: list[Figure]) -> None:
    contact_sheet(_result(**{"liver": (slice(0, 10),) * 3, "x" * 80: NOTHING}))
    first, second = _legend(drawn[0])
    assert first == ("liver: 3 ml", "#E69F00")
    assert second[0].endswith("…: not found")
    assert second[1] == "#FFFFFF"


def test_sixty_prompts_have_sixty_colours(drawn: list[Figure]) -> None:
    contact_sheet(_result(**{f"lesion {n}": (slice(0, 10),) * 3 for n in range(60)}), slices=1)
    assert len({colour for _, colour in _legend(drawn[0])} - {"#FFFFFF"}) == 60


def test_wrong_settings() -> None:
    result = _result(liver=(slice(0, 10),) * 3)
    for change in ({"slices": 0}, {"plane": "oblique"}):
        with pytest.raises(ConfigError):
            contact_sheet(result, **change)  # type: ignore[arg-type]


def test_a_prompt_that_the_font_cannot_write_is_named_by_its_label(drawn: list[Figure]) -> None:
    box = (slice(0, 10),) * 3
    contact_sheet(_result(**{"ліва нирка": box, "左腎": box, "spleen": NOTHING}))
    texts = [text for text, _ in _legend(drawn[0])]
    assert texts == ["ліва нирка: 3 ml", "label 2 (see the JSON file): 3 ml", "spleen: not found"]


def test_grey_values_follow_window_and_modality(drawn: list[Figure]) -> None:
    values = np.linspace(-1000, 1000, 1000, dtype=np.float32).reshape(10, 10, 10)
    unknown: Any = StubResult(Volume(values, np.eye(4)), {"liver": np.zeros(values.shape, bool)})
    ct: Any = StubResult(dataclasses.replace(unknown.grid, modality="CT"), {"liver": np.zeros(values.shape, bool)})
    contact_sheet(ct)
    contact_sheet(unknown, modality="CT")
    contact_sheet(unknown)
    contact_sheet(unknown, window=NAMED_WINDOWS["bone"])
    as_ct, stated, percentiles, bone = (figure.axes[0].images[0].get_array() for figure in drawn)
    np.testing.assert_array_equal(stated, as_ct)
    assert not np.array_equal(percentiles, as_ct)
    assert not np.array_equal(bone, as_ct)
