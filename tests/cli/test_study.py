"""``boltzformer study``: trainings of seconds, stopped and killed on the way, and the page that they end in."""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from scipy import stats

from boltzformer_monai.bundle_files import bundle_root
from boltzformer_monai.cli import main
from boltzformer_monai.engines.sampler import EpochSampler
from boltzformer_monai.errors import ConfigError, StorageError
from boltzformer_monai.studies import kinds, runner
from boltzformer_monai.studies.plan import read_study, runs_of
from boltzformer_monai.studies.scores import ScoreRow
from boltzformer_monai.studies.statistics import smallest_difference
from tests.engines.cases import write_dataset
from tests.studies.cases import write

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("bundle_in_process")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_dataset(folder / "slices")
    return folder


def _study(place: Path, output: Path, *more: str, **changes: Any) -> int:
    return main(["study", str(write(place, **changes)), "--output", str(output), "--device", "cpu", *more])


def _rows(output: Path) -> list[dict[str, str]]:
    with (output / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_study_that_is_stopped_and_killed_ends_as_one_that_is_not(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No time: nothing is begun, and the page says so.
    assert _study(place, tmp_path / "pieces", "--minutes", "0") == 75
    page = (tmp_path / "pieces" / "study.html").read_text()
    assert "Preliminary, 0 of 4 runs: there is nothing to compare yet." in page
    assert not list((tmp_path / "pieces").glob("runs/*/result.json"))

    # The deadline comes in the first training's third step, and in the first of the others: their states are saved.
    seed_step, rung = EpochSampler.seed_step, []

    def late(self: EpochSampler, step: int) -> None:
        seed_step(self, step)
        if step == (1 if rung else 3):
            rung.append(step)
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(EpochSampler, "seed_step", late)
    monkeypatch.setattr(runner, "_stopping", _deadline_passed)
    assert _study(place, tmp_path / "pieces") == 75
    monkeypatch.undo()
    assert rung == [3, 1, 1, 1]
    (state,) = (tmp_path / "pieces").glob("runs/*/training/states/state_00000003.pt")
    capsys.readouterr()

    # Killed after the second training: it is not trained again.
    evaluate, calls = kinds.rows_of_evaluation, []

    def kill(*arguments: Any, **settings: Any) -> Any:
        calls.append(settings)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments, **settings)

    monkeypatch.setattr(kinds, "rows_of_evaluation", kill)
    assert _study(place, tmp_path / "pieces") == 130
    monkeypatch.undo()
    assert "going on after step 3" in capsys.readouterr().err
    assert not state.exists()  # a finished run keeps no states
    trained = [path.stat().st_mtime_ns for path in sorted((tmp_path / "pieces").glob("runs/*/training/model.pt"))]
    assert len(trained) == 2
    assert _study(place, tmp_path / "pieces") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == str(tmp_path / "pieces" / "study.html")
    now = {path.stat().st_mtime_ns for path in (tmp_path / "pieces").glob("runs/*/training/model.pt")}
    assert set(trained) < now
    assert "3 of 4 runs are to be done" in err

    # In one piece it ends with the same numbers.
    assert _study(place, tmp_path / "whole") == 0
    assert _rows(tmp_path / "whole") == _rows(tmp_path / "pieces")
    rows = _rows(tmp_path / "whole")
    assert {(row["arm"], row["seed"]) for row in rows} == {(a, s) for a in ("boltzmann", "full") for s in "01"}
    assert {row["patient"] != "" for row in rows} == {True}
    assert {row["target"] for row in rows} == {"liver", "spleen", "viscera", "stomach"}
    results, other = (json.loads((tmp_path / each / "results.json").read_text()) for each in ("whole", "pieces"))
    assert results["study"]["data"]["slices"]["folder"] == "slices"  # paths name a machine
    assert results["verdict"] == other["verdict"]
    _check_results(results)
    _check_page((tmp_path / "whole" / "study.html").read_text(), results)
    assert {path.name for path in (tmp_path / "whole" / "figures").iterdir()} == {
        "figure_9_main_slices.png", "figure_4_main_slices_boltzmann.png", "figure_4_main_slices_full.png",
    }  # fmt: skip

    # Again there is nothing to do.
    capsys.readouterr()
    assert _study(place, tmp_path / "whole") == 0
    assert "0 of 4 runs are to be done" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_in_other_processes_have_the_same_numbers(place: Path, tmp_path: Path) -> None:
    assert _study(place, tmp_path / "one", experiments__main__seeds=1) == 0
    assert _study(place, tmp_path / "two", "--workers", "2", experiments__main__seeds=1) == 0
    assert _rows(tmp_path / "one") == _rows(tmp_path / "two")
    assert all(path.read_text() for path in (tmp_path / "two").glob("runs/*/run.log"))


@pytest.mark.slow
def test_an_expert_is_scored_beside_boltzformer(place: Path, tmp_path: Path) -> None:
    settings = {
        "dimensions": 2, "steps": 10, "epoch_steps": 10, "filters": 4, "budget": 2 * 16**3, "validation_patches": 2,
        "augmentation": False,
    }  # fmt: skip
    arms = {"arms__full": {"kind": "expert", "settings": settings}, "experiments__main__seeds": 1}
    assert _study(place, tmp_path / "study", **arms) == 0
    rows = _rows(tmp_path / "study")
    assert {row["arm"] for row in rows if row["target"] == "liver"} == {"boltzmann", "full"}
    block = json.loads((tmp_path / "study" / "results.json").read_text())["experiments"]["main"]["data"]["slices"]
    assert block["arms"]["full"]["steps"] == 10
    assert block["arms"]["full"]["dice"]["all"]["instances"] == block["arms"]["boltzmann"]["dice"]["all"]["instances"]


class _deadline_passed:  # noqa: N801
    """A deadline that rings in the test itself."""

    def __init__(self, deadline: float | None) -> None:
        pass

    def __enter__(self) -> Any:
        return lambda: True

    def __exit__(self, *error: Any) -> None:
        pass


def _check_results(results: dict[str, Any]) -> None:
    experiment = results["experiments"]["main"]
    block = experiment["data"]["slices"]
    assert block["pairing"] == {"compared": 2, "differing": {}, "unpaired": [], "unknown": []}
    assert block["split"] == "val"
    assert len(block["held_out"]) == 1
    (every,) = experiment["comparisons"]  # no target is below 0.1 %
    assert every["group"] == "all"
    by_seed = [block["arms"][arm]["dice"]["all"]["by_seed"] for arm in ("boltzmann", "full")]
    for seed in "01":
        assert every["differences"][seed] == pytest.approx(by_seed[0][seed] - by_seed[1][seed])
    assert every["n"] == 2
    assert every["family"] == (every["p"] is not None)
    for arm in block["arms"].values():
        assert arm["training"]["wall_s"] > 0
        assert arm["inference_s"] > 0
        assert arm["steps"] == 4
        assert [len(run["checkpoint_sha256"]) for run in arm["runs"]] == [64, 64]
    assert block["sizes"]["stomach"]["present"] == 0


def _check_page(page: str, results: dict[str, Any]) -> None:
    assert page.index(results["verdict"][0].replace("'", "&#39;")) < page.index("<h2>")
    assert "Boltzmann − full attention" in page
    assert "Table 3: Attention" in page
    assert "73.7" in page
    assert "evaluated on the split val" in page.lower()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page


def test_arms_share_the_first_weights_that_they_have_in_common(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, dict[str, Any]] = {}

    def begin(name: str, overrides: dict[str, Any], *, root: Path, before: Any) -> None:
        parser = ConfigParser()
        parser.read_config(str(root / "configs" / "train.json"))
        parser.update({**overrides, "bundle_root": str(root)})
        torch.manual_seed(overrides["seed"])
        network = parser.get_parsed_content("network_def")
        before(parser)
        found[run.arm] = network.state_dict()
        raise ConfigError("enough")

    monkeypatch.setattr(kinds, "run_workflow", begin)
    study = read_study(write(place, experiments__main__arms=["boltzmann", "full", "no prior"], comparisons=[]))
    for run in [*runs_of(study, "main", {"slices": ""})][:3]:
        where = kinds.Place(folder=tmp_path, data=place / "slices", device="cpu", root=bundle_root())
        with pytest.raises(ConfigError, match="enough"):
            kinds.KINDS["boltzformer"].run(run, where)
    base = found["boltzmann"]
    for arm in ("full", "no prior"):
        assert [name for name, each in found[arm].items() if not each.equal(base[name])] == []
    prior = {name for name in base if "prior" in name}
    assert prior
    assert found["full"].keys() == base.keys()
    assert found["no prior"].keys() == base.keys() - prior


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training__epoch": 2}, "arms.boltzmann, experiments.main, data.slices: unknown override --epoch; did you"),
        ({"training__seed": 2}, "seed is set by the study itself; take it out of training"),
        ({"training__preset": "auto"}, "data.slices: training must name a preset: auto is another network on a GPU"),
        ({"training": {}}, "data.slices: training must name a preset: auto is another network on a GPU"),
        ({"evaluation__resample": 2}, "unknown override --resample; did you mean --resamples?"),
        (
            {"arms__full__network": {"policy": "ful"}},
            "arms.full, experiments.main, data.slices: unknown attention policy",
        ),
        (
            {
                "arms__full": {
                    "network": {"decoder": "sam"},
                    "training": {"settings_overrides": {"layer_supervision": 0.3}},
                }
            },
            "so its layers cannot be supervised",
        ),
        ({"arms__full__network": {"querys": 1}}, "unknown network setting 'querys'; did you mean 'queries'?"),
        ({"arms__full__training": {"settings_overrides": {"clop": 1}}}, "did you mean 'clip'?"),
        ({"arms__full__kind": "boltzforme"}, "arms.full, experiments.main: unknown kind of run 'boltzforme'; did you"),
        ({"arms__full__settings": {"steps": 3}}, "settings has no part in a run of the kind 'boltzformer'; leave it"),
        ({"arms__full__kind": "expert"}, "network has no part in a run of the kind 'expert'; leave it out"),
        ({"arms__full": {"kind": "expert", "settings": {"stps": 3}}}, "arms.full, experiments.main, data.slices: "),
        (
            {"data__slices": {"maker": "demo", "settings": {"abdomen": 1.5}}},
            "data.slices: abdomen must be a whole number, got 1.5",
        ),
        ({"data__slices": {"maker": "dem"}}, "data.slices: unknown maker 'dem'; did you mean 'demo'?"),
        ({"data__slices__folder": "nowhere"}, "nowhere"),
        (
            {"training__epochs": "$1/0"},
            "data.slices: its settings cannot be used (ZeroDivisionError: division by",
        ),
        ({"evaluation__focus": "yes"}, "data.slices: --focus must be true or false, got 'yes'"),
        ({"evaluation__precision": "fp8"}, "data.slices: --precision must be "),
        ({"evaluation__threshold": 0}, "data.slices: --threshold must be above 0 and below 1, got 0"),
        ({"evaluation__tolerance_mm": 0}, "the tolerance of the surface Dice must be a distance in mm above 0"),
        (
            {"arms__full": {"kind": "expert", "settings": {"dimensions": 2, "targets": ["livr"]}}},
            "arms.full, experiments.main, data.slices: unknown target 'livr'; did you mean 'liver'?",
        ),
        ({"experiments__main__settings": {"steps": 3}}, "experiments.main: settings has no part in a run of the kind"),
        ({"data__slices__split": "test"}, "experiments.main, data.slices: "),
        ({"experiments__main__folds": 50}, "experiments.main, data.slices: "),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    assert _study(place, tmp_path / "study", **changes) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert said in line
    assert not (tmp_path / "study").exists()


def test_a_run_that_fails_leaves_the_others_going(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Any, where: Any) -> kinds.Outcome:
        if run.arm == "full":
            raise ZeroDivisionError("a bug")
        return kinds.Outcome([], {})

    monkeypatch.setitem(kinds.KINDS, "boltzformer", kinds.Kind(check=lambda *_: None, run=fail))
    assert _study(place, tmp_path / "study") == 2
    err = capsys.readouterr().err
    assert "error: 2 of 4 runs failed, e.g.: ZeroDivisionError: a bug (test_study.py:" in err
    failures = [json.loads(path.read_text()) for path in (tmp_path / "study").glob("runs/*/failed.json")]
    assert ["in fail" in each["traceback"] for each in failures] == [True, True]
    page = (tmp_path / "study" / "study.html").read_text()
    assert "full on slices, seed 1: ZeroDivisionError: a bug" in page
    assert "2 of 4 runs are done, 2 failed." in page


def _made_up(run: Any, where: Any) -> kinds.Outcome:
    """Scores without a training: Boltzmann is better by 0.1 in the mean, and another image's V costs it little."""
    better = {"boltzmann": 0.1, "full": 0.0}[run.arm] + 0.01 * (run.seed % 3) * (run.arm == "full")
    rows = [
        ScoreRow(
            arm=run.arm, seed=run.seed, fold=run.fold, data=run.data, patient=f"p{number % 3}", image=f"i{number}",
            target="lesion", area_share=share, diameter_mm=None, dice=0.3 + 0.05 * number + better, missed=number == 0,
            confidence=None,
        )
        for number, share in enumerate((5e-5, 5e-4, 5e-3, 0.05))
    ]  # fmt: skip
    layers = [{"focus": 1.0 + layer, "set_size": 0.1, "empty": 0.02, "instances": 4} for layer in range(4)]
    facts = {
        "initial": dict.fromkeys(("backbone", "pixel_decoder", "text_encoder", "decoder"), "same"),
        "order": "same" if run.seed < 2 or run.arm == "full" else "other",
        "gate": {"dice": 0.5, "swapped": 0.45 if run.arm == "boltzmann" else 0.2, "instances": 4, "of": "below 1 %"},
        "focus": {"lesion": layers} if run.arm == "boltzmann" else {},
        "split": "test",
        "held_out": ["p0", "p1", "p2"],
    }
    return kinds.Outcome(rows, facts)


def test_a_full_disk_ends_the_study_and_is_no_run_s_fault(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = []

    def run(run: Any, _: Any) -> Any:
        begun.append(run)
        raise RuntimeError("in a training") from StorageError("model.pt: cannot be written (No space left on device)")

    monkeypatch.setitem(kinds.KINDS, "boltzformer", kinds.Kind(check=lambda *_: None, run=run))
    assert _study(place, tmp_path / "study") == 2
    assert "error: model.pt: cannot be written (No space left on device)" in capsys.readouterr().err
    assert len(begun) == 1
    assert not [*tmp_path.glob("study/runs/*/failed.json")]


def test_the_numbers_of_made_up_scores(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kinds.KINDS, "boltzformer", kinds.Kind(check=lambda *_: None, run=_made_up))
    assert _study(place, tmp_path / "study", experiments__main__seeds=5) == 0
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    experiment = results["experiments"]["main"]
    every, small = experiment["comparisons"]
    differences = [0.1, 0.09, 0.08, 0.1, 0.09]
    for row in (every, small):
        assert list(row["differences"].values()) == pytest.approx(differences)
        assert row["mean"] == pytest.approx(0.092)
        assert row["p"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
        assert row["adjusted"] == pytest.approx(2 * row["p"])  # of two tests
        assert (row["n"], row["void"], row["gated"], row["left_out"]) == (5, "void", True, 0)
        assert row["detectable"] == pytest.approx(smallest_difference(row["sd"], 5, tests=2))
    assert (every["group"], every["instances"], every["by_patient"]["patients"]) == ("all", 4, 3)
    assert (small["group"], small["instances"]) == ("below 0.1 %", 2)
    block = experiment["data"]["slices"]
    assert block["arms"]["full"]["dice"]["0.1 to 1 %"]["by_seed"]["1"] == pytest.approx(0.41)
    assert block["arms"]["boltzmann"]["missed"]["below 0.1 %"]["mean"] == 0.5
    assert block["arms"]["boltzmann"]["gate"]["open"] is False
    assert block["arms"]["full"]["gate"]["cost"] == pytest.approx(0.3)
    assert block["pairing"] == {
        "compared": 5, "differing": {"full": ["order of the data"]}, "unpaired": ["full"], "unknown": [],
    }  # fmt: skip
    assert block["sizes"]["lesion"]["median"] == pytest.approx(100 * (5e-4 + 5e-3) / 2)

    page = (tmp_path / "study" / "study.html").read_text()
    assert results["verdict"][0].startswith("Void: attention is unused in every comparison")
    for text in (
        "+9.2", "+8.2 to +10.2", "42.5 ± 0.0\nn 2, 5 seeds", "void: attention unused", "Focus, lesion", "4.0\n(10, 2)",
        "by hash, but for: full attention: order of the data", "3 patients held out", "Preliminary",
    ):  # fmt: skip
        assert (text in page) is (text != "Preliminary"), text

    # An arm that is not in all seeds yet counts where both are.
    (tmp_path / "study" / "runs" / block["arms"]["full"]["runs"][-1]["key"] / "result.json").unlink()
    monkeypatch.setattr(runner, "run_jobs", lambda *_, **__: iter(()))
    assert _study(place, tmp_path / "study", experiments__main__seeds=5) == 75
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    assert results["experiments"]["main"]["comparisons"][0]["n"] == 4
    assert results["verdict"][0].startswith("Preliminary, 9 of 10 runs: ")


def test_comparisons_are_of_what_both_arms_scored_and_void_by_the_better_arm(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scored(run: Any, where: Any) -> kinds.Outcome:
        """Full attention is better by what it attends to; Boltzmann has not learned that; all objects are small."""
        rows, facts = _made_up(run, where)
        worse = 0.3 * (run.arm != "full")
        rows = [replace(row, dice=0.9 - worse - 0.01 * run.seed, area_share=5e-4) for row in rows]
        gate = {**facts["gate"], "dice": 0.9 - worse, "swapped": 0.55}
        if run.arm == "full":
            rows = [*rows, replace(rows[0], image="i9", dice=0.0)]  # scored by this one alone
            facts.pop("initial")
        return kinds.Outcome(rows, {**facts, "gate": gate})

    def fast(run: Any, where: Any) -> kinds.Outcome:
        rows, facts = scored(run, where)
        return kinds.Outcome([replace(row, dice=(row.dice or 0) + 1e-3 * run.seed) for row in rows], facts)

    for kind in ("boltzformer", "expert"):
        found = scored if kind == "boltzformer" else fast
        monkeypatch.setitem(kinds.KINDS, kind, kinds.Kind(check=lambda *_: None, run=found))
    assert _study(place, tmp_path / "policies", experiments__main__seeds=3) == 0
    results = json.loads((tmp_path / "policies" / "results.json").read_text())
    (row,) = results["experiments"]["main"]["comparisons"]  # one test: "all" would be the same
    assert (row["group"], row["instances"], row["left_out"], row["gated"]) == ("below 0.1 %", 4, 3, True)
    assert row["mean"] == pytest.approx(-0.3)
    assert row["void"] == "open"  # the worse one's gate is not
    block = results["experiments"]["main"]["data"]["slices"]
    assert [arm["gate"]["open"] for arm in block["arms"].values()] == [False, True]
    assert [arm["gate"]["learned"] for arm in block["arms"].values()] == [True, True]
    assert block["pairing"]["unknown"] == ["full"]
    page = (tmp_path / "policies" / "study.html").read_text()
    assert "mean of 1 of" not in page
    assert "seeds without a spread say nothing of others" in page

    other = {
        "arms__full": {"title": "U-Net", "kind": "expert"},
        "comparisons": [{"arm": "full", "against": "boltzmann"}],
    }
    assert _study(place, tmp_path / "systems", experiments__main__seeds=3, **other) == 0
    (row,) = json.loads((tmp_path / "systems" / "results.json").read_text())["experiments"]["main"]["comparisons"]
    assert row["gated"] is False


NEEDLE = {
    "data": {"small": {"maker": "needle", "settings": {"image_size": 64, "objects": 2, "test_images": 4, "steps": 2}}},
    "experiments": {
        "needle": {
            "kind": "needle", "data": ["small"], "arms": ["boltzmann", "full"], "seeds": 2,
            "settings": {"batch_size": 2},
        }
    },
}  # fmt: skip


def test_a_needle_study(place: Path, tmp_path: Path) -> None:
    assert _study(place, tmp_path / "study", **copy.deepcopy(NEEDLE)) == 0
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    block = results["experiments"]["needle"]["data"]["small"]
    assert block["pairing"] == {"compared": 2, "differing": {}, "unpaired": [], "unknown": []}
    for arm in block["arms"].values():
        assert arm["gate"]["instances"] == 8
        assert len(arm["focus"]["the needle"]) == 9
        assert arm["dice"]["all"]["n_seeds"] == 2
    assert block["arms"]["full"]["focus"]["the needle"][0]["set_size"] == 1.0
    rows = _rows(tmp_path / "study")
    assert len(rows) == 2 * 2 * 8
    assert {row["data"] for row in rows} == {"small"}
    assert _study(place, tmp_path / "again", **copy.deepcopy(NEEDLE), experiments__needle__seeds=1) == 0
    assert _rows(tmp_path / "again") == [row for row in rows if row["seed"] == "0"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data__small__settings__step": 3},
            "arms.boltzmann, experiments.needle, data.small: unknown setting of a nee",
        ),
        ({"experiments__needle__folds": 3}, "experiments.needle: a run of the kind 'needle' has no patients for folds"),
        (
            {"data__small__training": {"clip": 1.0}},
            "data.small: training has no part in data that its kind of run makes",
        ),
        ({"data__small__settings__objects": 9}, "arms.boltzmann, experiments.needle, data.small: 9 objects need"),
        ({"arms__full__training": {"epochs": 3}}, "unknown training setting of a needle test 'epochs'"),
        ({"experiments__needle__kind": "boltzformer"}, "a run of the kind 'boltzformer' cannot have the data 'small'"),
        (
            {"arms__full__network": {"policy": "ful"}},
            "arms.full, experiments.needle, data.small: unknown attention poli",
        ),
    ],
)
def test_mistakes_of_a_needle_study_are_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    assert _study(place, tmp_path / "study", **copy.deepcopy(NEEDLE), **changes) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert said in line


def test_what_there_is_to_do_is_listed(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _study(place, tmp_path / "study", "--list") == 0
    assert capsys.readouterr().out == "main: 4 runs\n"
    assert _study(place, tmp_path / "study", "--list", "--only", "mains") == 2
    assert "unknown experiment (--only) 'mains'; did you mean 'main'?" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("phantoms", "policies: 15 runs"),
        ("small", "needle: 40 runs"),
        ("gpu", "needle: 20 runs"),
        pytest.param("paper", "needle: 40 runs", marks=pytest.mark.slow),
        ("example", "policies: 10 runs"),
    ],
)
def test_what_ships_can_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, first: str) -> None:
    """Every study of the repository, and the example of the documentation on data that a maker makes."""
    assert {path.stem for path in (ROOT / "studies").glob("*.json")} == {"gpu", "paper", "phantoms", "small"}
    study = ROOT / "studies" / f"{name}.json"
    if name == "example":
        text = (ROOT / "docs" / "how-to" / "studies.md").read_text()
        example = json.loads(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0])
        del example["data"]["lesions"]
        example["experiments"]["policies"]["data"] = ["phantoms"]
        study = tmp_path / "example.json"
        study.write_text(json.dumps(example))
    assert main(["study", str(study), "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == first


def test_experiments_whose_data_are_there_can_be_run_alone(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = {
        **copy.deepcopy(NEEDLE),
        "data__later": {"folder": "nowhere"},
        "experiments__other": {"data": ["later"], "arms": ["boltzmann"], "seeds": 3},
    }
    assert _study(place, tmp_path / "study", **study) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: data.later: ")
    assert not (tmp_path / "study").exists()
    assert _study(place, tmp_path / "study", "--list", **study) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[:2] == ["needle: 4 runs", "other: 3 runs"]
    assert listed[2].startswith("data.later is missing: ")
    assert _study(place, tmp_path / "study", "--only", "needle", **study) == 0
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    assert results["verdict"][0].startswith("Preliminary, 4 of 7 runs: ")
