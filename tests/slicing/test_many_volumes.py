"""Many scans in one run: bad ones among them, several processes, a cluster, a second run."""

from __future__ import annotations

import csv
import json
import logging
import os
import time
from pathlib import Path

import pytest

from boltzformer_monai.cli.slice import main
from boltzformer_monai.data.check.fingerprint import check_data_sets
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.data.slices.summary import training_data
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.parallel import run_jobs
from tests.data.slice_cases import contents
from tests.needs import need_module
from tests.slicing.scan_files import make_task, write_image, write_label
from tests.slicing.work import crash_on_three, double


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return make_task(tmp_path / "Task03_Liver", cases=5)


def arguments(task: Path, output: Path, *more: object) -> list[str]:
    return ["--recipe", "msd", "--input", str(task), "--output", str(output), "--name", "many", *map(str, more)]


def spoil(task: Path) -> None:
    """Make the second scan unreadable."""
    path = task / "imagesTr" / "liver_001.nii.gz"
    path.write_bytes(path.read_bytes()[:100])


def test_one_bad_scan_does_not_stop_the_rest(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spoil(task)
    assert main(arguments(task, tmp_path / "out")) == 3
    streams = capsys.readouterr()
    assert "4 volumes" in streams.out
    assert "1 scan refused" in streams.out
    assert "refused: " in streams.err
    assert "liver_001.nii.gz" in streams.err
    assert len(SliceReader(tmp_path / "out").volumes) == 4
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["done"], report["refused"]) == (4, 1)
    assert report["volumes"]["liver_001"]["status"] == "refused"
    assert report["why"] == {report["volumes"]["liver_001"]["reason"]: 1}
    assert str(task) not in json.dumps(report)
    assert report["volumes"]["liver_002"]["targets"] == {"liver": 2, "liver tumor": 2}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_name_that_the_vocabulary_does_not_know_is_told_once_with_how_often(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int
):
    for number in range(5):
        write_image(tmp_path / "in" / "images" / f"{number}.nii.gz")
        write_label(tmp_path / "in" / "labels" / f"{number}.nii.gz", 1)
    names = {"modality": "CT", "site": "abdomen", "labels": {"1": "flux 2"}}
    (tmp_path / "in" / "labels.json").write_text(json.dumps(names))
    given = ["--recipe", "folder", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main([*given, "--workers", str(workers)]) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "does not know" in line]
    assert lines == ['warning: the vocabulary does not know "flux 2"; its prompts are made of its name (5 times)']


def test_strict_stops_and_keeps_what_is_done(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spoil(task)
    assert main(arguments(task, tmp_path / "out", "--strict")) == 2
    assert "error: " in capsys.readouterr().err
    assert set(SliceReader(tmp_path / "out").volumes) == {"liver_000"}


def test_a_mended_scan_is_taken_by_the_next_run_and_nothing_is_done_twice(task: Path, tmp_path: Path):
    spoil(task)
    assert main(arguments(task, tmp_path / "out")) == 3
    before = contents(tmp_path / "out")
    picture = tmp_path / "out" / "images" / "liver_000_axial_0000.png"
    made = picture.stat().st_mtime_ns
    assert main(arguments(task, tmp_path / "out")) == 3
    assert contents(tmp_path / "out") == before
    write_image(task / "imagesTr" / "liver_001.nii.gz", seed=1)
    assert main(arguments(task, tmp_path / "out")) == 0
    assert picture.stat().st_mtime_ns == made
    assert main(arguments(task, tmp_path / "other")) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_other_settings_slice_again(task: Path, tmp_path: Path):
    assert main(arguments(task, tmp_path / "out")) == 0
    assert main(arguments(task, tmp_path / "out", "--plane", "coronal", "--every", "2")) == 0
    reader = SliceReader(tmp_path / "out")
    assert {row.plane for row in reader.rows} == {"coronal"}
    assert all(path.name.count("coronal") for path in (tmp_path / "out" / "images").iterdir())


PLANES = ("axial", "coronal", "sagittal")


def test_every_scan_along_several_planes(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(arguments(task, tmp_path / "out", "--plane", "axial,coronal", "--plane", "sagittal")) == 0
    assert "15 volumes of 5 scans" in capsys.readouterr().out
    reader = SliceReader(tmp_path / "out")
    assert set(reader.volumes) == {f"liver_00{number}-{plane}" for number in range(5) for plane in PLANES}
    assert {(row.scan, row.plane) for row in reader.rows if row.volume == "liver_002-coronal"} == {
        ("liver_002", "coronal")
    }
    splits = {(row.scan, row.split) for row in reader.rows}
    assert len(splits) == 5  # a scan is in one split with all its planes
    assert training_data(reader)["splits"]["val"]["volumes"] == 1
    assert training_data(reader)["planes"] == dict.fromkeys(PLANES, 5)
    assert training_data(reader)["modalities"] == {"CT": 5}
    axial = reader.along(["axial"])
    assert set(axial.volumes) == {f"liver_00{number}-axial" for number in range(5)}
    with pytest.raises(DatasetError, match="no slices along coronal; planes there: axial"):
        axial.along(["coronal"])
    before = contents(tmp_path / "out")
    assert main(arguments(task, tmp_path / "out", "--plane", "sagittal,coronal,axial")) == 0
    assert "replaced" not in capsys.readouterr().err
    changed = {name for name, text in contents(tmp_path / "out").items() if before[name] != text}
    assert changed <= {"report.json"}
    assert main(["--output", str(tmp_path / "out"), "--remove", "liver_002"]) == 0
    assert {row.scan for row in SliceReader(tmp_path / "out").rows} == {f"liver_00{number}" for number in (0, 1, 3, 4)}


def test_the_same_plane_of_a_scan_is_never_there_twice(task: Path, tmp_path: Path):
    assert main(arguments(task, tmp_path / "out", "--plane", "coronal")) == 0
    assert "liver_000" in SliceReader(tmp_path / "out").volumes
    assert main(arguments(task, tmp_path / "out", "--plane", "axial,coronal")) == 0
    reader = SliceReader(tmp_path / "out")
    assert set(reader.volumes) == {f"liver_00{number}-{plane}" for number in range(5) for plane in PLANES[:2]}
    assert main(arguments(task, tmp_path / "out", "--plane", "axial")) == 0
    reader = SliceReader(tmp_path / "out")
    assert {name for name in reader.volumes if "000" in name} == {"liver_000", "liver_000-coronal"}
    assert {(row.scan, row.plane) for row in reader.rows if "000" in row.volume} == {
        ("liver_000", "axial"), ("liver_000", "coronal"),
    }  # fmt: skip
    assert not check_data_sets([tmp_path / "out"]).count("error")


def test_several_processes_give_the_same_bytes(task: Path, tmp_path: Path):
    spoil(task)
    planes = ("--plane", "axial,sagittal")
    assert main(arguments(task, tmp_path / "one", *planes)) == 3
    assert main(arguments(task, tmp_path / "two", *planes, "--workers", "2")) == 3
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_cluster_gives_the_same_bytes(task: Path, tmp_path: Path):
    distributed = need_module("distributed")
    spoil(task)
    assert main(arguments(task, tmp_path / "one")) == 3
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=logging.ERROR
    ) as cluster:
        address = cluster.scheduler_address
        assert main(arguments(task, tmp_path / "two", "--scheduler", address)) == 3
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_scheduler_that_does_not_answer(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    need_module("distributed")
    assert main(arguments(task, tmp_path / "out", "--scheduler", "nonsense")) == 2
    error = capsys.readouterr().err
    assert "no Dask scheduler answers" in error
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_composites_are_added_where_their_parts_are_there(tmp_path: Path):
    task = make_task(tmp_path / "Task99_Own", task="own", labels=("left kidney", "right kidney"))
    assert main(arguments(task, tmp_path / "out", "--site", "abdomen", "--composites")) == 0
    reader = SliceReader(tmp_path / "out")
    assert reader.targets == ["kidney", "left kidney", "right kidney"]
    assert {row.label_values for row in reader.select(targets=["kidney"])} == {(1, 2)}


@pytest.mark.parametrize("busy", [0.0, 1.0])
def test_a_job_that_kills_its_process_is_found_out_and_no_other_is_lost(busy: float):
    done = []
    for result in run_jobs(crash_on_three, [0, 3, 1, 2, 4, 5], workers=2, crashed=lambda job: -job):
        done.append(result)
        time.sleep(busy)  # a worker may die while the parent has other things to do
        busy = 0.0
    assert sorted(done) == sorted([-3, *(double(job) for job in (0, 1, 2, 4, 5))])


def test_a_refused_scan_takes_its_older_slices_with_it(task: Path, tmp_path: Path):
    assert main(arguments(task, tmp_path / "out")) == 0
    spoil(task)
    assert main(arguments(task, tmp_path / "out")) == 3
    assert main(arguments(task, tmp_path / "fresh")) == 3
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_another_label_with_an_older_time_is_noticed(task: Path, tmp_path: Path):
    assert main(arguments(task, tmp_path / "out")) == 0
    label = task / "labelsTr" / "liver_000.nii.gz"
    write_label(label, 2)
    os.utime(label, (1e9, 1e9))
    assert main(arguments(task, tmp_path / "out")) == 0
    rows = SliceReader(tmp_path / "out").select(volume="liver_000", targets=["liver"])
    assert not any(row.present for row in rows)


def test_the_output_may_not_overlap_the_input(task: Path, capsys: pytest.CaptureFixture[str]):
    for output in (task, task.parent, task / "slices"):
        before = contents(task)
        assert main(arguments(task, output)) == 2
        assert "must lie apart from the scans" in capsys.readouterr().err
        assert contents(task) == before


def test_a_private_table_knows_what_was_not_reached(task: Path, tmp_path: Path):
    spoil(task)
    private = tmp_path / "private.csv"
    assert main(arguments(task, tmp_path / "out", "--strict", "--mapping", private)) == 2
    states = {row["volume"]: row["status"] for row in csv.DictReader(private.open())}
    assert states == {
        "liver_000": "done", "liver_001": "refused",
        **dict.fromkeys(("liver_002", "liver_003", "liver_004"), "not reached"),
    }  # fmt: skip


def test_the_key_may_come_from_a_file(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    key = tmp_path / "key"
    key.write_text("secret\n")
    assert main(arguments(task, tmp_path / "one", "--key-file", key)) == 0
    assert main(arguments(task, tmp_path / "two", "--key", "secret")) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    key.write_text("")
    assert main(arguments(task, tmp_path / "three", "--key-file", key)) == 2
    assert "is empty" in capsys.readouterr().err
