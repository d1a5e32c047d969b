"""Which number a name has in this server's label maps: the same in every reply, so that viewers may rely on /info."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from filelock import FileLock

from boltzformer_monai.data.prompts import normalise_prompt
from boltzformer_monai.errors import StorageError, why
from boltzformer_monai.storage import atomic_path

_log = logging.getLogger(__name__)

MOST = 255
DECLARED = 200
"""Names that are remembered; the numbers above are for prompts that come later, and for passing ones."""


class LabelNumbers:
    """Name → number from 1 on; a number that was given stays, also over restarts.

    OHIF shows only numbers that /info declares, and 3D Slicer names segments in the order of their numbers. A passing
    name (a typing error, say) has one from the top, is never written down, and gives it back to later ones.

    Args:
        file: JSON, kept up to date.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._passing: dict[str, int] = {}
        self._stamp: tuple[int, int] | None = None
        self._read()

    def names(self) -> dict[str, int]:
        """All names declared so far, by number, and the last passing ones."""
        with self._lock:
            self._read()
            fresh = {name: self._passing[name] for name in self._fresh(list(self._passing))}
            return dict(sorted((self._numbers | fresh).items(), key=lambda item: item[1]))

    def declare(self, names: Iterable[str]) -> None:
        """Give numbers to names that have none, as long as there is room."""
        wanted = list(dict.fromkeys(names))
        with self._lock:
            self._read()
            if not self._fresh(wanted) or len(self._numbers) >= DECLARED:
                return
            with self._across_processes():  # batches and trainings run in processes of their own
                self._read()
                for name in self._fresh(wanted)[: DECLARED - len(self._numbers)]:
                    self._numbers[name] = len(self._numbers) + 1
                self._write()

    def values(self, prompts: Sequence[str], *, passing: Sequence[str] = ()) -> list[int]:
        """A number for each of up to 255 different prompts; what is new is declared from now on.

        Args:
            prompts: all of them.
            passing: those among them that must not become names of this server just because they were asked.
        """
        self.declare(prompt for prompt in prompts if prompt not in passing)
        with self._lock:
            self._pass(passing)
            both = self._passing | self._numbers
            known = {normalise_prompt(name): number for name, number in both.items()}
            count = len(self._numbers)
        found = [known.get(normalise_prompt(prompt)) for prompt in prompts]
        free = iter(sorted(set(range(1, MOST + 1)) - set(found), key=lambda n: (n <= count, n)))
        return [next(free) if number is None else number for number in found]

    def _pass(self, names: Sequence[str]) -> None:
        """Numbers from the top for names that have none; the oldest passing ones give theirs back."""
        wanted = self._fresh(names)[: MOST - DECLARED]
        kept = {name: number for name, number in self._passing.items() if name not in wanted}
        numbers = {name: self._passing[name] for name in wanted if name in self._passing}
        for name in wanted:
            if name not in numbers:
                taken = {*kept.values(), *numbers.values()}
                number = next((n for n in range(MOST, DECLARED, -1) if n not in taken), None)
                numbers[name] = kept.pop(next(iter(kept))) if number is None else number
        self._passing = kept | numbers  # the last ones last

    def _fresh(self, names: Sequence[str]) -> list[str]:
        known = {normalise_prompt(name) for name in self._numbers}
        return [name for name in names if normalise_prompt(name) not in known]

    def _across_processes(self) -> FileLock:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        return FileLock(self.file.with_suffix(".lock"))

    def _read(self) -> None:
        """Take up what the file says, if it has changed."""
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
            _log.warning("%s: cannot be read and is made anew", self.file)

    def _write(self) -> None:
        ordered = sorted(self._numbers, key=lambda name: self._numbers[name])
        try:
            with atomic_path(self.file) as temporary:
                temporary.write_text(json.dumps({"names": ordered}, ensure_ascii=False, indent=1), encoding="utf-8")
            found = self.file.stat()
            self._stamp = found.st_mtime_ns, found.st_size
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(f"{self.file}: cannot be written ({why(error)}); give another --conf workspace PATH")
