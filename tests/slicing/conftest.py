"""Fixtures that other rooms' tests define."""

from __future__ import annotations

from tests.io.conftest import write_series

__all__ = ["write_series"]
