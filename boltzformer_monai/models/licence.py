"""The licence of weights: kept in the description of every model that was made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from boltzformer_monai.errors import CheckpointError

__all__ = ["KEY", "PERMISSIVE", "Licence"]

KEY = "licence"
"""Where a description of training data holds it."""

PERMISSIVE = frozenset({
    "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "cc-by-4.0", "unlicense", "zlib",
})  # fmt: skip
"""The hub's names of licences that allow any use, with the notice at most."""


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What may be done with weights.

    Attributes:
        name: as the hub or SPDX names it, ``"CC-BY-NC-SA-4.0"``.
        restricted: whether it forbids some use, or is not known.
        url: where it can be read, "" where there is no such place.
        terms: one line for the user.
    """

    name: str
    restricted: bool
    url: str = ""
    terms: str = ""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Licence | None:
        """That of a checkpoint's description of its data, None where it states none.

        Raises:
            CheckpointError: what is there is no licence.
        """
        stored = data.get(KEY)
        if stored is None:
            return None
        fields = {"name": str, "restricted": bool, "url": str, "terms": str}
        if not isinstance(stored, Mapping) or not {"name", "restricted"} <= set(stored) <= set(fields):
            fit = False
        else:
            fit = all(isinstance(value, fields[name]) for name, value in stored.items())
        if not fit:
            msg = "the model's description of its licence cannot be used; fetch or convert the model again"
            raise CheckpointError(msg)
        return cls(**stored)

    @classmethod
    def named(cls, name: str | None, *, url: str = "") -> Licence:
        """Of a name on the hub; one that is not known to allow any use counts as restricted."""
        if not name:
            return cls(name="not stated", restricted=True, url=url, terms="nobody says what may be done with them")
        return cls(name=name, restricted=name.lower() not in PERMISSIVE, url=url)

    def as_dict(self) -> dict[str, Any]:
        """What :meth:`of` reads under ``"licence"``."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [self.name, *([self.terms] if self.terms else []), *([self.url] if self.url else [])]
        return ", ".join(parts)
