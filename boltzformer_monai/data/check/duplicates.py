"""Images and volumes that occur twice: in other splits and patients (leakage), data sets, or within a volume."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from boltzformer_monai.data.check.findings import Findings

__all__ = ["Duplicates", "Place"]


@dataclass(frozen=True)
class Place:
    """Where an image lies."""

    data_set: str
    volume: str
    patient: str
    split: str

    def __str__(self) -> str:
        return f"{self.volume} ({self.split})"


class Duplicates:
    """Remembers a hash of every image's pixels, and reports those that come again.

    Images of a single grey value say nothing and are left out. An image is compared with the first place where it
    was found: when a third copy differs from the second in split or patient, one of them differs from the first, too.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._pictures: dict[bytes, Place] = {}
        self._volumes: dict[bytes, Place] = {}

    def add_picture(self, pixels: np.ndarray, place: Place) -> bytes:
        """Compare an image (H, W) with all before it; returns the hash of its size and pixels."""
        digest = hashlib.blake2b(repr((pixels.dtype.str, pixels.shape)).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(pixels).data)
        key = digest.digest()
        if pixels.min() == pixels.max():
            return key
        first = self._pictures.setdefault(key, place)
        if first is place:
            return key
        self._report(first, place)
        return key

    def repeated(self, key: bytes, keys: set[bytes]) -> bool:
        """Whether an image that is not of a single grey value was found in this very volume already."""
        return key in keys and key in self._pictures

    def add_volume(self, keys: list[bytes], place: Place) -> None:
        """Compare a volume, given the hashes of its images in order, with all before it."""
        if not any(key in self._pictures for key in keys):
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
        """The data set that a finding belongs to (none for two), and the two places as text."""
        if first.data_set == place.data_set:
            return place.data_set, f"{first} = {place}"
        return "", f"{first.data_set}: {first} = {place.data_set}: {place}"
