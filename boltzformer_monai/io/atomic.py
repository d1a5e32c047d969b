"""See :mod:`boltzformer_monai.storage`, from where the ground floors take it."""

from __future__ import annotations

from boltzformer_monai.storage import atomic_path, require_writable

__all__ = ["atomic_path", "require_writable"]
