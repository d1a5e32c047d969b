"""The generated reference has every option, key, setting and public module, each with a text."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy

import pytest

from boltzformer_monai.cli import main
from boltzformer_monai.engines.settings import TrainingSettings
from boltzformer_monai.networks.config import NetworkConfig
from tests.docs.pages import DOCS, ROOT
from tests.needs import need_module

need_module("griffe")
REFERENCE = runpy.run_path(str(DOCS / "tools" / "reference.py"))


def section(page: str, heading: str) -> str:
    """The text below a heading of level 2."""
    return page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("command", ["segment", "slice", "train", "weights fetch", "expert evaluate"])
def test_every_option_of_the_help_is_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    options = set(re.findall(r"(?<!\w)--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    page = section(REFERENCE["commands_page"](), f"boltzformer {command}")
    assert len(options) > 2
    assert {option for option in options if option not in page} == set()


def test_every_option_has_a_text() -> None:
    silent = [
        f"{name} {action.option_strings or action.dest}"
        for name, parser in REFERENCE["commands"]()
        for action in parser._actions
        if REFERENCE["is_option"](action) and not action.help
    ]
    assert silent == []


def test_every_key_of_the_bundle_has_a_text_or_is_a_component() -> None:
    page = REFERENCE["bundle_page"]()
    for name in ("train", "evaluate", "inference"):
        config = json.loads((ROOT / f"bundles/boltzformer/configs/{name}.json").read_text(encoding="utf-8"))
        text = section(page, f"{name}.json")
        for key, value in config.items():
            assert f"| `{key}` |" in text, (name, key)
            plain = not isinstance(value, dict | list) and not str(value).startswith(("$", "@"))
            preset = str(value).startswith("$@defaults.")
            assert not (plain or preset) or REFERENCE["key_text"](name, key), (name, key)


def test_no_text_is_of_a_key_that_is_gone() -> None:
    configs = {name: REFERENCE["read_config"](name) for name in ("train", "evaluate", "inference")}
    for key in REFERENCE["KEYS"]:
        config, _, name = key.rpartition(".")
        assert any(name in configs[each] for each in ([config] if config else configs)), key


@pytest.mark.parametrize("kind", [TrainingSettings, NetworkConfig])
def test_every_setting_has_a_text(kind: type) -> None:
    texts = REFERENCE["field_texts"](kind)
    assert [field.name for field in dataclasses.fields(kind) if not texts[field.name]] == []


def test_every_public_module_is_on_a_page() -> None:
    pages = "\n".join(REFERENCE["api_page"](package) for package in REFERENCE["packages"]())
    files = (ROOT / "boltzformer_monai").rglob("*.py")
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files}
    public = {name for name in names if not re.search(r"\._", name)}
    assert len(public) > 200
    assert {name for name in public if f"::: {name}\n" not in pages} == set()


def test_roles_become_links() -> None:
    docstrings = runpy.run_path(str(DOCS / "tools" / "docstrings.py"))
    made = docstrings["as_markdown"]("As :func:`~boltzformer_monai.io.read.read_volume` of :data:`GROUP`::", "a.b")
    assert made == (
        'As <autoref identifier="boltzformer_monai.io.read.read_volume" optional><code>read_volume</code></autoref> '
        'of <autoref identifier="a.b.GROUP" optional><code>GROUP</code></autoref>:'
    )
