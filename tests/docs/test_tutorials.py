"""The tutorials work: their blocks are run in order in one folder, as a reader does, with three epochs a training.

Commands that need a server or a viewer (``serve``) are left out here; tests/label runs these.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from boltzformer_monai.cli import main
from tests.docs.pages import DOCS, Block, blocks, commands, words

LESSONS = ("first-mask", "own-data", "train", "evaluate", "slicer", "archive")


def run(block: Block) -> None:
    """Write a titled block's file; run Python, commands of this package in this process, and others in bash."""
    if block.title:
        Path(block.title).parent.mkdir(parents=True, exist_ok=True)
        Path(block.title).write_text(block.text, encoding="utf-8")
    elif block.language == "python":
        exec(compile(block.text, "tutorial", "exec"), {})
    elif block.language == "bash" and not block.text.startswith("boltzformer "):
        subprocess.run(["bash", "-euo", "pipefail", "-c", block.text], check=True)
    elif block.language == "bash":
        for line in commands(block.text):
            if not line.startswith("boltzformer serve "):
                expected = re.search(r"# exit code (\d+)", line)
                given = words(re.sub(r"--epochs \d+", "--epochs 3", line))[1:]
                assert main(given) == (int(expected[1]) if expected else 0), line


@pytest.mark.slow
@pytest.mark.usefixtures("bundle_in_process")
def test_the_lessons_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for lesson in LESSONS:
        for block in blocks(DOCS / "tutorials" / f"{lesson}.md"):
            run(block)
    for name in ("runs/demo/report.html", "first.png", "runs/slices.html", "runs/mine/training.html",
                 "runs/mine/eval/report.html", "results/abdomen_006.json", "previews", "lesions.csv"):  # fmt: skip
        assert Path(name).exists(), name
