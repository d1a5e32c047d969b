"""Many warnings become few lines, and none is lost."""

from __future__ import annotations

from boltzformer_monai.slicing.slice_report import Tally


def test_what_is_said_of_many_scans_is_one_line() -> None:
    tally = Tally()
    for number in range(426):
        path = f"/scans/a: b/{number}.nii.gz"
        tally.add(f'{path}: the vocabulary does not know "zone {number % 2}"', [path])
        tally.add(f"{path}: tilt of {number}.5 degrees", [path, "/scans/a"])
    tally.add("/scans/7.nii.gz: RescaleType is not HU", ["/scans/7.nii.gz"])
    assert tally.lines() == [
        'the vocabulary does not know "zone 0" (213 times)',
        "/scans/a: b/0.nii.gz: tilt of 0.5 degrees (and 425 more like it)",
        'the vocabulary does not know "zone 1" (213 times)',
        "/scans/7.nii.gz: RescaleType is not HU",
    ]
