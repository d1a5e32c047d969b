"""Export a slice dataset in the layout of BiomedParse, or of nnU-Net.

    boltzformer export-dataset --input SLICES --output DIR [--size 1024] [--split-as val=test]
    boltzformer export-dataset --input SLICES --output nnUNet_raw --to nnunet [--recipe msd --scans TASK] [--per-target]

For BiomedParse DIR gets ``train``, ``train_mask``, ``test``, ``test_mask`` with RGB images NAME_MODALITY_SITE.png and
masks NAME_MODALITY_SITE_TARGET.png (0 and 255), each slice centred in a black square, and ``train.json`` and
``test.json`` with images, masks and prompts. Slices without a target, and absent targets, are left out.

For nnU-Net v2 DIR gets Dataset001_NAME with dataset.json, splits_final.json (the same split) and volumes: those of
--recipe and --scans, or without them the dataset's 8-bit slices. Targets that overlap need --per-target.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from boltzformer_monai.cli.command_line import CommandParser, run_command, whole_number
from boltzformer_monai.cli.originals import add_original_options, find_scans
from boltzformer_monai.data.slices.format import SPLITS
from boltzformer_monai.data.split import MOST_FOLDS
from boltzformer_monai.errors import ConfigError, DatasetError, StorageError, why
from boltzformer_monai.limits import read_json
from boltzformer_monai.modality import OTHER
from boltzformer_monai.slicing.biomedparse_names import (
    MARKER_FILE,
    MARKER_FORMAT,
    PictureName,
    mask_name,
    safe_name,
)

if TYPE_CHECKING:
    from boltzformer_monai.data.slices.reader import SliceRow

# torch is imported late: it takes seconds, and Ctrl-C must end quietly meanwhile.

__all__ = ["add_parser", "export", "main", "run"]

logger = logging.getLogger(__name__)

_PARTS = ("train", "test")
_SPLIT_AS = {"train": "train", "val": "train", "test": "test"}


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    _set_up(commands.add_parser("export-dataset", help="export a slice dataset for BiomedParse or nnU-Net",
                                description=__doc__))  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a script; return the exit code."""
    return run_command(_set_up(CommandParser(description=__doc__)), argv)


def _set_up(parser: CommandParser) -> CommandParser:
    add = parser.add_argument
    add("--input", type=Path, required=True, metavar="SLICES", help="folder of the slice dataset")
    add("--output", type=Path, required=True, metavar="DIR", help="new folder; an older export is replaced")
    add("--to", choices=("biomedparse", "nnunet"), default="biomedparse", help="whose layout (biomedparse)")
    add = parser.add_argument_group("BiomedParse").add_argument
    add("--size", type=whole_number(1, 2**14), default=1024, metavar="N", help="edge of the images in pixels (1024)")
    add(
        "--split-as",
        nargs="+",
        default=[],
        metavar="SPLIT=PART",
        help="where train, val and test go: train, test or none (val=train)",
    )
    add = parser.add_argument_group("nnU-Net").add_argument
    add("--target", dest="targets", action="append", default=[], metavar="NAME", help="to write; may be repeated (all)")
    add("--per-target", action="store_true", help="one dataset per target, with the scans that annotate it")
    add("--number", type=whole_number(1, 999), default=1, metavar="N", help="of the (first) dataset (1)")
    add("--folds", type=whole_number(2, MOST_FOLDS), metavar="N", help="in splits_final.json (the dataset's own split)")
    add_original_options(parser)
    parser.set_defaults(run=run, kept="the output is as it was before")
    return parser


def run(options: argparse.Namespace) -> int:
    """Export, and print what was written."""
    if options.to == "nnunet":
        return _run_nnunet(options)
    if options.recipe or options.targets or options.per_target or options.folds:
        raise ConfigError("--recipe, --target, --per-target and --folds are for --to nnunet")
    pairs = [text.partition("=") for text in options.split_as]
    if not all(split in SPLITS and part in (*_PARTS, "none") for split, _, part in pairs):
        raise ConfigError(f"--split-as takes pairs such as val=test or val=none, not {' '.join(options.split_as)}")
    images, masks = export(
        options.input,
        options.output,
        size=options.size,
        split_as={split: part for split, _, part in pairs},
        progress=True,
    )
    print(f"{images} images, {masks} masks -> {options.output}")
    return 0


def _run_nnunet(options: argparse.Namespace) -> int:
    """Export for nnU-Net, and print the folders."""
    if options.split_as:
        raise ConfigError("--split-as is for BiomedParse; nnU-Net gets the dataset's own split")
    _check_apart(options.output, options.input)
    from boltzformer_monai.data.slices.reader import SliceReader
    from boltzformer_monai.experts.nnunet import export_nnunet

    reader = SliceReader(options.input)
    folders = export_nnunet(
        reader, options.output, originals=find_scans(options, reader), targets=options.targets,
        per_target=options.per_target, number=options.number, folds=options.folds, progress=True,
    )  # fmt: skip
    print("\n".join(map(str, folders)))
    return 0


def export(
    slices: Path, output: Path, *, size: int = 1024, split_as: Mapping[str, str] | None = None, progress: bool = False
) -> tuple[int, int]:
    """Export a slice dataset atomically.

    Args:
        slices: folder of the slice dataset.
        output: new folder; an older export is replaced, other content is an error.
        size: edge of the images in pixels.
        split_as: split → ``"train"``, ``"test"`` or ``"none"``; by default val → train.
        progress: show a progress bar on stderr.

    Returns:
        Number of images and of masks.

    Raises:
        DatasetError: the dataset cannot be read or has no target, or the output is no export.
        StorageError: the output cannot be written.
        ConfigError: a setting is out of range.
    """
    from boltzformer_monai.data.slices.reader import SliceReader

    parts = {**_SPLIT_AS, **(split_as or {})}
    if size < 1 or set(parts) != set(SPLITS) or not set(parts.values()) <= {*_PARTS, "none"}:
        raise ConfigError(f"the size must be at least 1 and a split train, test or none; got {size} and {parts}")
    _check_output(output, slices)
    reader = SliceReader(slices)
    rows = [row for row in reader.rows if row.target and row.present and parts[row.split] != "none"]
    if not rows:
        raise DatasetError(f"{slices}: no slice of these splits has a target; there is nothing to export")
    if any(row.modality == OTHER for row in rows):
        msg = f"{slices}: holds images that are neither CT nor MR, which the names of this layout cannot say"
        raise DatasetError(f"{msg}; export a dataset without them")
    rows.sort(key=lambda row: (_PARTS.index(parts[row.split]), row.image.name))  # stable: targets keep their order
    tables = {part: _Table(part, size, rows) for part in _PARTS}
    patients = {}
    with _replacing(output) as folder:
        for part in _PARTS:
            for name in (part, f"{part}_mask"):
                (folder / name).mkdir(parents=True)
        lost: Counter[str] = Counter()
        groups = [list(group) for _, group in groupby(rows, key=lambda row: row.image)]
        for group in tqdm(groups, desc="exporting", unit="slice", dynamic_ncols=True, disable=not progress):
            row = group[0]
            volume = safe_name(f"{row.scan}_{row.plane}")
            patients[volume] = row.patient
            stem = PictureName(f"{volume}_{row.slice_index:04d}", row.modality, row.site).stem
            masks = _write_slice(folder, parts[row.split], stem, group, size)
            lost.update(row.target for row in group if row not in masks)
            tables[parts[row.split]].add(stem, masks)
        for target, count in lost.items():
            logger.warning("%s is too small to be seen at %d pixels on %d slices; left out there", target, size, count)
        for part, table in tables.items():
            _write_json(folder / f"{part}.json", table.content)
        marker = {"format": MARKER_FORMAT, "version": 1, "name": reader.name, "patients": patients}
        _write_json(folder / MARKER_FILE, marker)
    counts = [(len(table.content["images"]), len(table.content["annotations"])) for table in tables.values()]
    return sum(images for images, _ in counts), sum(masks for _, masks in counts)


class _Table:
    """The COCO-like JSON of one folder, with the fields of the published files."""

    def __init__(self, part: str, size: int, rows: Sequence[SliceRow]) -> None:
        self.part, self.size = part, size
        self.categories = {target: number for number, target in enumerate(sorted({row.target for row in rows}), 1)}
        self.content: dict[str, Any] = {
            "info": {},
            "licenses": [],
            "images": [],
            "categories": [
                {"supercategory": target, "id": number, "name": target} for target, number in self.categories.items()
            ],
            "annotations": [],
        }
        self._sentences = 0

    def add(self, stem: str, rows: Sequence[SliceRow]) -> None:
        if not rows:
            return
        images, annotations = self.content["images"], self.content["annotations"]
        image = {"file_name": f"{stem}.png", "height": self.size, "width": self.size, "id": len(images)}
        images.append(image)
        for row in rows:
            sentences = [
                {"raw": prompt, "sent": prompt, "sent_id": number}
                for number, prompt in enumerate(row.prompts, self._sentences)
            ]
            self._sentences += len(sentences)
            annotations.append(
                {
                    "mask_file": mask_name(stem, row.target),
                    "iscrowd": 0,
                    "image_id": image["id"],
                    "category_id": self.categories[row.target],
                    "id": len(annotations),
                    "file_name": image["file_name"],
                    "split": self.part,
                    "sentences": sentences,
                    "sent_ids": [sentence["sent_id"] for sentence in sentences],
                    "ann_id": len(annotations),
                    "ref_id": len(annotations),
                }
            )


def _write_slice(folder: Path, part: str, stem: str, rows: Sequence[SliceRow], size: int) -> list[SliceRow]:
    """Write a slice and its masks; return the rows whose target is not lost at this size."""
    import numpy as np
    import torch
    from PIL import Image

    from boltzformer_monai.data.slices.reader import read_png
    from boltzformer_monai.transforms.square import SquareFit

    first = rows[0]
    grey = read_png(first.image)
    fit = SquareFit((grey.shape[0], grey.shape[1]), first.spacing[:2], size)
    labels = np.zeros_like(grey) if first.label is None else read_png(first.label)
    # Nearest neighbour keeps label values, so one pass serves all targets.
    square = fit.label(torch.from_numpy(labels.astype(np.float32))[None, None])[0, 0].numpy()
    kept = []
    for row in rows:
        mask = np.isin(square, row.label_values)
        if not mask.any():
            continue
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{part}_mask" / mask_name(stem, row.target))
        kept.append(row)
    if kept:
        smooth = fit.image(torch.from_numpy(grey.astype(np.float32))[None, None])[0, 0]
        pixels = smooth.round().clamp(0, 255).to(torch.uint8).numpy()
        Image.fromarray(pixels).convert("RGB").save(folder / part / f"{stem}.png")
    return kept


def _check_apart(output: Path, slices: Path) -> None:
    target, source = output.resolve(), slices.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise DatasetError(f"{output}: lies in the slice dataset, or contains it; choose another output folder")


def _check_output(output: Path, slices: Path) -> None:
    _check_apart(output, slices)
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not _is_export(output):
        msg = f"{output}: exists and is not an export of this command; choose another output folder or empty it"
        raise DatasetError(msg)


def _is_export(folder: Path) -> bool:
    try:
        content = read_json(folder / MARKER_FILE)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == MARKER_FORMAT


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``output`` if the block succeeds, and is removed otherwise."""
    target = output.resolve()
    fresh, old = (target.with_name(f".{target.name}.{what}") for what in ("exporting", "replaced"))

    def tidy() -> None:
        if old.exists() and not target.exists():  # stopped between the two renames
            os.replace(old, target)
        for remnant in (fresh, old):
            shutil.rmtree(remnant, ignore_errors=True)

    try:
        tidy()  # after an export that was killed
        fresh.mkdir(parents=True)
        yield fresh
        if target.exists():
            os.replace(target, old)
        os.replace(fresh, target)
    except OSError as error:
        raise StorageError(f"{output}: cannot be written ({why(error)})") from None
    finally:
        tidy()


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
