"""Every variant of the hippocampus benchmark can be trained, and a schedule is as long as it says."""

from __future__ import annotations

import ast
from pathlib import Path

import nibabel as nib
import pytest

from benchmarks.msd_hippocampus import VARIANTS, evaluations, label_map_rows, training_overrides
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.engines import training_settings
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.networks.presets import create_boltzformer, network_config
from boltzformer_monai.networks.weights import Description
from tests.data.slice_cases import add, make_volume


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SliceReader:
    writer = SliceWriter(tmp_path_factory.mktemp("slices"), name="unit")
    for name, split in (("one", "train"), ("two", "val")):
        for plane in ("axial", "coronal", "sagittal"):
            add(writer, f"{name}-{plane}", patient=name, scan=name, plane=plane, split=split, labels={1: "liver"})
    return SliceReader(writer.root)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_a_training(name: str, reader: SliceReader) -> None:
    variant = VARIANTS[name]
    overrides = training_overrides(variant, reader.along(variant.planes), steps=20)
    network = network_config("tiny", image_size=128, **ast.literal_eval(overrides["network_overrides"]))
    assert network.in_channels == 1 + 2 * network.neighbours
    training_settings("tiny", "cpu", overrides=ast.literal_eval(overrides["settings_overrides"]))
    assert ast.literal_eval(overrides["planes"]) == list(variant.planes)
    first, *others = evaluations(variant).values()
    assert first == {"planes": list(variant.planes), "tta": 1}
    assert len(others) == (4 if len(variant.planes) > 1 else 1)


def test_a_schedule_has_the_steps_that_are_asked_for(reader: SliceReader) -> None:
    # Six slices of one training scan are one step of 16.
    overrides = training_overrides(VARIANTS["axial"], reader.along(["axial"]), steps=70)
    assert (overrides["epochs"], overrides["val_interval"], overrides["patience"]) == ("70", "10", "70")
    # Along all planes they are 6 + 10 + 12 slices, two steps.
    assert training_overrides(VARIANTS["planes"], reader, steps=70)["epochs"] == "35"


def test_label_maps_are_scored_by_target_and_joined(reader: SliceReader, tmp_path: Path) -> None:
    image, label = make_volume(modality="CT")
    for folder, array in (("imagesTr", image.array), ("labelsTr", (label.array == 1).astype("uint8"))):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(array, image.affine), tmp_path / folder / "two.nii.gz")
    network = create_boltzformer("tiny", image_size=64).eval()
    segmenter = VolumeSegmenter(network, Description(network_config("tiny", image_size=64), {"targets": []}))
    settings = {"planes": ["axial"], "tta": 1, "window": "abdomen"}
    rows = label_map_rows(segmenter, tmp_path, reader.along(["axial"]), settings)
    assert [row["name"] for row in rows[::3]] == ["label map mean mean", "label map joined mean"]
    assert 0 <= rows[0]["value"] == rows[3]["value"] <= 1  # one target alone
