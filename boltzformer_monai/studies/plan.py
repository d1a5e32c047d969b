"""A study as a file: data sets, arms, experiments and comparisons, checked; and the runs that it asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from boltzformer_monai import __version__
from boltzformer_monai.data.split import MOST_FOLDS
from boltzformer_monai.errors import ConfigError, did_you_mean, why
from boltzformer_monai.limits import LARGEST_SEED, read_json, unique_keys
from boltzformer_monai.studies.paper import paper_rows

__all__ = ["BOLTZFORMER", "Arm", "Comparison", "DataSet", "Experiment", "Run", "Study", "merged", "read_study"]

BOLTZFORMER = "boltzformer"
"""The kind of run that trains by the bundle."""
_MAPPINGS = ("network_overrides", "settings_overrides", "init_from")
"""Settings that are mappings themselves: an arm adds to those of its base."""
_MOST_SEEDS = 1000
_NAME = r"^[A-Za-z0-9][A-Za-z0-9 _.+-]*$"

Settings = dict[str, Any]
Name = Annotated[str, Field(pattern=_NAME, max_length=60)]


def _seeds(value: object) -> object:
    """A number of seeds counts them from 0."""
    if isinstance(value, bool) or not isinstance(value, int | list):
        raise ValueError(f"give a list, or how many there are, got {value!r}")
    if isinstance(value, int) and not 0 < value <= _MOST_SEEDS:
        raise ValueError(f"give a list, or how many there are, from 1 to {_MOST_SEEDS}, got {value}")
    return list(range(value)) if isinstance(value, int) else value


Seeds = Annotated[list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]], BeforeValidator(_seeds), Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataSet(_Part):
    """Data of a study.

    Attributes:
        title: for the page.
        folder: of a slice dataset; relative to the study's file.
        maker: what makes it instead; see :mod:`~boltzformer_monai.studies.kinds`.
        settings: of the maker.
        training: keys of ``train.json`` for every training on it, e.g. its epochs.
        split: that is evaluated; by default ``"test"``, or ``"val"`` where there is no test slice.
        figures: False: its licence allows no images in the page.
        licence: for the page.
    """

    title: str = ""
    folder: str | None = None
    maker: str | None = None
    settings: Settings = {}
    training: Settings = {}
    split: Literal["train", "val", "test"] | None = None
    figures: bool = True
    licence: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> DataSet:
        if (self.folder is None) == (self.maker is None):
            raise ValueError("give either a folder or a maker")
        if self.settings and self.maker is None:
            raise ValueError("settings are a maker's, and a folder has none; leave them out")
        return self


class Arm(_Part):
    """One of the systems that are compared.

    Attributes:
        title: for the page.
        kind: what runs it; by default the experiment's.
        network: network settings that differ from the base's.
        training: keys of ``train.json`` that differ.
        settings: of another kind than ``boltzformer``.
        paper: number of a table of the paper → row of it that this arm corresponds to.
    """

    title: str = ""
    kind: str | None = None
    network: Settings = {}
    training: Settings = {}
    settings: Settings = {}
    paper: dict[str, str] = {}


class Experiment(_Part):
    """Arms on data sets, each with all seeds and folds.

    Attributes:
        title: for the page.
        kind: what runs it, see :mod:`~boltzformer_monai.studies.kinds`.
        data: names of data sets.
        arms: names of arms; the first is the reference of figures.
        seeds: a list, or how many, counted from 0.
        folds: cross-validation by so many folds; every patient is scored by the model that did not see it.
        network: network settings of all arms.
        training: keys of ``train.json`` for all arms.
        settings: of another kind than ``boltzformer``.
        evaluation: keys of ``evaluate.json``.
    """

    title: str = ""
    kind: str = BOLTZFORMER
    data: list[Name] = Field(min_length=1)
    arms: list[Name] = Field(min_length=1)
    seeds: Seeds
    folds: Annotated[int, Field(ge=2, le=MOST_FOLDS)] | None = None
    network: Settings = {}
    training: Settings = {}
    settings: Settings = {}
    evaluation: Settings = {}

    @property
    def count(self) -> int:
        """Number of its runs."""
        return len(self.arms) * len(self.data) * len(self.seeds) * (self.folds or 1)


class Comparison(_Part):
    """An arm against another, paired by seed. All of a study are one family for Holm's correction.

    Attributes:
        arm: expected to be better.
        against: the other.
        claim: what the difference would show, e.g. "Boltzmann sampling helps".
        of_paper: whether the paper claims it, so that it belongs to the verdict.
    """

    arm: Name
    against: Name
    claim: str = ""
    of_paper: bool = True


class Study(_Part):
    """A study.

    Attributes:
        name: short, for files.
        title: of the page.
        question: one or two sentences.
        threads: of PyTorch in every run, so that numbers do not depend on how many run at a time.
        network: network settings of all trainings.
        training: keys of ``train.json`` for all trainings.
        evaluation: keys of ``evaluate.json`` for all evaluations.
        data: name → data set.
        arms: name → arm.
        experiments: name → experiment.
        comparisons: the family of paired tests.
    """

    name: Name
    title: str
    question: str = ""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    network: Settings = {}
    training: Settings = {}
    evaluation: Settings = {}
    data: dict[Name, DataSet] = Field(min_length=1)
    arms: dict[Name, Arm] = Field(min_length=1)
    experiments: dict[Name, Experiment] = Field(min_length=1)
    comparisons: list[Comparison] = []

    @model_validator(mode="after")
    def _names_are_known(self) -> Study:
        for name, experiment in self.experiments.items():
            _known(experiment.data, self.data, "data set", f"experiments.{name}")
            _known(experiment.arms, self.arms, "arm", f"experiments.{name}")
            for what, given in (("data set", experiment.data), ("arm", experiment.arms)):
                if len(set(given)) < len(given):
                    raise ValueError(f"experiments.{name} names one {what} twice")
            if len(set(experiment.seeds)) < len(experiment.seeds):
                raise ValueError(f"experiments.{name} names one seed twice")
            for data in experiment.data if experiment.folds else ():
                if self.data[data].split:
                    raise ValueError(
                        f"experiments.{name}: folds are evaluated each on its own; data.{data} names a split"
                    )
        titled: dict[str, str] = {}
        for name, arm in self.arms.items():
            if (other := titled.setdefault(arm.title or name, name)) != name:
                raise ValueError(f"arms.{other} and arms.{name} have the same title {arm.title or name!r}")
        compared: set[frozenset[str]] = set()
        for comparison in self.comparisons:
            _known([comparison.arm, comparison.against], self.arms, "arm", "comparisons")
            if comparison.arm == comparison.against:
                raise ValueError(f"the arm {comparison.arm!r} is compared with itself")
            pair = frozenset((comparison.arm, comparison.against))
            if not any(pair <= {*experiment.arms} for experiment in self.experiments.values()):
                raise ValueError(f"comparisons: no experiment has both {comparison.arm!r} and {comparison.against!r}")
            if pair in compared:
                raise ValueError(f"comparisons: {comparison.arm!r} and {comparison.against!r} are compared twice")
            compared.add(pair)
        for arm_name, arm in self.arms.items():
            for table, row in arm.paper.items():
                _known([row], paper_rows(table), f"row of Table {table}", f"arms.{arm_name}.paper")
        return self


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training and its evaluation.

    Attributes:
        kind: what runs it.
        data: name of the data set.
        arm: name of the arm.
        seed: of everything random.
        fold: that validates, from 0; None without folds.
        settings: plain values; all that decides the numbers.
        fingerprint: of the data.
    """

    kind: str
    data: str
    arm: str
    seed: int
    fold: int | None
    settings: Mapping[str, Any]
    fingerprint: str

    @property
    def key(self) -> str:
        """Hash of all that decides its numbers; runs with one key are one run."""
        content = {
            "kind": self.kind,
            "settings": self.settings,
            "seed": self.seed,
            "fold": self.fold,
            "data": self.fingerprint,
            "version": __version__,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.arm} on {self.data}, seed {self.seed}{fold}"


def read_study(path: Path) -> Study:
    """Read a study from a JSON file; folders in it are relative to it.

    Raises:
        ConfigError: it cannot be read, a field is unknown or of another type, or a name is unknown.
    """
    try:
        content = read_json(path, object_pairs_hook=unique_keys)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: is no study ({why(error)}); docs/how-to/studies.md has the form") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is no study (it must be a JSON object); docs/how-to/studies.md has the form")
    for name, entry in content["data"].items() if isinstance(content.get("data"), dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("folder"), str):
            try:
                entry["folder"] = str((path.parent / Path(entry["folder"]).expanduser()).resolve())
            except (OSError, RuntimeError, ValueError) as error:
                raise ConfigError(f"{path}: data.{name}.folder: is no path ({why(error)})") from None
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_line(error)}") from None
    except ConfigError as error:  # pydantic lets others than its own pass
        raise ConfigError(f"{path}: {error}") from None


def runs_of(study: Study, experiment: str, fingerprints: Mapping[str, str]) -> Iterator[Run]:
    """The runs of an experiment: seed after seed, so that a study that is stopped has whole pairs.

    Args:
        study: with the experiment.
        experiment: its name.
        fingerprints: name of a data set → hash of its content.
    """
    plan = study.experiments[experiment]
    folds = [None] if plan.folds is None else range(plan.folds)
    for seed in plan.seeds:
        for data in plan.data:
            for fold in folds:
                for arm in plan.arms:
                    yield Run(
                        kind=study.arms[arm].kind or plan.kind,
                        data=data,
                        arm=arm,
                        seed=seed,
                        fold=fold,
                        settings=settings_of(study, experiment, data, arm),
                        fingerprint=fingerprints[data],
                    )


def settings_of(study: Study, experiment: str, data: str, arm: str) -> dict[str, Any]:
    """What decides the numbers of a run but seed, fold and data; later ones go before earlier ones: study, data set,
    experiment, arm."""
    plan, source, own = study.experiments[experiment], study.data[data], study.arms[arm]
    kind = own.kind or plan.kind
    if source.maker == kind:  # it makes its own data
        training = merged(plan.training, own.training)
        training = {**training.pop("settings_overrides", {}), **training}
        settings = merged(source.settings, plan.settings, own.settings)
        return {**settings, "network": merged(plan.network, own.network), "training": training}
    scored = {"split": source.split, "folds": plan.folds}
    if kind != BOLTZFORMER:
        return {"settings": merged(plan.settings, own.settings), **scored}
    base = merged(
        study.training, {"network_overrides": study.network}, source.training, plan.training,
        {"network_overrides": plan.network},
    )  # fmt: skip
    return {
        "training": merged(base, own.training, {"network_overrides": own.network}),
        "base_network": base.get("network_overrides", {}),
        "evaluation": merged(study.evaluation, plan.evaluation),
        **scored,
    }


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of which later ones replace earlier ones; mappings such as ``network_overrides`` are merged alike.

    What ``settings_overrides`` set replaces an earlier key of ``train.json`` with that name, which would win otherwise.
    """
    found: dict[str, Any] = {}
    for part in parts:
        overrides = part.get("settings_overrides")
        for name in overrides if isinstance(overrides, Mapping) else ():
            found.pop(name, None)
        for name, value in part.items():
            before = found.get(name)
            both = name in _MAPPINGS and isinstance(before, Mapping) and isinstance(value, Mapping)
            found[name] = {**before, **value} if both else value  # type: ignore[dict-item]
    return {name: value for name, value in found.items() if name not in _MAPPINGS or value}


def _known(names: list[str], known: Mapping[str, Any], what: str, where: str) -> None:
    """Raise a ``ValueError``, as pydantic wants it, for the first name that is not known."""
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: unknown {what} {name!r}; {did_you_mean(name, known)}")


def _line(error: ValidationError) -> str:
    """The first mistake in one line; the nearest known name of a field that is unknown."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "extra_forbidden":
        *parents, name = first["loc"]
        known = _fields_at(parents)
        return f"unknown field {place}; {did_you_mean(str(name), known)}"
    said = first["msg"].removeprefix("Value error, ")
    return f"{place}: {said}" if place else said


def _fields_at(place: list[int | str]) -> list[str]:
    """The fields of a study's part."""
    parts: dict[str, type[_Part]] = {"data": DataSet, "arms": Arm, "experiments": Experiment, "comparisons": Comparison}
    return list(parts[str(place[0])].model_fields if place else Study.model_fields)
