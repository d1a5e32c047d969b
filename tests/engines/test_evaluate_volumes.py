"""Volumes are scored when their last slice has come, in any order of slices, with and without the presence rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from boltzformer_monai.data.planes import extract_slices, slices_to_volume
from boltzformer_monai.data.slices.reader import SliceReader, SliceRow, read_mask
from boltzformer_monai.data.slices.volume import SliceSettings
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.engines import ScoreSlices, ScoreVolumes, evaluation_items
from boltzformer_monai.errors import CheckpointError, ConfigError
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.networks.interfaces import Decoded
from tests.data.slice_cases import add, make_volume
from tests.engines.cases import write_dataset

RULE = PresenceRule(high=0.8, low=0.4)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SliceReader:
    """Two validation volumes (12 × 10 × 6 voxels of 0.8 × 0.9 × 5 mm) of two patients; no spleen anywhere."""
    writer = SliceWriter(tmp_path_factory.mktemp("slices"), name="unit")
    for name in ("case1", "case2"):
        add(writer, name, split="val")
    return SliceReader(writer.root)


def _slices(reader: SliceReader) -> list[list[SliceRow]]:
    return [item["rows"] for item in evaluation_items(reader, split="val")]


def _perfect(scorer: ScoreVolumes, slices: list[list[SliceRow]], presence: float | None = None) -> None:
    for rows in slices:
        truth = np.stack([read_mask(row) for row in rows])
        scorer.add(rows, truth, truth, None if presence is None else np.full(len(rows), presence))


def test_a_perfect_answer_in_any_order(reader: SliceReader) -> None:
    slices = _slices(reader)
    ordered, shuffled = (ScoreVolumes(reader=reader, split="val") for _ in range(2))
    _perfect(ordered, slices)
    _perfect(shuffled, [slices[i] for i in np.random.default_rng(0).permutation(len(slices))])
    assert shuffled.summary() == ordered.summary()
    overall = ordered.summary()["overall"]
    assert overall["dice"]["mean"] == overall["surface_dice"]["mean"] == overall["lesion_detection_rate"]["mean"] == 1
    assert (overall["hausdorff95_mm"]["mean"], overall["false_positive_rate"]["mean"]) == (0, 0)
    assert (overall["present"], overall["absent"]) == (6, 2)
    case = next(case for case in ordered.summary()["cases"] if case["target"] == "liver")
    assert case["truth_ml"] == pytest.approx(27 * 0.8 * 0.9 * 5 / 1000)


def test_a_volume_is_scored_with_its_last_slice_and_then_forgotten(reader: SliceReader) -> None:
    scorer = ScoreVolumes(reader=reader, split="val")
    slices = _slices(reader)
    _perfect(scorer, slices[:5])
    assert (len(scorer.scores), len(scorer._waiting)) == (0, 1)
    _perfect(scorer, slices[5:6])
    assert (len(scorer.scores), len(scorer._waiting)) == (4, 0)
    scorer.clear()
    assert scorer.scores == []


def test_distances_follow_the_spacing_of_the_volume(reader: SliceReader) -> None:
    scorer = ScoreVolumes(reader=reader, split="val")
    slices = [rows for rows in _slices(reader) if rows[0].volume == "case1"]
    truths = [np.stack([read_mask(row) for row in rows]) for rows in slices]
    shifted = [truths[index - 1] for index in range(len(truths))]  # one slice further: 5 mm
    for rows, predicted, truth in zip(slices, shifted, truths, strict=True):
        scorer.add(rows, predicted, truth)
    values = {score.target: score.values for score in scorer.scores}
    assert values["liver"]["hausdorff95_mm"] == pytest.approx(5.0)


def test_the_rule_drops_slices_and_whole_answers(reader: SliceReader) -> None:
    kept, dropped, all_in = (ScoreVolumes(reader=reader, split="val", rule=rule) for rule in (RULE, RULE, None))
    for scorer, certain in ((kept, 0.9), (dropped, 0.5), (all_in, 0.5)):
        for rows in _slices(reader):
            truth = np.stack([read_mask(row) for row in rows])
            presence = np.where(truth.any((1, 2)), certain, 0.1)
            scorer.add(rows, np.ones_like(truth), truth, presence)  # every slice is answered whole
    means = {key: s.summary()["overall"] for key, s in {"kept": kept, "dropped": dropped, "all": all_in}.items()}
    assert means["all"]["false_positive_rate"]["mean"] == 1.0
    assert means["kept"]["false_positive_rate"]["mean"] == 0.0
    assert means["kept"]["dice"]["mean"] > means["all"]["dice"]["mean"]
    assert means["kept"]["lesion_detection_rate"]["mean"] == 1.0
    assert means["dropped"]["without_prediction"] == means["dropped"]["present"] == 6
    case = next(case for case in dropped.summary()["cases"] if case["target"] == "spleen")
    assert (case["presence"], case["predicted_ml"]) == (pytest.approx(0.1), 0.0)
    assert kept.summary()["presence"] == {"high": 0.8, "low": 0.4}
    assert all_in.summary()["presence"] is None


def test_objects_have_the_confidence_of_slices_that_the_rule_keeps(reader: SliceReader) -> None:
    with_rule, without = (ScoreVolumes(reader=reader, split="val", rule=rule) for rule in (RULE, None))
    for rows in _slices(reader):
        truth = np.stack([read_mask(row) for row in rows])
        probability = np.where(truth, 0.75, 0.3 * (rows[0].slice_index == 0)).astype(np.float32)
        presence = np.where(truth.any((1, 2)), 0.9, 0.1)
        for scorer in (with_rule, without):
            scorer.add(rows, probability > 0.5, truth, presence, probability=probability)
    kept, everything = (scorer.summary() for scorer in (with_rule, without))
    assert {each.kind for each in with_rule.objects} == {"truth", "mask"}
    assert {each.kind for each in without.objects} == {"truth", "mask", "faint"}  # the first slice is faint throughout
    assert all(each.confidence == 192.5 / 256 for each in with_rule.objects if each.kind == "mask")
    assert kept["froc"]["overall"]["iou50"]["mean"]["mean"] == 1
    assert kept["froc"]["overall"]["iou50"]["mask_false_positives"] == 0
    assert everything["froc"]["overall"]["iou50"]["objects"] == everything["overall"]["recall_iou50"]["total"] >= 6
    assert everything["froc"]["per"] == "volume"
    liver = next(case for case in kept["cases"] if case["target"] == "liver")
    assert liver["confidence"] == 192.5 / 256
    assert liver["diameter_mm"] == pytest.approx((6 * 27 * 0.8 * 0.9 * 5 / np.pi) ** (1 / 3))
    assert sum(entry["present"] for entry in kept["strata"].values()) == kept["overall"]["present"] == 6


def test_a_rule_needs_probabilities(reader: SliceReader) -> None:
    with pytest.raises(CheckpointError, match="--presence False"):
        _perfect(ScoreVolumes(reader=reader, split="val", rule=RULE), _slices(reader))


def test_volumes_that_lack_slices_or_rows_are_left_out(tmp_path: Path) -> None:
    writer = SliceWriter(tmp_path, name="unit")
    add(writer, "whole", split="val")
    add(writer, "thinned", split="val", settings=SliceSettings(every=2))
    add(writer, "small", split="val", settings=SliceSettings(min_area=5))
    reader = SliceReader(tmp_path)
    scorer = ScoreVolumes(reader=reader, split="val")
    assert scorer.complete.keys() == {"whole"}
    _perfect(scorer, _slices(reader))
    assert {score.volume for score in scorer.scores} == {"whole"}
    assert not scorer._waiting


def test_the_handler_hands_on_masks_and_probabilities(tmp_path: Path) -> None:
    reader = SliceReader(write_dataset(tmp_path))
    volumes = ScoreVolumes(reader=reader, split="val", rule=RULE)
    scorer = ScoreSlices(root=reader.root, size=32, volumes=volumes)
    slices = [item["rows"] for item in evaluation_items(reader, split="val")]
    logits = torch.stack([torch.stack([torch.from_numpy(read_mask(row)).float() for row in rows]) for rows in slices])
    logits = logits * 8 - 4
    logits[:, 3] = 4  # the stomach is nowhere, and found everywhere
    presence = torch.tensor([[5.0, 5.0, 5.0, -5.0]]).expand(len(slices), -1)
    for prediction in (Decoded(logits, presence), Decoded(logits, presence)):  # the second run starts afresh
        engine = Engine(lambda *_, prediction=prediction: {"pred": prediction})
        scorer.attach(engine)
        engine.run([{"rows": slices}])
    assert {score.target for score in scorer.scores if score.predicted} == {"liver", "spleen", "viscera", "stomach"}
    assert {score.target: score.values["dice"] for score in volumes.scores} == {
        "liver": 1.0,
        "spleen": 1.0,
        "viscera": 1.0,
        "stomach": None,
    }
    assert {score.target for score in volumes.scores if score.predicted_ml} == {"liver", "spleen", "viscera"}
    assert len(volumes.scores) == 4


@pytest.mark.parametrize("settings", [{"tolerance": 0}, {"resamples": 0}, {"seed": -1}])
def test_settings_are_checked(reader: SliceReader, settings: dict) -> None:
    with pytest.raises(ConfigError):
        ScoreVolumes(reader=reader, split="val", **settings)


def _scan_in_planes(root: Path, planes: Sequence[str]) -> SliceReader:
    writer = SliceWriter(root, name="unit")
    for plane in planes:
        add(writer, f"case1-{plane}", patient="case1", scan="case1", plane=plane, split="val")
    return SliceReader(root)


def test_planes_are_averaged_on_the_grid_of_the_scan_and_the_scan_is_scored_once(tmp_path: Path) -> None:
    planes = ("axial", "coronal", "sagittal")
    reader = _scan_in_planes(tmp_path, planes)
    image, label = make_volume()
    rng = np.random.default_rng(0)
    found = {plane: rng.uniform(0, 1, image.shape).astype(np.float32) for plane in planes}
    stacks = {plane: extract_slices(Volume(found[plane], image.affine), plane) for plane in planes}
    scorer = ScoreVolumes(reader=reader, split="val", rule=RULE, threshold=0.6)
    lost = {("axial", 2), ("sagittal", 5)}  # the presence rule drops these slices, as probability 0
    slices = _slices(reader)
    for rows in [slices[i] for i in rng.permutation(len(slices))]:
        truth = np.stack([read_mask(row) for row in rows])
        first = rows[0]
        probability = np.repeat(stacks[first.plane][first.slice_index][None], len(rows), axis=0)
        presence = np.full(len(rows), 0.1 if (first.plane, first.slice_index) in lost else 0.9)
        scorer.add(rows, probability > 0.6, truth, presence, probability=probability)
    for plane, index in lost:
        kept = stacks[plane]
        kept[index] = 0
        found[plane] = slices_to_volume(kept, image, plane)
    mean = sum((256 * found[plane]).astype(int) for plane in planes) // 3
    predicted = mean >= 154  # 0.6 of 256
    cases = {case["target"]: case for case in scorer.summary()["cases"]}
    assert cases.keys() == {"liver", "right kidney", "viscera", "spleen"}
    liver = label.array == 1
    assert cases["liver"]["volume"] == "case1"
    assert cases["liver"]["predicted_ml"] == pytest.approx(predicted.sum() * 0.8 * 0.9 * 5 / 1000)
    assert cases["liver"]["truth_ml"] == pytest.approx(27 * 0.8 * 0.9 * 5 / 1000)
    dice = 2 * (predicted & liver).sum() / (predicted.sum() + liver.sum())
    assert cases["liver"]["dice"] == pytest.approx(dice)
    assert cases["liver"]["presence"] == pytest.approx(0.9)


def test_a_scan_that_lacks_slices_in_one_of_its_planes_is_left_out(tmp_path: Path) -> None:
    reader = _scan_in_planes(tmp_path, ("axial", "coronal"))
    assert ScoreVolumes(reader=reader, split="val").complete == {"case1": {"case1-axial", "case1-coronal"}}
    assert ScoreVolumes(reader=reader.along(["coronal"]), split="val").complete == {"case1": {"case1-coronal"}}
    settings = SliceSettings(plane="coronal", every=2)
    add(SliceWriter(tmp_path), "case1-coronal", patient="case1", scan="case1", split="val", settings=settings)
    assert ScoreVolumes(reader=SliceReader(tmp_path), split="val").complete == {}
