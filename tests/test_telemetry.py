"""Libraries that were imported before this package are told, too, that they may report to nobody."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_HUB = """
from huggingface_hub import constants  # as `python -m monai.bundle` has done before
assert not constants.HF_HUB_DISABLE_TELEMETRY
import boltzformer_monai
print(constants.HF_HUB_DISABLE_TELEMETRY)
"""


@pytest.mark.parametrize(("given", "expected"), [(None, "True"), ("0", "False")])
def test_the_hub_is_told_unless_the_user_decided(given: str | None, expected: str) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    } | ({} if given is None else {"HF_HUB_DISABLE_TELEMETRY": given})
    done = subprocess.run([sys.executable, "-c", _HUB], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == expected, done.stderr
