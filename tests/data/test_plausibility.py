"""What a scan looks like: Hounsfield units or not, and the plane that it was acquired in."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from boltzformer_monai.data.check.fingerprint import check_data_sets
from boltzformer_monai.data.plausibility import acquisition_plane, hu_problem, scan_caveats
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.io.volume import Volume

Change = Callable[[np.ndarray], np.ndarray]

_NOT_HU: dict[str, Change] = {
    "0 to 1": lambda hu: (hu + 1024) / 3000,
    "-1 to 1": lambda hu: np.clip(hu, -1000, 1000) / 1000,
    "z-scores": lambda hu: (hu - hu.mean()) / hu.std(),
    "a soft-tissue window in 8 bits": lambda hu: np.clip((hu + 160) / 400 * 255, 0, 255).round(),
    "stored values, offset 1024": lambda hu: np.maximum(hu + 1024, 0),
    "stored values, offset 1000": lambda hu: np.maximum(hu + 1000, 0),
    "unsigned wrap-around": lambda hu: hu + 32768,
}


def _body(seed: int, parts: dict[float, float], *, noise: float = 12) -> np.ndarray:
    """Voxels (24, 24, 12) of tissues with these HU in these shares, each a slab of its own, with noise."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(list(parts.values())) * 24 * 24 * 12
    flat = np.array(list(parts))[np.searchsorted(ends, np.arange(24 * 24 * 12) + 0.5)]
    return (flat + rng.normal(0, noise, flat.shape)).round().reshape(24, 24, 12).astype(np.float32)


_SOUND = {
    "abdomen with air": {-1000: 0.4, -100: 0.2, 45: 0.3, 400: 0.1},
    "soft tissue and fat, no air": {-95: 0.3, 50: 0.7},
    "liver alone": {55: 1.0},
    "contrast, no fat": {40: 0.6, 90: 0.4},
    "lung": {-860: 0.9, 30: 0.1},
    "bone": {250: 0.5, 700: 0.2, 1100: 0.3},
    "mostly cortical bone with marrow": {-60: 0.1, 1500: 0.6, 1000: 0.3},
    "air alone": {-1000: 1.0},
}


@pytest.mark.parametrize("name", _SOUND)
def test_hounsfield_units_are_not_warned_of(name: str) -> None:
    for seed in range(5):
        assert hu_problem(_body(seed, _SOUND[name])) == ""


@pytest.mark.parametrize("change", _NOT_HU)
@pytest.mark.parametrize("name", ["abdomen with air", "soft tissue and fat, no air"])
def test_other_units_are_warned_of_with_and_without_air(name: str, change: str) -> None:
    for seed in range(5):
        assert hu_problem(_NOT_HU[change](_body(seed, _SOUND[name]))) != "", change


def test_random_crops_of_random_bodies_keep_their_units_apart() -> None:
    rng = np.random.default_rng(7)
    wrong = 0
    for seed in range(300):
        fat, muscle, bone, air = rng.dirichlet([2, 4, 0.5, 2 if seed % 2 else 0.01])
        body = _body(seed, {-1000: air, -100: fat, 50: muscle, 600: bone}, noise=float(rng.uniform(4, 25)))
        assert hu_problem(body) == ""
        change = list(_NOT_HU)[seed % len(_NOT_HU)]
        wrong += hu_problem(_NOT_HU[change](body)) == ""
    assert wrong <= 3, "at most one in a hundred goes unnoticed"


def test_one_single_value_tells_nothing() -> None:
    assert hu_problem(np.zeros((4, 4, 4), np.float32)) == ""


def test_the_line_names_no_file() -> None:
    volume = Volume(_body(0, _SOUND["liver alone"]) + 1024, np.eye(4), modality="CT", source="Doe_John.nii.gz")
    (caveat,) = scan_caveats(volume, modality="CT", planes=("axial",))
    assert caveat.kind == "not HU"
    assert "Doe" not in caveat.text
    assert scan_caveats(volume, modality="MR", planes=("axial",)) == []


@pytest.mark.parametrize(
    ("shape", "spacing", "plane"),
    [
        ((64, 64, 20), (1, 1, 5), "axial"),
        ((4, 256, 256), (4, 0.5, 0.5), "sagittal"),
        ((256, 12, 256), (1, 6, 1), "coronal"),
        ((4, 256, 256), (1, 1, 1), "sagittal"),
        ((64, 64, 64), (1, 1, 1), None),
        ((64, 64, 40), (0.8, 0.8, 1.25), None),
        ((42, 76, 77), (1, 1, 1), None),
    ],
)
def test_the_plane_of_acquisition(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], plane: str | None
) -> None:
    volume = Volume(np.zeros(shape, np.uint8), np.diag([*spacing, 1.0]))
    assert acquisition_plane(volume) == plane
    turned = volume.reoriented("PIL")
    assert acquisition_plane(turned) == plane, "the patient decides, not the order of the axes"


def test_a_sagittal_scan_cut_axially_is_named(tmp_path, caplog) -> None:  # type: ignore[no-untyped-def]
    """Four sagittal slices make 64 useless axial images of 4 columns."""
    rng = np.random.default_rng(0)
    scan = Volume(rng.normal(100, 30, (4, 64, 64)).astype(np.float32), np.diag([4, 0.5, 0.5, 1.0]), modality="MR")
    label = Volume((rng.random(scan.shape) > 0.5).astype(np.uint8), scan.affine)
    with SliceWriter(tmp_path / "slices") as writer:
        for plane in ("axial", "sagittal"):
            writer.add_volume(scan, label, {1: "cord"}, volume_id=plane, patient=plane, site="spine", plane=plane)
    assert caplog.text.count("acquired in sagittal slices, 4 mm apart") == 1
    assert "take the plane sagittal" in caplog.text
    entries = json.loads((tmp_path / "slices" / "dataset.json").read_text())["volumes"]
    assert [caveat["kind"] for caveat in entries["axial"]["caveats"]] == ["acquisition plane"]
    assert "caveats" not in entries["sagittal"]
    found = {finding.code: finding for finding in check_data_sets([tmp_path / "slices"]).findings}
    assert found["other-plane"].examples == ["axial: axial, acquired sagittal"]


def test_a_ct_that_is_not_in_hu_is_named_when_sliced_and_checked(tmp_path, caplog) -> None:  # type: ignore[no-untyped-def]
    hu = _body(3, _SOUND["soft tissue and fat, no air"])
    with SliceWriter(tmp_path / "slices") as writer:
        for name, array in (("sound", hu), ("stored", hu + 1024)):
            scan = Volume(array.astype(np.float32), np.eye(4), modality="CT")
            writer.add_volume(scan, None, None, volume_id=name, patient=name, site="abdomen")
    assert caplog.text.count("do not look like Hounsfield units") == 1
    found = {finding.code: finding for finding in check_data_sets([tmp_path / "slices"]).findings}
    (example,) = found["doubtful-values"].examples
    assert example.startswith("stored: the voxels do not look like Hounsfield units")
    record = json.loads((tmp_path / "slices" / "volumes" / "stored.json").read_text())
    assert record["notes"] == [record["entry"]["caveats"][0]["text"]]
