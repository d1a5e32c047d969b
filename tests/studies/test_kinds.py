"""What runs a study's runs takes all that decides their numbers from the run itself."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from boltzformer_monai.bundle_files import bundle_root
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.studies import kinds
from boltzformer_monai.studies.plan import Run
from boltzformer_monai.studies.provenance import Cost
from tests.engines.cases import write_dataset


def test_an_expert_is_the_same_on_every_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def begin(reader: Any, settings: Any, **_: Any) -> None:
        given.append(settings)
        raise ConfigError("enough")

    write_dataset(tmp_path / "slices")
    monkeypatch.setattr(kinds, "train_expert", begin)
    monkeypatch.setattr(kinds, "measured", lambda _: contextlib.nullcontext(Cost()))  # no GPU is asked
    settings = {"settings": {"dimensions": 2}, "split": None, "folds": None}
    run = Run(kind="expert", data="slices", arm="U-Net", seed=0, fold=None, settings=settings, fingerprint="")
    for device in ("cpu", "cuda"):
        where = kinds.Place(folder=tmp_path / device, data=tmp_path / "slices", device=device, root=bundle_root())
        with pytest.raises(ConfigError, match="enough"):
            kinds.KINDS["expert"].run(run, where)
    assert given[0] == given[1]
    assert given[0].dimensions == 2
