"""No library that this package brings along may report to anybody; what was set by the user stays."""

from __future__ import annotations

import os
import sys

__all__ = ["switch_off_telemetry"]

_SWITCHES = {"MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_DISABLE_TELEMETRY": "1"}


def switch_off_telemetry() -> None:
    """Set what the libraries read. MLflow, which MONAI imports where it is installed, reports once it tracks a run.

    ``python -m monai.bundle`` has imported MLflow before anything of ours; it is told again then.
    """
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    mlflow = sys.modules.get("mlflow")
    if mlflow is not None and hasattr(mlflow, "telemetry"):  # none before MLflow 3.2; missing while it is imported
        mlflow.telemetry.set_telemetry_client()
