"""Labels kept for a DICOMweb server's scans: names and voxels are always of one generation, whatever ends a change."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")

from boltzformer_monai.errors import StorageError  # noqa: E402
from boltzformer_monai.io.read import read_label_map, write_label_map  # noqa: E402
from boltzformer_monai.io.volume import Volume  # noqa: E402
from boltzformer_monai.label.datastore.label_store import LabelStore  # noqa: E402
from tests.label.faults import KILL, failing_disk  # noqa: E402

GRID = Volume(np.zeros((4, 3, 2), np.int16), np.eye(4), modality="CT")
IMAGE, TAG = "1.2.3", "mine"
Change = Callable[[LabelStore, int], object]
"""Makes generation n: n in every voxel, and the name ``name n``."""


def _info(number: int) -> dict[str, object]:
    return {"label_info": [{"name": f"name {number}", "idx": number}]}


def _keep(kept: LabelStore, number: int) -> object:
    return kept.keep(IMAGE, TAG, np.full(GRID.shape, number, np.uint8), GRID, _info(number))


def _copy(kept: LabelStore, number: int) -> object:
    return kept.copy(IMAGE, TAG, kept.root.parent / f"{number}.nrrd", ".nrrd", _info(number))


def _note(kept: LabelStore, number: int) -> None:
    kept.note(IMAGE, TAG, {"noted": number})


def _drop(kept: LabelStore, number: int) -> None:
    kept.drop(IMAGE, TAG)


def _folder(root: Path) -> LabelStore:
    (root / "labels").mkdir(parents=True, exist_ok=True)
    return LabelStore(root / "labels", root / "lock")


def _seen(kept: LabelStore) -> tuple[int, object] | None:
    """Generation of the label, which voxels and name must agree on, and what was noted."""
    there = kept.get(IMAGE, TAG)
    assert kept.tags(IMAGE) == ([TAG] if there else [])
    assert kept.counts().get(TAG, 0) == bool(there)
    if there is None:
        return None
    array = read_label_map(there[0]).array
    number = int(array.flat[0])
    assert (array == number).all()
    assert there[1]["label_info"] == [{"name": f"name {number}", "idx": number}]
    return number, there[1].get("noted")


CHANGES: dict[str, tuple[list[Change], Change, tuple[int, object] | None]] = {
    "the first": ([], _keep, (2, None)),
    "another": ([_keep], _keep, (2, None)),
    "in another format": ([_keep], _copy, (2, None)),
    "the same voxels": ([_keep, lambda kept, _: _keep(kept, 2)], _keep, (2, None)),
    "a note": ([_keep], _note, (1, 2)),
    "removal": ([_copy], _drop, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("code", [KILL, errno.ENOSPC])
@pytest.mark.parametrize("name", CHANGES)
def test_wherever_a_change_ends_there_is_the_old_label_or_the_new_one(name: str, code: int, tmp_path: Path) -> None:
    if code == KILL and not hasattr(os, "fork"):
        pytest.skip("killed is a copy of this process")
    before, change, wanted = CHANGES[name]
    done, failed, states = False, "", set()
    kept = _folder(tmp_path / "before")
    for number in (1, 2):
        write_label_map(np.full(GRID.shape, number, np.uint8), GRID, tmp_path / "before" / f"{number}.nrrd")
    for each in before:
        each(kept, 1)
    old = _seen(kept)
    with failing_disk() as disk:
        for call in range(1, 1000):
            root = tmp_path / str(call)
            shutil.copytree(tmp_path / "before", root)
            kept = _folder(root)
            if code == KILL:
                if (child := os.fork()) == 0:
                    disk.arm(call, KILL)
                    change(kept, 2)
                    os._exit(0)
                done = os.waitpid(child, 0)[1] == 0
                allowed = [wanted] if done else [old, wanted]
            else:
                disk.arm(call, code)
                told = ""
                try:
                    change(kept, 2)
                except StorageError as error:
                    told = str(error)
                assert ".boltzformer" not in told
                allowed = [old] if told and "does not confirm" not in told else [wanted]
                failed = disk.failed
                done = not failed
                disk.arm(None)
            seen = _seen(kept)
            assert seen in allowed, call
            states.add(seen)
            assert _seen(_folder(root)) == seen, call  # what the next start finds, and has tidied up
            files = sorted(path.name for path in (root / "labels").glob("*/*"))
            if failed == "unlink":  # of a temporary file, which goes once this process has ended
                files = [each for each in files if not each.startswith(".")]
            assert len(files) == (0 if seen is None else 2), (call, files)
            if done:
                break
    assert done
    assert call > 3
    assert states == {old, wanted}


def test_labels_of_an_older_version_stay_readable(tmp_path: Path) -> None:
    folder = tmp_path / "labels" / TAG
    folder.mkdir(parents=True)
    write_label_map(np.full(GRID.shape, 1, np.uint8), GRID, folder / f"{IMAGE}.nii.gz")
    (folder / f"{IMAGE}.json").write_text(json.dumps({**_info(1), "name": f"{IMAGE}.nii.gz"}))
    kept = _folder(tmp_path)
    assert _seen(kept) == (1, None)
    _note(kept, 3)
    assert _seen(kept) == (1, 3)
    _keep(kept, 2)
    assert _seen(_folder(tmp_path)) == (2, None)


def test_damaged_information_costs_no_voxels(tmp_path: Path) -> None:
    kept = _folder(tmp_path)
    _keep(kept, 1)
    (kept.root / TAG / f"{IMAGE}.json").write_text("{")
    assert _seen(_folder(tmp_path)) is None
    assert (kept.root / TAG / f"{IMAGE}.nii.gz").is_file()
    _keep(kept, 2)
    assert _seen(kept) == (2, None)


def test_no_note_of_a_client_takes_the_place_of_ours(tmp_path: Path) -> None:
    kept = _folder(tmp_path)
    _keep(kept, 1)
    kept.note(IMAGE, TAG, {"name": "../1.nrrd", "file_sha256": "", "announced": {"name": "x"}, "noted": 4})
    assert _seen(kept) == (1, 4)
    assert kept.get(IMAGE, TAG) == _folder(tmp_path).get(IMAGE, TAG)
