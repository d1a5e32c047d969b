"""How much memory the label server needs, for networks of several sizes; benchmarks/label_server.py measures its times.

    python benchmarks/sizing.py --image abdomen.nii.gz --json benchmarks/results/sizing.json

For each network a real server is started with its default settings and random weights, which cost the same as trained
ones. Its memory is read once it answers, and its peak after two prompts on one scan.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.label_server import Client, with_server, write_checkpoint, write_studies  # noqa: E402
from benchmarks.record import report, result  # noqa: E402

NETWORKS: dict[str, tuple[str, int]] = {
    "tiny": ("tiny", 192),
    "hiera_s_512": ("hiera_s", 512),
    "hiera_s_1024": ("hiera_s", 1024),
}
"""Name → preset and edge of its square."""


def measure(client: Client, image: str, name: str) -> list[dict[str, Any]]:
    """Memory before and after a first and a second prompt on a scan."""
    started = client.peak_memory()
    for prompt in ("liver", "spleen"):
        client.own(image, [prompt])
    return [
        result(f"{name}_memory_idle", started, "GB"),
        result(f"{name}_memory_peak", client.peak_memory(), "GB"),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image", type=Path, required=True, metavar="SCAN", help="a CT scan")
    parser.add_argument("--slices", type=int, default=12, help="from its middle")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for name, (preset, size) in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            studies = Path(folder) / "studies"
            studies.mkdir()
            (image,) = write_studies(studies, [arguments.image], arguments.slices)
            checkpoint = write_checkpoint(Path(folder) / "model.pt", preset, size)
            rows += with_server(
                studies,
                checkpoint,
                arguments.threads,
                lambda client, image=image, name=name: measure(client, image, name),  # type: ignore[misc]
            )
    report(rows, arguments.json, settings={"slices": arguments.slices, "threads": arguments.threads})
    return 0


if __name__ == "__main__":
    sys.exit(main())
