"""Label values of names: constant over all responses and restarts, so that viewers can rely on /info."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from filelock import FileLock

from boltzformer_monai.data.prompts import normalise_prompt
from boltzformer_monai.storage import write_json, writing

_log = logging.getLogger(__name__)

MAX_VALUE = 255
DECLARED = 200
"""Values of permanent names; those above are for later prompts and for temporary names."""
_ADVICE = "give another --conf workspace PATH"


class LabelNumbers:
    """Name → label value from 1; an assigned value never changes.

    OHIF shows only values that /info declares, and 3D Slicer names segments in the order of their values. A temporary
    name (e.g. a typing error) gets a value from the top, which is not stored and may be reused.

    Args:
        file: JSON file of the permanent names.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._temporary: dict[str, int] = {}
        self._stamp: tuple[int, int] | None = None
        self._read()

    def names(self) -> dict[str, int]:
        """All permanent names and the latest temporary ones, by value."""
        with self._lock:
            self._read()
            fresh = {name: self._temporary[name] for name in self._fresh(list(self._temporary))}
            return dict(sorted((self._numbers | fresh).items(), key=lambda item: item[1]))

    def declare(self, names: Iterable[str]) -> None:
        """Assign values to new names, up to :data:`DECLARED`."""
        wanted = list(dict.fromkeys(names))
        with self._lock:
            self._read()
            if not self._fresh(wanted) or len(self._numbers) >= DECLARED:
                return
            with writing(self.file, _ADVICE):
                self.file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.file.with_suffix(".lock")):  # batches and trainings run in processes of their own
                self._read()
                for name in self._fresh(wanted)[: DECLARED - len(self._numbers)]:
                    self._numbers[name] = len(self._numbers) + 1
                names = sorted(self._numbers, key=self._numbers.__getitem__)
                write_json(self.file, {"names": names}, advice=_ADVICE)
                self._stamp = None

    def values(self, prompts: Sequence[str], *, temporary: Sequence[str] = ()) -> list[int]:
        """The values of up to 255 different prompts; new ones become permanent unless they are ``temporary``."""
        self.declare(prompt for prompt in prompts if prompt not in temporary)
        with self._lock:
            self._assign_temporary(temporary)
            both = self._temporary | self._numbers
            known = {normalise_prompt(name): number for name, number in both.items()}
            count = len(self._numbers)
        found = [known.get(normalise_prompt(prompt)) for prompt in prompts]
        free = iter(sorted(set(range(1, MAX_VALUE + 1)) - set(found), key=lambda n: (n <= count, n)))
        return [next(free) if number is None else number for number in found]

    def _assign_temporary(self, names: Sequence[str]) -> None:
        """Assign values from the top; the oldest temporary names lose theirs."""
        wanted = self._fresh(names)[: MAX_VALUE - DECLARED]
        kept = {name: number for name, number in self._temporary.items() if name not in wanted}
        numbers = {name: self._temporary[name] for name in wanted if name in self._temporary}
        for name in wanted:
            if name not in numbers:
                taken = {*kept.values(), *numbers.values()}
                number = next((n for n in range(MAX_VALUE, DECLARED, -1) if n not in taken), None)
                numbers[name] = kept.pop(next(iter(kept))) if number is None else number
        self._temporary = kept | numbers  # the last ones last

    def _fresh(self, names: Sequence[str]) -> list[str]:
        known = {normalise_prompt(name) for name in self._numbers}
        return [name for name in names if normalise_prompt(name) not in known]

    def _read(self) -> None:
        """Read the file if it has changed."""
        try:
            found = self.file.stat()
            if (stamp := (found.st_mtime_ns, found.st_size)) == self._stamp:
                return
            self._stamp = stamp
            content = json.loads(self.file.read_text(encoding="utf-8"))
            self._numbers = {str(name): index for index, name in enumerate(content["names"][:DECLARED], 1)}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            _log.warning("%s: cannot be read, so it is replaced", self.file)
