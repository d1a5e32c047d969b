"""The same validation slices, every time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from boltzformer_monai.data.slices.reader import SliceReader, SliceRow, read_mask
from boltzformer_monai.engines.data import validation_items
from boltzformer_monai.engines.overlays import WatchedSlices, around_target, choose_watched, draw_overlays
from boltzformer_monai.networks.interfaces import Decoded
from tests.engines.cases import write_dataset


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SliceReader:
    return SliceReader(write_dataset(tmp_path_factory.mktemp("slices"), slices=4))


def _rows(reader: SliceReader, count: int, *, small: int) -> list[SliceRow]:
    """Rows of as many slices, the first ones of small objects."""
    row = next(row for row in reader.rows if row.present)
    return [
        dataclasses.replace(
            row,
            image=Path(f"{index}.png"),
            target=f"target {index % 3}",
            patient=f"patient {index % 5}",
            area_fraction=0.001 if index < small else 0.1 + index / 1000,
        )
        for index in range(count)
    ]


def test_half_of_them_are_small_objects(reader: SliceReader) -> None:
    rows = _rows(reader, 60, small=30)
    chosen = choose_watched(rows, count=8, seed=3)
    assert sum(row.area_fraction < 0.01 for row in chosen) == 4
    assert {row.target for row in chosen[:4]} == {row.target for row in chosen[4:]} == {f"target {i}" for i in range(3)}
    assert len({row.image for row in chosen}) == 8
    assert chosen == choose_watched(list(rows), count=8, seed=3)
    assert chosen != choose_watched(rows, count=8, seed=4)
    assert [row.area_fraction for row in chosen] == sorted(row.area_fraction for row in chosen)


@pytest.mark.parametrize(("small", "expected"), [(0, 0), (2, 2), (57, 5), (60, 8)])
def test_what_lacks_is_filled_up(reader: SliceReader, small: int, expected: int) -> None:
    chosen = choose_watched(_rows(reader, 60, small=small), count=8, seed=0)
    assert len(chosen) == 8
    assert sum(row.area_fraction < 0.01 for row in chosen) == expected


def test_few_slices_are_all_watched(reader: SliceReader) -> None:
    assert len(choose_watched(_rows(reader, 3, small=1), count=8, seed=0)) == 3
    assert choose_watched([], count=8, seed=0) == []
    assert choose_watched(_rows(reader, 3, small=1), count=0, seed=0) == []


def _validate(reader: SliceReader, watched: WatchedSlices, logits: float) -> Engine:
    """A validation whose prediction is the same everywhere."""
    items = validation_items(reader, split="val", prompts_per_image=2)

    def step(_: Engine, batch: dict) -> dict:
        return {"pred": Decoded(torch.full((len(batch["rows"]), 2, 8, 8), logits))}

    engine = Engine(step)
    watched.attach(engine)
    engine.run([{"rows": [item["rows"] for item in items[start : start + 3]]} for start in range(0, len(items), 3)])
    return engine


def test_the_predictions_are_those_of_the_validation(reader: SliceReader) -> None:
    items = validation_items(reader, split="val", prompts_per_image=2)
    watched = WatchedSlices(items, size=16, seed=0, count=3)
    assert {row.split for row in watched.rows} == {"val"}
    for logits, filled in ((5.0, True), (-5.0, False)):
        engine = _validate(reader, watched, logits)
        overlays = engine.state.overlays
        assert [each.target for each in overlays] == [row.target for row in watched.rows]
        for overlay, row in zip(overlays, watched.rows, strict=True):
            assert (overlay.prediction == filled).all()
            assert overlay.truth.sum() == read_mask(row).sum()
            area = read_mask(row).mean()
            assert overlay.dice == pytest.approx(2 * area / (1 + area) if filled else 0)
    assert draw_overlays(overlays).shape == (278, 3 * 256, 3)


def test_the_cut_out_holds_the_target() -> None:
    truth = np.zeros((200, 300), bool)
    truth[5:9, 280:290] = True
    part = around_target(truth, (1.0, 1.0))
    assert truth[part].sum() == truth.sum()
    assert truth[part].shape == (60, 60)
    assert truth[around_target(truth, (2.0, 1.0))].shape == (30, 60)
    truth[:] = True
    assert truth[around_target(truth, (1.0, 1.0))].shape == truth.shape
    assert truth[around_target(~truth, (1.0, 1.0))].shape == truth.shape
