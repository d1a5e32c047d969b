from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.data.slices import SliceReader
from preprocessing.recipes import load_recipe
from preprocessing.slice_volumes import main
from tests.preprocessing.scan_files import make_task


def run_task(task: Path, *more: str) -> tuple[int, Path]:
    output = task.parent / "out"
    return main(["--recipe", "msd", "--input", str(task), "--output", str(output), *more]), output


def test_a_decathlon_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, output = run_task(make_task(tmp_path / "Task03_Liver"))
    assert code == 0
    assert "2 volumes, 8 slices, 2 targets, 16 rows" in capsys.readouterr().out
    reader = SliceReader(output)
    assert set(reader.volumes) == {"liver_000", "liver_001"}
    assert reader.targets == ["liver", "liver tumor"]
    assert {row.split for row in reader.rows} == {"train", "val"}
    assert reader.volumes["liver_000"]["modality"] == "CT"
    # The first volume lacks the tumor: in a whole task that is normal.
    assert not any(row.present for row in reader.select(targets=["liver tumor"], volume="liver_000"))


def test_the_hippocampus_task_is_known_by_its_name(tmp_path: Path):
    labels = ("Anterior", "Posterior")
    code, output = run_task(make_task(tmp_path / "x", task="Hippocampus", modality=("MRI",), labels=labels))
    assert code == 0
    row = SliceReader(output).rows[0]
    assert (row.modality, row.site, row.prompts[0]) == ("MR", "brain", "anterior hippocampus in brain MRI")


def test_a_task_that_nobody_knows_keeps_its_names_and_needs_a_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    task = make_task(tmp_path / "Task77_Toes", task="Toes", labels=("toe", "nail"))
    assert run_task(task)[0] == 2
    assert "--site" in capsys.readouterr().err
    code, output = run_task(task, "--site", "foot")
    assert code == 0
    assert SliceReader(output).rows[0].prompts[0] == "toe in foot CT"


def test_a_task_of_several_modalities_needs_a_channel(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import nibabel as nib

    task = make_task(
        tmp_path / "Task05_Prostate", task="PROSTATE", modality=("T2", "ADC"), labels=("PZ", "TZ"), channels=2
    )
    assert run_task(task)[0] == 2
    assert "2 channels (0 T2, 1 ADC); choose one with --channel" in capsys.readouterr().err
    assert run_task(task, "--channel", "2")[0] == 2
    assert "no channel 2" in capsys.readouterr().err
    assert run_task(task, "--channel", "1")[0] == 0
    case = load_recipe("msd")(task, modality=None, site=None, channel=1)[0]
    image, _ = case.read()
    np.testing.assert_array_equal(image.array, np.asarray(nib.load(case.image).dataobj)[..., 1])
    assert (image.modality, case.site) == ("MR", "prostate")


def test_one_unreadable_volume_stops_with_its_name_and_keeps_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    task = make_task(tmp_path / "Task03_Liver", cases=3)
    broken = task / "imagesTr" / "liver_002.nii.gz"
    broken.write_bytes(broken.read_bytes()[:60])
    code, output = run_task(task)
    assert code == 2
    assert "liver_002.nii.gz" in capsys.readouterr().err
    assert set(SliceReader(output).volumes) == {"liver_000", "liver_001"}
    (task / "labelsTr" / "liver_001.nii.gz").unlink()
    assert run_task(task)[0] == 2
    assert "labelsTr/liver_001.nii.gz, which does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"modality": {}, "labels": {}, "training": [1]}'])
def test_a_damaged_dataset_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str):
    (tmp_path / "dataset.json").write_text(content)
    assert main(["--recipe", "msd", "--input", str(tmp_path), "--output", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "dataset.json" in error
    assert error.count("\n") == 1


def test_ctrl_c_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    task = make_task(tmp_path / "Task03_Liver", cases=3)
    real, reads = load_recipe("msd"), []

    class Stopping:
        def __init__(self, case: object) -> None:
            self.case = case

        def __getattr__(self, name: str) -> object:
            return getattr(self.case, name)

        def read(self) -> object:
            reads.append(1)
            if len(reads) == 3:
                raise KeyboardInterrupt
            return self.case.read()

    monkeypatch.setattr(
        "preprocessing.slice_volumes.load_recipe",
        lambda name: lambda *a, **k: [Stopping(case) for case in real(*a, **k)],
    )
    assert main(["--recipe", "msd", "--input", str(task), "--output", str(tmp_path / "out")]) == 130
    assert "interrupted: the 2 volumes finished" in capsys.readouterr().err
    reader = SliceReader(tmp_path / "out")
    assert set(reader.volumes) == {"liver_000", "liver_001"} == {row.volume for row in reader.rows}
