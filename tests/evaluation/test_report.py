"""The report: one file, nothing fetched, nothing run, every text escaped."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.calibration import add_pixels
from boltzformer_monai.evaluation.detection import find_objects
from boltzformer_monai.evaluation.figures import overlay, sampled_patches
from boltzformer_monai.evaluation.mask_pair import MaskPair
from boltzformer_monai.evaluation.metrics import METRICS, measure, metrics_for
from boltzformer_monai.evaluation.report import write_report
from boltzformer_monai.evaluation.summary import SliceScore, VolumeScore, summarise_slices, summarise_volumes
from boltzformer_monai.evaluation.tables import markdown_table

EVIL = "<script>alert('x')</script>\"&"
IMAGE = np.arange(900, dtype=np.uint16).reshape(30, 30).astype(np.uint8)
MASK = IMAGE > 200
VOID = {"meta", "img", "br", "link"}


def _metrics(target: str = "liver") -> dict:
    values = {metric: None for dimension, metric in METRICS if dimension == 2}
    values |= {"dice": 2 * 90 / 220, "missed": 0.0, "recall_iou10": (1, 2)}
    score = SliceScore("v_axial_0001.png", "v", "p", target, f"{target} in abdominal CT", 0.05, 100, 120, 90, values)
    return {"slices": summarise_slices([score])}


class _Page(HTMLParser):
    """Collects tags and text, and fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _parse(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return write_report(
        tmp_path / "deep" / "report.html",
        title=f"Evaluation {EVIL}",
        metrics=_metrics(EVIL),
        history=[{"epoch": 1, "train_loss": 1.0, "val_loss": 0.9, "val_dice": 0.4}],
        overlays=[(f"caption {EVIL}", overlay(IMAGE, MASK, MASK, "liver"))],
        samplings=[("liver, layer by layer", sampled_patches(IMAGE, [MASK[:4, :4]], MASK, "liver"))],
        facts={f"seed {EVIL}": EVIL, "checkpoint": "model.pt"},
    )


def test_nothing_is_fetched_and_nothing_runs(full: Path) -> None:
    page = _parse(full)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "href"]
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
    text = full.read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import", text)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_every_text_is_escaped_and_shown(full: Path) -> None:
    assert "<script" not in full.read_text(encoding="utf-8")
    shown = "".join(_parse(full).text)
    assert shown.count(EVIL) >= 5  # title twice, target, caption, fact


def test_pictures_have_alternative_texts(full: Path) -> None:
    pictures = [attributes for tag, attributes in _parse(full).tags if tag == "img"]
    assert len(pictures) == 3
    assert all(len(attributes["alt"] or "") > 15 for attributes in pictures)
    assert any("green" in (attributes["alt"] or "") for attributes in pictures)


def test_readable_anywhere(full: Path) -> None:
    page, text = _parse(full), full.read_text(encoding="utf-8")
    assert ("html", {"lang": "en"}) in page.tags
    assert any(a.get("name") == "viewport" for t, a in page.tags if t == "meta")
    assert "prefers-color-scheme: dark" in text
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert all(a.get("scope") in ("row", "col") for t, a in page.tags if t == "th")


def test_numbers_are_those_of_the_metrics(full: Path) -> None:
    shown = "".join(_parse(full).text)
    assert f"{2 * 90 / 220:.3f}" in shown
    assert "model.pt" in shown
    assert "not for diagnosis" in shown


def _with_volumes(presence: dict[str, float] | None) -> dict:
    empty = {metric: None for dimension, metric in METRICS if dimension == 3}
    names = ("dice", "surface_dice", "hausdorff95_mm", "lesion_detection_rate", "false_components",
             "false_positive_rate", "false_positive_ml")  # fmt: skip
    scores = [
        VolumeScore(
            f"v{i}", f"p{i}", f"liver {EVIL}", "liver in CT", 5, 5, empty | dict(zip(names, values, strict=True))
        )
        for i, values in enumerate((d, 0.9, 3.21, (3, 4), 0, None, None) for d in (0.5, 0.75, 1.0))
    ]
    absent = empty | dict(zip(names, (None, None, None, None, 2, 1, 1.5), strict=True))
    scores.append(VolumeScore("v0", "p0", "lesion", "lesion in CT", 0, 1.5, absent))
    return {**_metrics(), "volumes": {**summarise_volumes(scores), "tolerance_mm": 2.0, "presence": presence}}


def test_whole_volumes_are_shown_with_intervals(tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", title="Volumes", metrics=_with_volumes({"high": 0.8, "low": 0.4}))
    shown = "".join(_parse(path).text)
    assert "3 volumes of 3 patients" in shown
    assert "95 % confidence interval, 1000 resamples" in shown
    assert "0.750\n(0.500–1.000)" in shown
    assert "3.2\n(3.2–3.2)" in shown
    assert "75.0 % of 12\n(75.0–75.0)" in shown  # nine of twelve lesions
    assert "2.000100.0 % of 11.50" in shown  # one case, no interval
    assert "2 mm apart" in shown
    assert "reaches presence 0.80, those from 0.40" in shown
    assert EVIL in shown
    without = write_report(tmp_path / "report.html", title="Volumes", metrics=_with_volumes(None))
    assert "without a presence rule" in "".join(_parse(without).text)


def test_detection_froc_and_calibration_are_shown(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores, objects, pixels = [], [], {}
    for index in range(6):
        truth = np.zeros((40, 40), bool)
        truth[5:9, 5 : 8 + index] = True
        levels = np.where(np.roll(truth, index, 0), 220, rng.integers(0, 60, truth.shape)).astype(np.uint8)
        masks = MaskPair(prediction=levels >= 128, truth=truth, spacing=(1.0, 1.0))
        case = {"patient": f"p{index % 3}", "target": "lesion"}
        objects += find_objects(masks, part="slices", case=f"{index}", levels=levels, **case)
        add_pixels(pixels, ("lesion", case["patient"]), levels, truth)
        counts = (masks.truth_size, masks.predicted_size, masks.intersection)
        values = measure(masks, metrics_for(2))
        area = masks.truth_size / 1600
        score = SliceScore(f"{index}", "v", case["patient"], "lesion", "lesion", area, *counts, values)
        scores.append(replace(score, diameter_mm=masks.diameter_mm, presence=0.9))
    metrics = {"slices": summarise_slices(scores, objects=objects, pixels=pixels)}
    page = _parse(write_report(tmp_path / "report.html", title="All", metrics=metrics))
    shown = "".join(page.text)
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 2
    for text in ("Components with a partner of IoU above 0.5", "0.1 to 1 % of the image", "3 to 6 mm", "F1 (RQ)",
                 "false positives per slice", "1/8", "faces, edges and corners", "candidates", "ECE"):  # fmt: skip
        assert text in shown
    recall = metrics["slices"]["overall"]["recall_iou10"]
    assert (recall["total"], recall["mean"]) == (6, pytest.approx(4 / 6))  # moved by 0 to 5 of 4 rows
    assert "66.7 % of 6\n(" in shown


def test_without_complete_volumes_there_is_no_such_section(tmp_path: Path) -> None:
    empty = {**summarise_volumes([]), "tolerance_mm": 2.0, "presence": None}
    for name, metrics in (("a", _metrics()), ("b", {**_metrics(), "volumes": empty})):
        path = write_report(tmp_path / f"{name}.html", title="No volumes", metrics=metrics)
        assert "Whole volumes" not in "".join(_parse(path).text)


def test_damaged_scores_of_volumes_are_refused(tmp_path: Path) -> None:
    metrics = _with_volumes(None)
    del metrics["volumes"]["bootstrap"]
    with pytest.raises(ConfigError, match="bootstrap"):
        write_report(tmp_path / "report.html", title="Bad", metrics=metrics)


def test_markdown_has_the_table_of_volumes_too() -> None:
    lines = markdown_table(_with_volumes(None)).splitlines()
    assert lines[-3].startswith("| lesion | 0 / 1 | – | – | – | – | – | 2.000 | 100.0 % of 1 | 1.50 |")
    assert lines[-1].startswith(
        "| all | 3 / 1 | 0.750 (0.500–1.000) | 0.900 (0.900–0.900) | 3.2 (3.2–3.2) | – | 75.0 % of 12 ("
    )


def test_the_least_report(tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", title="Nothing yet", metrics={"slices": summarise_slices([])})
    page = _parse(path)
    assert "img" not in {tag for tag, _ in page.tags}
    assert "–" in "".join(page.text)
    assert "Predictions" not in "".join(page.text)


def test_a_failed_report_leaves_the_old_one(tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", title="Good", metrics=_metrics())
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="not a PNG"):
        write_report(path, title="Bad", metrics=_metrics(), overlays=[("gif", b"GIF89a")])
    with pytest.raises(ConfigError, match="slices"):
        write_report(path, title="Bad", metrics={"volumes": None})
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
