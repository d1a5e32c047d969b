"""Run our modules with the recorded weights and inputs of a golden file and print the largest absolute errors.

    python tests/golden/check.py FILE.npz [FILE …]

The kind of a file is recognised by its keys: decoder, pigma, pixel decoder, language, loss or BiomedParse v2; a
``.json`` file ``{state-dict key: shape}`` of a complete published model is checked for a place of every key in our
preset. Sizes, heads, layers and batch come from the file. Exit code 1 if any error exceeds 1e-4, 2 if a file cannot be
checked.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from boltzformer_monai.errors import BoltzFormerError
from tests.golden import biomedparse_network, biomedparse_volume, modules, whole_model
from tests.golden.decoder import check_decoder

LIMIT = 1e-4
Check = Callable[[Mapping[str, np.ndarray]], Iterator[tuple[str, float]]]


def check_biomedparse(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """Rows of what the file holds: a volume and its label maps, a network."""
    if "in/volume" in arrays:
        yield from biomedparse_volume.check_cases(arrays)
    if "cfg" in arrays:
        yield from biomedparse_network.check_network(arrays)


# A key that only files of this kind have → the check.
KINDS: dict[str, tuple[str, Check]] = {
    "in/x0": ("decoder", check_decoder),
    "in/pred_gmasks": ("pigma", modules.check_pigma),
    "in/res5": ("pixel decoder", modules.check_pixel_decoder),
    "in/input_ids": ("language", modules.check_language),
    "loss_same": ("loss", modules.check_loss),
    "axis/shapes": ("BiomedParse v2, volume", biomedparse_volume.check_volume),
    "in/square": ("BiomedParse v2, volume and network", check_biomedparse),
}


def check_file(path: Path) -> tuple[str, list[tuple[str, float]]]:
    """Kind of the file and its rows (quantity, largest absolute error)."""
    if path.suffix == ".json":
        return "keys of a published model", list(whole_model.check_keys(path))
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for key, (kind, check) in KINDS.items():
        if key in arrays:
            return kind, list(check(arrays))
    msg = f"no known kind: none of {', '.join(KINDS)} among its {len(arrays)} arrays"
    raise ValueError(msg)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    code = 0
    for path in parser.parse_args(argv).files:
        try:
            kind, rows = check_file(path)
        except (OSError, ValueError, LookupError, RuntimeError, zipfile.BadZipFile, BoltzFormerError) as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            code = 2
            continue
        # NaN fails too: a comparison with it is never true.
        failed = [name for name, error in rows if not error <= LIMIT] or ([] if rows else ["nothing was checked"])
        print(f"{path.name}: {kind}, {len(rows)} quantities")
        for name, error in rows:
            print(f"  {name:<34} {error:.3e}{'   FAILED' if name in failed else ''}")
        worst = max((error for _, error in rows), default=float("nan"))
        print(f"  {'FAILED' if failed else 'passed'}: largest absolute error {worst:.3e}, limit {LIMIT:g}")
        code = max(code, int(bool(failed)))
    return code


if __name__ == "__main__":
    sys.exit(main())
