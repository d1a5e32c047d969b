"""Parts by name: registered in code, by plugins and by entry points; and what users are told of mistakes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.metrics import metrics_for
from boltzformer_monai.networks.mask_decoder import BOLTZMANN
from boltzformer_monai.networks.registries import BACKBONES, DECODERS, POLICIES
from boltzformer_monai.registry import PLUGINS, Registry, load_plugin, use_plugins
from boltzformer_monai.slicing.recipes import load_recipe
from tests.extending.guests import install


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLUGINS, "")


@pytest.fixture
def parts() -> Registry[Any]:
    registry: Registry[Any] = Registry("part", group="unit.parts")

    @registry.register("plain")
    def plain(config: str, *, scale: float = 1.0) -> tuple[str, float]:
        return config, scale

    @registry.register("needs")
    def needs(config: str, *, size: int) -> int:
        return size

    return registry


def entry_point(site: Path, monkeypatch: pytest.MonkeyPatch, module: str, text: str) -> None:
    metadata = site / "unit_parts-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: unit-parts\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[unit.parts]\noffered = {module}:Offered\n")
    (site / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(site))


def test_parts_are_made_of_arguments_and_settings(parts: Registry[Any]) -> None:
    assert parts.make("plain", "config", settings={"scale": 2.0}) == ("config", 2.0)
    assert parts.names() == ["needs", "plain"]


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("plan", {}, "unknown part 'plan'; did you mean 'plain'? One of your own needs"),
        ("zzz", {}, "unknown part 'zzz'; known: needs, plain. One of your own needs"),
        ("plain", {"scal": 1}, "unknown setting 'scal' of the part 'plain'; did you mean 'scale'?"),
        ("plain", {"config": 1}, "unknown setting 'config' of the part 'plain'; "),
        ("needs", {}, "the part 'needs': missing a required "),  # 3.12 adds "keyword-only"
    ],
)  # fmt: skip
def test_mistakes_are_one_line(parts: Registry[Any], name: str, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parts.make(name, "config", settings=settings)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_name_is_taken_once(parts: Registry[Any]) -> None:
    def other(config: str) -> None: ...

    with pytest.raises(ConfigError, match="the part 'plain' is registered already; choose another name"):
        parts.register("plain")(other)
    parts.register("other")(other)
    parts.register("other")(other)  # a module that is imported twice


def test_an_installed_package_offers_a_part(
    parts: Registry[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_point(tmp_path, monkeypatch, "unit_offer", "def Offered(config, *, height=1):\n    return height\n")
    assert parts.names() == ["needs", "offered", "plain"]
    assert "unit_offer" not in sys.modules  # listing imports nothing
    assert parts.make("offered", "config", settings={"height": 5}) == 5
    with pytest.raises(ConfigError, match="unknown setting 'heigt' of the part 'offered'; did you mean 'height'"):
        parts.make("offered", "config", settings={"heigt": 5})


def test_a_broken_package_is_one_line(parts: Registry[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_point(tmp_path, monkeypatch, "unit_broken", "import no_such_module\n")
    with pytest.raises(
        ConfigError,
        match=r"the part 'offered' cannot be imported from unit_broken:Offered \(ModuleNotFoundError: No module",
    ):
        parts.make("offered", "config", settings={})
    assert parts.make("plain", "config", settings={}) == ("config", 1.0)


PLUGIN = """
from __future__ import annotations
from dataclasses import dataclass
from boltzformer_monai.networks import register_policy

@dataclass
class Policy:
    size: int = {size}
    per_head: bool = False

NAME = {name!r}
if NAME:
    register_policy(NAME)(Policy)
"""


def write_plugin(path: Path, *, name: str = "", size: int = 1) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(PLUGIN.format(name=name, size=size))
    return path


def test_plugins_of_one_file_name_do_not_shadow_each_other(tmp_path: Path) -> None:
    first = load_plugin(str(write_plugin(tmp_path / "a" / "json.py", size=1)))
    second = load_plugin(str(write_plugin(tmp_path / "b" / "json.py", size=2)))
    assert (first.Policy().size, second.Policy().size) == (1, 2)
    assert load_plugin(str(tmp_path / "a" / "json.py")) is first
    assert sys.modules["json"].__name__ == "json"


def test_plugins_that_claim_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from boltzformer_monai.networks.registries import POLICIES

    monkeypatch.setattr(POLICIES, "_factories", dict(POLICIES._factories))
    load_plugin(str(write_plugin(tmp_path / "a" / "mine.py", name="mine")))
    with pytest.raises(ConfigError, match="the attention policy 'mine' is registered already") as caught:
        load_plugin(str(write_plugin(tmp_path / "b" / "mine.py", name="mine")))
    assert str(tmp_path / "b" / "mine.py") in str(caught.value)


def test_plugins_are_imported_here_and_in_processes_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plugin(tmp_path / "one.py")
    monkeypatch.chdir(tmp_path)
    use_plugins("one.py")
    use_plugins(["one.py", "json"])
    assert os.environ[PLUGINS] == os.pathsep.join((str(tmp_path / "one.py"), "json"))


def test_names_import_the_plugins_of_the_environment(parts: Registry[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLUGINS, "no_such_plugin")
    with pytest.raises(ConfigError, match="the plugin no_such_plugin cannot be imported"):
        parts.make("absent", "config", settings={})
    assert parts.make("plain", "config", settings={}) == ("config", 1.0)  # what is known needs no plugin


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file or directory"),
        ("def f(:\n", "SyntaxError: "),
        ("raise RuntimeError('two\\nlines')\n", "RuntimeError: two lines"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys; sys.exit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_plugin_that_fails_is_one_line(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "broken.py"
    if text is not None:
        path.write_text(text)
    before = set(sys.modules)
    with pytest.raises(ConfigError) as caught:
        use_plugins([str(path)])
    assert str(caught.value).startswith(f"the plugin {path} cannot be imported ({reason}")
    assert "\n" not in str(caught.value)
    assert not [name for name in set(sys.modules) - before if name.startswith("broken")]


def test_a_plugin_is_a_name() -> None:
    with pytest.raises(ConfigError, match=r"a plugin is the name of a module or the path of a \.py file, not 3"):
        use_plugins([3])  # type: ignore[list-item]


def test_two_distributions_of_one_name_are_not_chosen_between(
    parts: Registry[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers = "[unit.parts]\nshared = {0}:Part\nplain = {0}:Part\nown = {0}:Part\n"
    for name in ("one", "two"):
        module = f"unit_{name}_parts"
        text = "class Part:\n    def __init__(self, config): ...\n"
        install(tmp_path / name, f"{name}-parts", modules={module: text}, entry_points=offers.format(module))
        monkeypatch.syspath_prepend(str(tmp_path / name))
        if name == "one":
            assert type(parts.make("shared", "config", settings={})).__module__ == module
            with pytest.raises(ConfigError, match="'plain' is provided by the module tests.test_registry and by one-p"):
                parts.make("plain", "config", settings={})
    assert parts.names() == ["needs", "own", "plain", "shared"]
    fresh: Registry[Any] = Registry("part", group="unit.parts")
    for name in ("shared", "own"):
        with pytest.raises(ConfigError) as caught:
            fresh.make(name, "config", settings={})
        one, two = sorted(("one-parts", "two-parts"), key=str(caught.value).index)
        assert str(caught.value) == f"the part {name!r} is provided by {one} and by {two}; uninstall all but one"


@pytest.mark.parametrize(
    ("group", "name", "make"),
    [
        ("decoders", BOLTZMANN, lambda: DECODERS.find(BOLTZMANN)),
        ("policies", "boltzmann", lambda: POLICIES.find("boltzmann")),
        ("backbones", "small", lambda: BACKBONES.find("small")),
        ("metrics", "extent", lambda: metrics_for(2)),
        ("recipes", "msd", lambda: load_recipe("msd")),
    ],
)
def test_every_door_refuses_what_two_distributions_provide(
    group: str, name: str, make: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for registry in (DECODERS, POLICIES, BACKBONES):
        monkeypatch.setattr(registry, "_settled", set())
    for guest in ("one-guest", "two-guest"):
        offer = f"[boltzformer_monai.{group}]\n{name} = no_module\n"
        install(tmp_path / guest, guest, modules={}, entry_points=offer)
        monkeypatch.syspath_prepend(str(tmp_path / guest))
    with pytest.raises(ConfigError, match=rf"{name}'? is provided by .*one-guest.*; uninstall all but one") as caught:
        make()
    assert "two-guest" in str(caught.value)
