from __future__ import annotations

from pathlib import Path

import pytest

from boltzformer_monai import bundle_files
from boltzformer_monai.bundle_files import bundle_root
from boltzformer_monai.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def test_in_a_checkout_it_is_the_repository_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert bundle_root() == ROOT / "bundles" / "boltzformer"


def test_the_packaged_copy_comes_first_and_a_given_one_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packaged, checkout = (tmp_path / name / "bundles" / "boltzformer" for name in ("site", "checkout"))
    monkeypatch.setattr(bundle_files, "_PLACES", (tmp_path / "site", tmp_path / "checkout"))
    with pytest.raises(ConfigError, match="install boltzformer-monai again, or give --bundle-root"):
        bundle_root()
    for place in (checkout, packaged):
        (place / "configs").mkdir(parents=True)
        (place / "configs" / "train.json").write_text("{}")
        assert bundle_root() == place
    assert bundle_root(checkout) == checkout
    with pytest.raises(ConfigError, match=f"no bundle at {tmp_path}"):
        bundle_root(tmp_path)
