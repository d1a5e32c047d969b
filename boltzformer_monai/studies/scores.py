"""One row for every scored instance of a study, and means of rows: overall, by size, by target."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from boltzformer_monai.csv_cells import from_cell, to_cell
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.errors import DatasetError, why
from boltzformer_monai.evaluation.bootstrap import Bootstrap, Estimate
from boltzformer_monai.evaluation.strata import AREA_STRATA
from boltzformer_monai.evaluation.tables import read_scores_csv
from boltzformer_monai.limits import open_text
from boltzformer_monai.storage import replacing

__all__ = [
    "GROUPS", "SMALL", "STRATA", "Mean", "ScoreRow", "common_rows", "in_group", "mean_dice", "missed_share",
    "patient_interval", "read_rows", "rows_of_evaluation", "write_rows",
]  # fmt: skip

SMALL = "below 0.1 %"
"""The small objects of the headline and its tests. Those of the gate are below 1 %, or there would be too few."""
GROUPS: Mapping[str, tuple[float, float]] = {
    "all": (0.0, math.inf),
    SMALL: (0.0, 1e-3),
    **{stratum.title.replace(" of the image", ""): (stratum.low, stratum.high) for stratum in AREA_STRATA},
}
"""Groups of present instances by their share of the image, least and limit."""
STRATA = tuple(GROUPS)[3:]
"""Those that part the instances: the first three are sums."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """The score of a target in an image.

    Attributes:
        arm: of the study.
        seed: of the training.
        fold: that its patient validates; None without folds.
        data: name of the data set.
        patient: pseudonym; ``""`` where there are none, and every image is a case of its own. Slicing images without
            patients gives each one a pseudonym of its own.
        image: name.
        target: canonical name.
        area_share: the target's share of the image, 0 to 1; 0: absent.
        diameter_mm: of the circle of the target's area; None without millimetres.
        dice: 0 to 1; None where the target is absent.
        missed: whether no pixel of the target was found; None where it is absent.
        confidence: highest mean probability of a component of the mask, 0 to 1; None without one, or unknown.
    """

    arm: str
    seed: int
    fold: int | None
    data: str
    patient: str
    image: str
    target: str
    area_share: float
    diameter_mm: float | None
    dice: float | None
    missed: bool | None
    confidence: float | None

    @property
    def unit(self) -> str:
        """What is resampled: the patient, or the image where there is none."""
        return self.patient or self.image


_COLUMNS = tuple(field.name for field in dataclasses.fields(ScoreRow))


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean and what it is of.

    Attributes:
        value: None without instances.
        instances: number of targets in images.
        patients: number of patients, or of images without.
    """

    value: float | None
    instances: int
    patients: int


def rows_of_evaluation(
    scores: Path, reader: SliceReader, *, arm: str, seed: int, fold: int | None, data: str
) -> list[ScoreRow]:
    """Rows of a table that an evaluation wrote.

    Args:
        scores: its ``scores.csv``.
        reader: of the dataset that was evaluated.
        arm: see :class:`ScoreRow`.
        seed: of the training.
        fold: that was evaluated.
        data: name of the data set.

    Raises:
        DatasetError: the table is damaged, or of another dataset.
    """
    places = {row.image.relative_to(reader.root).as_posix(): row for row in reader.rows}
    rows = []
    for score in read_scores_csv(scores):
        if (place := places.get(score.image)) is None:
            raise DatasetError(f"{scores}: {score.image} is not in {reader.root}; evaluate again")
        area_mm2 = score.truth * place.spacing[0] * place.spacing[1]
        measured = score.present and place.in_mm
        rows.append(
            ScoreRow(
                arm=arm,
                seed=seed,
                fold=fold,
                data=data,
                patient=score.patient,
                image=score.image,
                target=score.target,
                area_share=score.area_fraction if score.present else 0.0,
                diameter_mm=2 * math.sqrt(area_mm2 / math.pi) if measured else None,
                dice=2 * score.intersection / (score.truth + score.predicted) if score.present else None,
                missed=score.intersection == 0 if score.present else None,
                confidence=score.confidence,
            )
        )
    return rows


def write_rows(rows: Iterable[ScoreRow], path: Path) -> None:
    """Write rows as CSV atomically; a cell is empty without a value."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_COLUMNS)
        for row in rows:
            cells = (getattr(row, name) for name in _COLUMNS)
            table.writerow("" if cell is None else int(cell) if cell is True or cell is False else to_cell(cell)
                           for cell in cells)  # fmt: skip


def read_rows(path: Path) -> list[ScoreRow]:
    """Read a table of :func:`write_rows`.

    Raises:
        DatasetError: it is missing or damaged.
    """
    try:
        with open_text(path) as file:
            return [_row(fields) for fields in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{path}: cannot be read as scores of a study ({why(error)})") from None


def _row(fields: Mapping[str, str]) -> ScoreRow:
    if None in fields.values():
        raise ValueError("a row has too few fields; the file is cut off")

    def number(name: str) -> float | None:
        return float(fields[name]) if fields[name] else None

    missed = number("missed")
    return ScoreRow(
        arm=from_cell(fields["arm"]),
        seed=int(fields["seed"]),
        fold=int(fields["fold"]) if fields["fold"] else None,
        data=from_cell(fields["data"]),
        patient=from_cell(fields["patient"]),
        image=from_cell(fields["image"]),
        target=from_cell(fields["target"]),
        area_share=float(fields["area_share"]),
        diameter_mm=number("diameter_mm"),
        dice=number("dice"),
        missed=None if missed is None else bool(missed),
        confidence=number("confidence"),
    )


def in_group(rows: Iterable[ScoreRow], group: str) -> list[ScoreRow]:
    """The present instances of a group of :data:`GROUPS`."""
    least, limit = GROUPS[group]
    return [row for row in rows if row.dice is not None and least <= row.area_share < limit]


def mean_dice(rows: Iterable[ScoreRow], group: str = "all") -> Mean:
    """Mean Dice of a group: of ``"all"`` the mean over targets, as in the evaluation; of the others over instances."""
    chosen = in_group(rows, group)
    by_target: dict[str, list[float]] = defaultdict(list)
    for row in chosen:
        by_target[row.target if group == "all" else ""].append(float(row.dice or 0.0))
    value = fmean(map(fmean, by_target.values())) if by_target else None
    return Mean(value, len(chosen), len({row.unit for row in chosen}))


def missed_share(rows: Iterable[ScoreRow], group: str = "all") -> Mean:
    """Share of a group's instances of which no pixel was found."""
    chosen = in_group(rows, group)
    value = fmean(bool(row.missed) for row in chosen) if chosen else None
    return Mean(value, len(chosen), len({row.unit for row in chosen}))


def common_rows(ours: Iterable[ScoreRow], theirs: Iterable[ScoreRow]) -> tuple[list[ScoreRow], list[ScoreRow]]:
    """The rows of both arms in one order, without those of targets in images that only one of them scored."""
    one, other = ({_place(row): row for row in sorted(rows, key=_place)} for rows in (ours, theirs))
    return [row for place, row in one.items() if place in other], [row for place, row in other.items() if place in one]


def _place(row: ScoreRow) -> tuple[Any, ...]:
    return row.data, row.seed, row.image, row.target


def patient_interval(
    ours: Sequence[ScoreRow], theirs: Sequence[ScoreRow], group: str = "all", *, bootstrap: Bootstrap | None = None
) -> Estimate:
    """Mean difference of two arms with a bootstrap interval over patients, within seeds.

    The difference is that of the test: the mean over data sets of the difference in :func:`mean_dice`. Every resample
    takes the same patients for all seeds and both arms, of each data set as many as it has, so the interval says how
    much the difference hangs on these patients; what hangs on the seeds is in
    :func:`~boltzformer_monai.studies.statistics.paired_difference`. A data set with one patient adds nothing to it.

    Args:
        ours: rows of an arm, of all seeds.
        theirs: of the other; instances that only one of them has are left out.
        group: of :data:`GROUPS`.
        bootstrap: by default 95 % from 1000 resamples.
    """
    pairs = [*zip(*(in_group(rows, group) for rows in common_rows(ours, theirs)), strict=True)]
    units = sorted({(row.data, row.unit) for row, _ in pairs})
    columns = sorted({_column(row, group) for row, _ in pairs})
    if not pairs:
        return Estimate(None, None, None, 0, 0, 0.0)
    values, weights = np.zeros((2, len(units), len(columns)))
    of_unit, of_column = ({each: index for index, each in enumerate(every)} for every in (units, columns))
    for row, other in pairs:
        place = of_unit[row.data, row.unit], of_column[_column(row, group)]
        values[place] += float(row.dice or 0.0) - float(other.dice or 0.0)
        weights[place] += 1
    names = np.array([data for data, _ in columns])

    def statistic(counts: np.ndarray) -> np.ndarray:
        total = counts @ weights
        means = np.divide(counts @ values, total, out=np.full(total.shape, np.nan), where=total > 0)
        of_data = [np.nanmean(means[:, names == data], axis=1) for data in np.unique(names)]
        return np.mean(of_data, axis=0)[:, None]

    mean = float(statistic(np.ones((1, len(units))))[0, 0])
    sizes = [*Counter(data for data, _ in units).values()]  # in the order of the units
    ((low, high),) = (bootstrap or Bootstrap()).interval(statistic, sizes)
    return Estimate(mean, low, high, len(pairs), len(units), float(len(pairs)))


def _column(row: ScoreRow, group: str) -> tuple[str, str]:
    """What has a mean of its own: a target in a data set; in a group of sizes the data set."""
    return row.data, row.target if group == "all" else ""
