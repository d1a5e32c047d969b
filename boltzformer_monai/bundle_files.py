"""Where the MONAI bundle is: in the installed package, or beside the package in a checkout."""

from __future__ import annotations

from pathlib import Path

from boltzformer_monai.errors import ConfigError

__all__ = ["bundle_root"]

_PACKAGE = Path(__file__).resolve().parent
_PLACES = (_PACKAGE, _PACKAGE.parent)


def bundle_root(given: str | Path | None = None) -> Path:
    """Return the bundle's folder: ``given``, or else the one that comes with this package.

    Raises:
        ConfigError: there is no bundle.
    """
    places = [Path(given)] if given is not None else [each / "bundles" / "boltzformer" for each in _PLACES]
    for place in places:
        if (place / "configs" / "train.json").is_file():
            return place
    if given is None:
        msg = "this installation has no bundle; install boltzformer-monai again, or give --bundle-root"
    else:
        msg = f"no bundle at {given}; --bundle-root is a folder with configs/train.json, and need not be given"
    raise ConfigError(msg)
