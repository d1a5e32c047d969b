"""The window of each prompt's target in training, for equal grey values at inference."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.data.prompt_check import PromptReader, Reading
from boltzformer_monai.data.prompts import find_target, normalise_prompt, normalise_site, site_contains
from boltzformer_monai.data.windows import GreyScale, StoredGrey, default_window, parse_window, window_from_dict
from boltzformer_monai.errors import CheckpointError, ConfigError, PromptError, why
from boltzformer_monai.modality import OTHER


class PromptWindows:
    """Chooses a window per prompt: "left kidney" and "lung nodule" may need different ones.

    Args:
        data: the checkpoint's description of its training slices, ``{"targets": [{target, modality, site, window}]}``.
        window: for all prompts: a name, ``(level, width)`` in HU, or a window.

    Raises:
        CheckpointError: a target or window of the checkpoint cannot be used.
        ConfigError: ``window`` is no window.
    """

    def __init__(
        self, data: Mapping[str, Any], *, window: str | Sequence[float] | Mapping[str, Any] | GreyScale | None = None
    ) -> None:
        self.targets: list[Mapping[str, Any]] = list(data.get("targets", []))
        try:
            self.reader = PromptReader(self.targets)
            for entry in self.targets:
                window_from_dict(entry["window"])
        except (ConfigError, PromptError) as error:
            msg = f"the checkpoint's training targets cannot be used ({why(error)}); copy it again, or train it anew"
            raise CheckpointError(msg) from None
        self.fixed = None if window is None else parse_window(window)

    def modality(self, stated: str) -> str:
        """The stated modality; if unknown, the only one of the training.

        Raises:
            ConfigError: it is unknown, and the training had several or none.
        """
        if stated != "unknown":
            return stated
        known = sorted({str(entry["modality"]) for entry in self.targets})
        if len(known) == 1:
            return known[0]
        others = ", or PET, ultrasound, …" if isinstance(self.fixed, StoredGrey) else ""
        raise ConfigError(f"the scan does not say whether it is CT or MR; give --modality (CT or MR{others})")

    def read(self, prompts: Sequence[str], *, literal: bool = False) -> list[Reading]:
        """Interpret prompts; see :class:`~boltzformer_monai.data.prompt_check.PromptReader`.

        Raises:
            PromptError: a negation, size or count is part of no name, and ``literal`` is false.
        """
        return [self.reader.read(prompt, literal=literal) for prompt in prompts]

    def is_unknown(self, reading: Reading) -> bool:
        """Whether the prompt is no trained target; False if these are not known."""
        return bool(self.targets) and reading.target is None

    def prompt_caveats(self, readings: Sequence[Reading]) -> list[Caveat]:
        """Caveats of these prompts."""
        if not self.targets:
            text = "the model states no vocabulary: whether it understands a prompt is not known; look at the masks"
            return [Caveat("no vocabulary", text), *self._prompt_caveats(readings)]
        return self._prompt_caveats(readings)

    def _prompt_caveats(self, readings: Sequence[Reading]) -> list[Caveat]:
        return [
            Caveat(kind, text, reading.prompt) for reading in readings for kind, text in self.reader.caveats(reading)
        ]

    def modality_caveats(self, stated: str, modality: str, readings: Sequence[Reading]) -> list[Caveat]:
        """Caveats of a scan with a stated modality, or ``"unknown"``, and an assumed one."""
        known = sorted({str(entry["modality"]) for entry in self.targets})
        found = []
        if stated == "unknown":
            found.append(Caveat("assumed modality", f"taken as {modality}, which the file does not state"))
        here = "another modality" if modality == OTHER else modality
        if known and modality not in known:
            text = f"the network was trained on {' and '.join(known)}; on {here} its masks mean little"
            return [*found, Caveat("another modality", text)]
        for reading in readings:
            own = sorted({str(entry["modality"]) for entry in self.targets if entry["target"] == reading.target})
            if own and modality not in own:
                text = f"{reading.prompt!r} was trained on {' and '.join(own)} only; on {here} its mask means little"
                found.append(Caveat("another modality", text, reading.prompt))
        return found

    def group(self, readings: Sequence[Reading], modality: str) -> list[tuple[GreyScale, list[int]]]:
        """Windows with the indices of their prompts, in order of first use."""
        groups: list[tuple[GreyScale, list[int]]] = []
        for index, reading in enumerate(readings):
            window = self._of(reading, modality)
            for other, members in groups:
                if other == window:
                    members.append(index)
                    break
            else:
                groups.append((window, [index]))
        return groups

    def _of(self, reading: Reading, modality: str) -> GreyScale:
        if self.fixed is not None:
            return self.fixed
        trained = [entry for entry in self.targets if entry["modality"] == modality]
        if reading.target is not None:
            trained = [entry for entry in trained if entry["target"] == reading.target]
        if not trained and modality == OTHER:
            msg = "the network was trained on CT or MR only; --window stored shows it the values of 8-bit grey images"
            raise ConfigError(msg)
        if not trained:  # of a model that states no targets, the site that the prompt names is all there is to go by
            return default_window(modality, "" if self.targets else reading.site)
        text = normalise_prompt(reading.prompt)

        def fit(entry: Mapping[str, Any]) -> tuple[int, bool]:
            # For an unknown prompt, the longest name in it is the best guess.
            return _named_length(str(entry["target"]), text), _is_at(entry, reading.site)

        # Then the site; ties go to the first of the training data.
        best = max(trained, key=fit)
        one = all(entry["window"] == best["window"] for entry in trained)
        if reading.target is None and not one and not any(fit(best)):
            return default_window(modality, reading.site)  # no evidence for any of them
        return window_from_dict(dict(best["window"]))


def _is_at(entry: Mapping[str, Any], site: str) -> bool:
    """Whether training data come from the prompt's site or a part of it."""
    inner = normalise_site(str(entry["site"])).split(" and ")
    return any(site_contains(outer, place) for outer in site.split(" and ") for place in inner if outer and place)


def _named_length(target: str, text: str) -> int:
    """Length of the longest spelling of the target in the prompt, or 0."""
    known = find_target(target)
    spellings = (target, *(known.synonyms if known else ()))
    return max((len(s) for s in spellings if re.search(rf"\b{re.escape(s)}\b", text)), default=0)
