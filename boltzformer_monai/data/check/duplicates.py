"""Duplicate images and volumes: across splits and patients (leakage), across data sets, within a volume."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from boltzformer_monai.data.check.findings import Findings

__all__ = ["Duplicates", "Place"]


@dataclass(frozen=True)
class Place:
    """Where an image belongs."""

    data_set: str
    volume: str
    patient: str
    split: str

    def __str__(self) -> str:
        return f"{self.volume} ({self.split})"


class Duplicates:
    """Find duplicates by hashes of the pixels. Images of a single grey value are ignored.

    An image is compared with its first copy: if a third differs from the second in split or patient, one of them
    differs from the first, too.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._images: dict[bytes, Place] = {}
        self._volumes: dict[bytes, Place] = {}

    def add_picture(self, pixels: np.ndarray, place: Place) -> bytes:
        """Compare an image (H, W) with all earlier ones; returns the hash of its size and pixels."""
        digest = hashlib.blake2b(repr((pixels.dtype.str, pixels.shape)).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(pixels).data)
        key = digest.digest()
        if pixels.min() == pixels.max():
            return key
        first = self._images.setdefault(key, place)
        if first is place:
            return key
        self._report(first, place)
        return key

    def repeated(self, key: bytes, keys: set[bytes]) -> bool:
        """Whether this volume already has the image; False for a single grey value."""
        return key in keys and key in self._images

    def add_volume(self, keys: list[bytes], place: Place) -> None:
        """Compare a volume, given by the hashes of its images in order, with all earlier ones."""
        if not any(key in self._images for key in keys):
            return
        first = self._volumes.setdefault(hashlib.blake2b(b"".join(keys), digest_size=16).digest(), place)
        if first is not place:
            self._findings.add("same-volume", *self._pair(first, place))

    def _report(self, first: Place, place: Place) -> None:
        if first.split != place.split:
            code = "same-picture-in-two-splits"
        elif first.data_set != place.data_set:
            code = "same-picture-in-two-data-sets"
        elif first.patient != place.patient:
            code = "same-picture-of-two-patients"
        else:
            return
        self._findings.add(code, *self._pair(first, place))

    @staticmethod
    def _pair(first: Place, place: Place) -> tuple[str, str]:
        """Data set of a finding (empty for two) and both places as text."""
        if first.data_set == place.data_set:
            return place.data_set, f"{first} = {place}"
        return "", f"{first.data_set}: {first} = {place.data_set}: {place}"
