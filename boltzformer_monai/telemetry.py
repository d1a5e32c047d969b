"""No library that this package brings along may report to anybody; what was set by the user stays."""

from __future__ import annotations

import os
import sys

__all__ = ["switch_off_telemetry"]

_SWITCHES = {"MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_DISABLE_TELEMETRY": "1"}


def switch_off_telemetry() -> None:
    """Set what the libraries read: MLflow reports once it tracks a run, huggingface_hub asks who started the process.

    ``python -m monai.bundle`` has imported both before anything of ours; they are told again then.
    """
    set_here = {name for name, value in _SWITCHES.items() if os.environ.setdefault(name, value) == value}
    mlflow = sys.modules.get("mlflow")
    if mlflow is not None and hasattr(mlflow, "telemetry"):  # none before MLflow 3.2; missing while it is imported
        mlflow.telemetry.set_telemetry_client()
    hub = sys.modules.get("huggingface_hub.constants")
    if hub is not None and "HF_HUB_DISABLE_TELEMETRY" in set_here:
        hub.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]
