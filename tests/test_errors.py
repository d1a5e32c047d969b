"""What libraries say is put into words before a user reads it."""

from __future__ import annotations

import json
import re

import pytest

from boltzformer_monai.errors import ConfigError, VolumeError, did_you_mean, reject_unknown, user_line, why


def raised(call: str) -> BaseException:
    try:
        eval(call, {"json": json})  # of this file's own texts
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError(call)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("{}['high']", "it lacks high"),
        ("None.shape", "it has not the form that is expected"),
        ("len(3)", "it has not the form that is expected"),
        ("[][1]", "it has not the form that is expected"),
        ("float('x')", "a number in it is none"),
        ("int('x')", "a number in it is none"),
        ("1 / 0", "a number in it is none"),
        ("open('/no/such/file')", "No such file or directory"),
        ("b'\\xff'.decode()", "it is no text in UTF-8"),
        ("json.loads('{')", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("next(iter(()))", "it contradicts itself"),
    ],
)
def test_exceptions_in_words(call: str, said: str) -> None:
    assert why(raised(call)) == said
    assert not re.search(r"Error|object|NoneType|'", why(raised(call)))


def test_our_own_errors_stay_as_they_are() -> None:
    assert why(ConfigError("use CT or MR")) == "use CT or MR"


def test_a_suggestion_or_all_that_is_known() -> None:
    known = ["epochs", "batch_size"]
    assert did_you_mean("epoch", known) == "did you mean 'epochs'?"
    assert did_you_mean("epoch", known, show="--{}".format) == "did you mean --epochs?"
    assert did_you_mean("zzz", known) == "known: epochs, batch_size"
    assert did_you_mean("zzz", []) == "known: none"
    assert did_you_mean("zzz", known, otherwise="see the README") == "see the README"


def test_unknown_names_are_refused() -> None:
    reject_unknown(["epochs"], ["epochs"], what="setting")
    with pytest.raises(ConfigError, match=r"^unknown setting 'epoch'; did you mean 'epochs'\?$"):
        reject_unknown(["epochs", "epoch"], ["epochs"], what="setting")


def _wrapped(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("use CT or MR"), "use CT or MR"),
        (_wrapped(RuntimeError("Failed to evaluate @reader"), ConfigError("use CT")), "use CT"),
        (_wrapped(ConfigError("no data set"), FileNotFoundError(2, "No such file", "/there")), "no data set"),
        (PermissionError(13, "Permission denied", "/there"), "/there: Permission denied"),
        (
            _wrapped(RuntimeError("Failed"), PermissionError(13, "Permission denied", "/there")),
            "/there: Permission denied",
        ),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("broken data stream when reading image file"), None),
        (
            ValueError("run ID 'trainin' doesn't exist in the config file."),
            "run ID 'trainin' doesn't exist in the config file.",
        ),
        (RuntimeError("Caught\nboltzformer_monai.errors.DatasetError: a.png: is damaged\n"), "a.png: is damaged"),
        (ValueError("a bug"), None),
        (TypeError("another"), None),
    ],
)
def test_the_line_for_the_user_or_none_for_a_bug(error: BaseException, line: str | None) -> None:
    assert user_line(error) == line


def test_what_a_damaged_file_holds_stays_on_one_line():
    line = str(VolumeError("a\nb.dcm: its RescaleSlope 2\x00\x0c\x1b[31m\u2028 is unusable"))
    assert line == "a?b.dcm: its RescaleSlope 2???[31m? is unusable"
