"""training.html from history.json."""

from __future__ import annotations

import math
import operator
import re
from pathlib import Path

from boltzformer_monai.engines.training_page import best_row, data_facts, write_training_page
from boltzformer_monai.evaluation.figures import OverlayPanel
from boltzformer_monai.evaluation.tiles import tile_panels, tiles_png
from tests.evaluation.test_report import EVIL, IMAGE, MASK, _parse

HISTORY = [
    {"epoch": 1, "train_loss": 1.25, "val_loss": 0.9, "val_dice": 0.4},
    {"epoch": 2, "train_loss": 0.8},
    {"epoch": 3, "train_loss": 0.7, "val_loss": 0.5, "val_dice": 0.61, "images_per_second": 12.5},
    {"epoch": 4, "train_loss": math.nan, "val_loss": 0.5, "val_dice": 0.6},
]


def _page(path: Path, **changes: object) -> Path:
    values = {
        "history": HISTORY,
        "key_metric": "val_loss",
        "improves": operator.lt,
        "epochs": 6,
        "outcome": "The training ended.",
        "overlays": [(f"best {EVIL}", tiles_png(tile_panels([OverlayPanel(IMAGE, MASK, MASK, "liver")])))],
        "facts": {"Data, train": "3 volumes"},
        "configuration": {"learning_rate": 1e-3, EVIL: EVIL, "target_weights": {"liver": 2.0}, "freeze": ["decoder"]},
    }
    return write_training_page(path, **{**values, **changes})


def test_the_page_says_what_the_history_says(tmp_path: Path) -> None:
    page = _parse(_page(tmp_path / "new" / "training.html"))
    text = " ".join("".join(page.text).split())
    for words in (
        "4 of 6 epochs",
        "0.5000 best validation loss",
        "3 epoch of the best checkpoint",
        "12.5000",
        "1.2500",
    ):
        assert words in text
    for words in ("learning_rate0.001", "liver: 2", "3 volumes"):
        assert words in text
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 2


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    path = _page(tmp_path / "training.html")
    page, text = _parse(path), path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "form", "base"}
    assert not re.search(r"https?://|url\(|@import", text)
    assert "".join(page.text).count(EVIL) == 3


def test_a_training_without_an_epoch_has_a_page(tmp_path: Path) -> None:
    page = _parse(_page(tmp_path / "training.html", history=[], overlays=[]))
    assert "0 of 6" in "".join(page.text)
    assert "img" not in {tag for tag, _ in page.tags}


def test_the_best_epoch_is_the_first_that_no_other_surpasses() -> None:
    assert best_row(HISTORY, key_metric="val_loss", improves=operator.lt) is HISTORY[2]
    assert best_row(HISTORY, key_metric="val_dice", improves=operator.gt) is HISTORY[2]
    assert best_row(HISTORY, key_metric="train_loss", improves=operator.lt) is HISTORY[2]
    assert best_row(HISTORY[1:2], key_metric="val_loss", improves=operator.lt) is None


def test_the_fingerprint_in_words() -> None:
    data = {
        "splits": {"train": {"volumes": 2, "patients": 2, "slices": 40}},
        "modalities": {"CT": 2},
        "sha256": "ab12",
        "fold": {"folds": 5, "fold": 1},
    }
    assert data_facts(data) == {
        "Data, train": "2 volumes, 2 patients, 40 slices",
        "Modalities": "CT (2)",
        "Fingerprint of the data": "ab12",
        "Fold": "folds: 5, fold: 1",
    }
