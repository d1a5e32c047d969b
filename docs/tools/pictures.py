#!/usr/bin/env python
"""Draws the pictures of the documentation.

::

    boltzformer demo --fast --epochs 20 --output runs/demo      # the model of the first tutorial
    python docs/tools/pictures.py                               # all pictures
    python docs/tools/pictures.py temperature page              # some

``page`` needs MONAI Label, Chromium and the page's viewer (`make page`).
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
HELD_OUT = "abdomen_006"
PROMPTS = ("liver", "left kidney", "spleen")
_PATIENCE_S = 600


def temperature(demo: Path) -> None:
    """``temperature.png``: draws by layer for a mask that is sure of a large object and unsure of a small one."""
    from boltzformer_monai.evaluation.figures import sampled_patches
    from boltzformer_monai.networks import BoltzmannSampling, CounterNoise

    size = 64
    rows, columns = np.mgrid[:size, :size]
    large = (rows - 24) ** 2 + (columns - 22) ** 2 < 12**2
    small = (rows - 47) ** 2 + (columns - 49) ** 2 < 3**2
    confidence = torch.from_numpy(np.where(large, 0.95, np.where(small, 0.5, 0.05)))
    policy, logits = BoltzmannSampling(), torch.logit(confidence).float().reshape(1, -1)
    sets = [policy(logits, layer, CounterNoise(0)).reshape(size, size).numpy() for layer in range(9)]
    image = (60 + 120 * confidence.numpy()).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    truth = (large | small).repeat(4, 0).repeat(4, 1)
    (IMAGES / "temperature.png").write_bytes(
        sampled_patches(image, sets, truth, "confidence 0.95 and 0.5, around them 0.05")
    )


def sampled(demo: Path) -> None:
    """``sampled-patches.png``: the sets of the toy model's first query on a held-out slice."""
    from boltzformer_monai.data.slices.reader import SliceReader
    from boltzformer_monai.evaluation.figures import sampled_patches
    from boltzformer_monai.inferers.segmenter import VolumeSegmenter
    from boltzformer_monai.inferers.slice_prediction import predict_slice

    rows = SliceReader(demo / "data" / "slices").select(split="test", present=True)
    row = max((row for row in rows if row.target == "left kidney"), key=lambda row: row.area_fraction)
    found = predict_slice(VolumeSegmenter.from_checkpoint(demo / "model.pt", device="cpu"), row)
    png = sampled_patches(found.square, found.sets, found.truth, row.prompts[0])
    (IMAGES / "sampled-patches.png").write_bytes(png)


def mask(demo: Path) -> None:
    """``first-mask.png``: the contact sheet of the first tutorial."""
    with tempfile.TemporaryDirectory() as folder:
        scan, out, preview = (
            demo / "data" / "volumes" / HELD_OUT,
            Path(folder, "first.nii.gz"),
            IMAGES / "first-mask.png",
        )
        _boltzformer("segment", scan, "--prompts", *PROMPTS, "--checkpoint", demo / "model", "--output", out,
                     "--preview", preview)  # fmt: skip


def training(demo: Path) -> None:
    """``training.png``: the last overlays of the toy model's training."""
    shutil.copy(max((demo / "overlays").glob("*.png")), IMAGES / "training.png")


def page(demo: Path) -> None:
    """``page.png``: the label server's page with the toy model."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        scan = demo / "data" / "volumes" / "abdomen_001.nii.gz"
        shutil.copy(scan, folder)
        command = [sys.executable, "-m", "boltzformer_monai", "serve", folder, "--checkpoint", str(demo / "model"),
                   "--port", "8123", "--device", "cpu"]  # fmt: skip
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            address = _when_up("http://127.0.0.1:8123/boltzformer/", server)
            with sync_playwright() as playwright:
                program = shutil.which("chromium")
                switches = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
                browser = playwright.chromium.launch(executable_path=program, args=switches)
                seen = browser.new_page(viewport={"width": 1100, "height": 640})
                seen.set_default_timeout(_PATIENCE_S * 1000)
                seen.goto(address)
                seen.locator("#status").filter(has_text="voxels").wait_for()
                seen.fill("#prompts", "liver\nright kidney")
                seen.press("#prompts", "Enter")
                seen.locator("#status").filter(has_text="found in").wait_for()
                seen.wait_for_timeout(2000)
                seen.screenshot(path=IMAGES / "page.png")
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def _when_up(address: str, server: subprocess.Popen[bytes]) -> str:
    for _ in range(_PATIENCE_S):
        if server.poll() is not None:
            sys.exit("the server ended")
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(1)
        else:
            return address
    sys.exit("the server does not answer")


def _boltzformer(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "boltzformer_monai", *map(str, arguments)], cwd=ROOT, check=True)


PICTURES = {each.__name__: each for each in (temperature, sampled, mask, training, page)}


def main() -> None:
    """Draw the pictures that are named, by default all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="folder of the demo (runs/demo)")
    options = parser.parse_args()
    if unknown := set(options.pictures) - set(PICTURES):
        parser.error(f"no picture {', '.join(sorted(unknown))}; there are {', '.join(PICTURES)}")
    for name in options.pictures or PICTURES:
        PICTURES[name](options.demo.resolve())


if __name__ == "__main__":
    main()
