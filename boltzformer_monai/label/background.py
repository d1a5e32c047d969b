"""The processes that MONAI Label starts for trainings, scorings and batches end with the server."""

from __future__ import annotations

from monailabel.utils.async_tasks import utils

__all__ = ["stop_background_tasks"]


def stop_background_tasks() -> None:
    """Forget what waits, stop what runs; a training that is stopped goes on when it is asked for again."""
    for method, executor in utils.background_executors.items():
        executor.shutdown(wait=False, cancel_futures=True)
        while utils.processes(method):
            utils.stop_background_task(method)
