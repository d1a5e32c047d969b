"""A data set recipe of another distribution, from listing to a segmented scan; and recipes that are broken."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from boltzformer_monai.cli.slice import main
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.io.read import read_label_map
from boltzformer_monai.slicing.recipes import load_recipe, recipe_names
from tests.data.slice_cases import contents
from tests.extending.guests import ROOT, install, python
from tests.needs import need_module
from tests.slicing.scan_files import write_image

GUEST = Path(__file__).with_name("guest_recipe.py")
ENTRY = "[boltzformer_monai.recipes]\nboxes = guest_recipe\n"
BUNDLE = ROOT / "bundles" / "boltzformer"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    for number in range(4):
        write_image(folder / f"patient{number}" / "scan.nii.gz", seed=number)
        (folder / f"patient{number}" / "tumor.csv").write_text("2,2,1,5,5,3\n")
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    env = install(tmp_path / "site", "boxes-recipe", modules={"guest_recipe": GUEST}, entry_points=ENTRY)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return env


def test_the_guest_is_the_example_of_the_documentation() -> None:
    text = GUEST.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert f"```python\n{text}```" in (ROOT / "docs" / "how-to" / "extending.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_slice_train_and_segment_in_new_processes(archive: Path, installed: dict[str, str], tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        done = python("-W", "ignore", *arguments, env=installed, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "boxes" in run("-m", "boltzformer_monai", "slice", "--help")
    said = run("-m", "boltzformer_monai", "slice", "--recipe", "boxes", "--input", archive, "--output", "slices",
               "--option", "margin=1", "--workers", 2, "--val-fraction", 0.25)  # fmt: skip
    assert said == f"4 volumes, 16 slices, 1 targets, 16 rows -> {tmp_path / 'slices'}\n"
    reader = SliceReader(tmp_path / "slices")
    assert reader.targets == ["liver tumor"]
    assert {row.slice_index for row in reader.select(present=True)} == {0, 1, 2, 3}  # a margin around slices 1 and 2
    config = BUNDLE / "configs" / "train.json"
    run("-m", "monai.bundle", "run", "training", "--config_file", config, "--bundle_root", BUNDLE,
        "--dataset_dir", "slices", "--output_dir", "run", "--preset", "tiny", "--image_size", 64, "--epochs", 1,
        "--batch_size", 6, "--network_overrides", "{'presence': False}")  # fmt: skip
    run("-m", "boltzformer_monai", "segment", archive / "patient0" / "scan.nii.gz", "--prompts", "liver tumor",
        "--modality", "CT", "--checkpoint", "run/model.pt", "--output", "found.nii.gz")  # fmt: skip
    assert read_label_map(tmp_path / "found.nii.gz").array.shape == (10, 8, 4)


def test_a_cluster_gives_the_same_bytes_and_needs_the_recipe(
    archive: Path, installed: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distributed = need_module("distributed")
    arguments = ["--recipe", "boxes", "--input", str(archive), "--output"]
    assert main([*arguments, str(tmp_path / "one" / "slices")]) == 0
    settings = {"n_workers": 1, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    for name, path, code in (("with", installed["PYTHONPATH"], 0), ("without", str(ROOT), 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", path)
            if name == "without":  # workers are started with the path of this process
                patch.setattr(sys, "path", [each for each in sys.path if each != str(tmp_path / "site")])
            cluster = distributed.LocalCluster(**settings, silence_logs=logging.ERROR)
        with cluster:
            scheduler = ["--scheduler", cluster.scheduler_address]
            assert main([*arguments, str(tmp_path / name / "slices"), *scheduler]) == code
    assert contents(tmp_path / "one") == contents(tmp_path / "with")
    assert "lacks the recipe" in capsys.readouterr().err


def test_its_options_are_checked(archive: Path, installed: dict[str, str]) -> None:
    assert "boxes" in recipe_names()
    assert load_recipe("boxes").distribution == "boxes-recipe"
    with pytest.raises(ConfigError, match=r"boxes has no option 'margn'; did you mean 'margin'"):
        load_recipe("boxes")(archive, margn=1)
    with pytest.raises(ConfigError, match=r"margin '7' is none of 0, 1, 2"):
        load_recipe("boxes")(archive, margin=7)
    with pytest.raises(ConfigError, match=r"unknown recipe 'boxs'; did you mean 'boxes'"):
        load_recipe("boxs")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module", "cannot be loaded from broken_guest (ModuleNotFoundError: No module named"),
        ("OPTIONS = ()", "cannot be loaded from broken_guest (AttributeError: "),
        ("OPTIONS = ('margin',)\ndef cases(folder, **_): return []", "needs a function cases, and OPTIONS"),
        ("def cases(folder, **_):\n    return folder.scans", "fails in broken_guest.py:2 (AttributeError: "),
        ("def cases(folder): return []", "(TypeError: cases() got an unexpected keyword argument"),
        ("def cases(folder, **_): return ['scan.nii.gz']", "lists 'scan.nii.gz', not a Case"),
    ],
)
def test_a_broken_guest_is_one_line(
    text: str, said: str, archive: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    entry = "[boltzformer_monai.recipes]\nbroken = broken_guest\n"
    install(tmp_path / "site", "broken-recipe", modules={"broken_guest": text}, entry_points=entry)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "broken_guest", raising=False)
    assert main(["--recipe", "broken", "--input", str(archive), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the recipe broken of broken-recipe")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert main(["--recipe", "brokn", "--input", str(archive), "--output", str(tmp_path / "out")]) == 2
    assert "broken" in capsys.readouterr().err  # a broken guest does not hide the others, nor itself
    assert load_recipe("msd").distribution == ""


def test_two_recipes_of_one_name_are_not_chosen_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        install(tmp_path / name, f"{name}-recipe", modules={"guest_recipe": GUEST}, entry_points=f"{ENTRY}msd = x\n")
        monkeypatch.syspath_prepend(str(tmp_path / name))
    with pytest.raises(ConfigError, match="recipe boxes is provided by (one|two)-recipe and by (one|two)-recipe;"):
        load_recipe("boxes")
    with pytest.raises(ConfigError, match="recipe msd is provided by boltzformer-monai and by"):
        load_recipe("msd")
