"""Children that cannot reach the network, and what they tried."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["attempts", "offline"]

# Libraries look for these and keep still in tests; a user's machine has none of them.
_CI = ("CI", "PYTEST_CURRENT_TEST", "PYTEST_VERSION", "GITHUB_ACTIONS", "JENKINS_URL", "TF_BUILD")


def offline(log: Path) -> dict[str, str]:
    """Environment of a child whose attempts to reach another machine fail and are written to ``log``."""
    known = {name: value for name, value in os.environ.items() if name not in _CI}
    before = [path for path in (known.get("PYTHONPATH"),) if path]
    places = os.pathsep.join([str(Path(__file__).parent), *before])
    return {**known, "PYTHONPATH": places, "BOLTZFORMER_TEST_CONNECTIONS": str(log), "HOME": str(log.parent)}


def attempts(log: Path) -> list[str]:
    """The hosts that were tried."""
    return log.read_text(encoding="utf-8").split() if log.exists() else []
