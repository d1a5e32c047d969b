"""What ``--conf KEY VALUE`` may say, and where the server keeps what it learns."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boltzformer_monai.data.prompts import split_prompts
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers.prompt_groups import checked_prompts
from boltzformer_monai.limits import machine_memory
from boltzformer_monai.modality import stated_modality

_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
_ORIGIN = re.compile(rf"https?://{_NAME.pattern}(:\d+)?/?")
_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of the server; the names are those of ``--conf``.

    Attributes:
        checkpoint: ``model.pt`` of a training; read only.
        workspace: folder of what the server learns; default: ``.boltzformer`` in the studies folder.
        prompts: default prompts, ``;`` between them; default: the targets that the checkpoint knows.
        device: ``"auto"``, ``"cpu"``, ``"cuda:1"``, …
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``.
        modality: ``"CT"`` or ``"MR"`` of scans that do not state theirs.
        cache_mb: image features and scans kept between requests, in megabytes; 0 keeps none; default: a quarter of
            the machine's memory, as a scan's features can be gigabytes.
        memory_gb: memory that reading one file may take, in gigabytes; 0: half of what the process may have.
        together: prompts decoded together on a CPU; one by one, a single prompt is cheapest.
        slices_together: slices decoded together on a CPU; 0: the more, the smaller the network's pictures are.
        batch_size: slices per pass on a GPU.
        upload_mb: largest upload.
        queue: segmentations, and uploads, that may wait for their turn; what comes then is refused.
        connections: connections that may stay while they wait for their client.
        header_s: seconds for the header of a request.
        body_s: seconds in which a part of a body must come, and of a reply must be taken.
        epochs: of one training.
        learning_rate: of one training.
        origins: web pages of other servers that may ask, ``https://viewer.example.org``, ``;`` between them.
        hosts: names with a dot that this server goes by in a browser, ``;`` between them; addresses need no naming.
        auto_scoring: score the scans without being asked, when the server starts and after every training.

    Raises:
        ConfigError: a setting is unknown or out of range.
        PromptError: a default prompt is empty or given twice.
    """

    checkpoint: Path
    workspace: Path
    prompts: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "auto"
    modality: str | None = None
    cache_mb: int = field(default_factory=lambda: default_cache_mb())
    memory_gb: float = 0.0
    together: int = 1
    slices_together: int = 0
    batch_size: int = 4
    upload_mb: int = 2048
    queue: int = 32
    connections: int = 512
    header_s: float = 15.0
    body_s: float = 30.0
    epochs: int = 10
    learning_rate: float = 1e-4
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    auto_scoring: bool = False

    @classmethod
    def from_conf(cls, conf: Mapping[str, Any], *, studies: str) -> ServerSettings:
        """Settings of MONAI Label's ``--conf`` pairs.

        Raises:
            ConfigError: a key is unknown, a value cannot be used, or no checkpoint is given.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        for key in conf:
            if key not in known and key != "server_mode":  # MONAI Label's own
                near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
                msg = f"unknown --conf {key}; {f'did you mean {near[0]}?' if near else 'known: ' + ', '.join(known)}"
                raise ConfigError(msg)
        if not conf.get("checkpoint"):
            msg = "no checkpoint given; add --conf checkpoint PATH (the model.pt of a training)"
            raise ConfigError(msg)
        values: dict[str, Any] = {"workspace": conf.get("workspace") or default_workspace(studies)}
        for key, value in conf.items():
            if key in known and value not in ("", None):
                values[key] = _parsed(key, str(known[key].type), value)
        values["workspace"] = Path(values["workspace"]).expanduser().absolute()
        return cls(**values)

    def __post_init__(self) -> None:
        counts = (
            "cache_mb",
            "together",
            "slices_together",
            "batch_size",
            "upload_mb",
            "queue",
            "connections",
            "epochs",
        )
        for name in counts:
            low = 0 if name in ("cache_mb", "slices_together") else 1
            if getattr(self, name) < low:
                msg = f"{name} must be at least {low}, got {getattr(self, name)}"
                raise ConfigError(msg)
        for name in ("header_s", "body_s"):
            if not 1 <= getattr(self, name) <= 3600:
                msg = f"{name} must be from 1 to 3600 seconds, got {getattr(self, name)}"
                raise ConfigError(msg)
        if not 0 <= self.memory_gb < math.inf:
            msg = f"memory_gb must be at least 0, got {self.memory_gb}"
            raise ConfigError(msg)
        if not 0 < self.learning_rate < 1:
            msg = f"learning_rate must lie between 0 and 1, got {self.learning_rate}"
            raise ConfigError(msg)
        if self.prompts:
            checked_prompts(self.prompts)
        if self.modality is not None:
            object.__setattr__(self, "modality", stated_modality(self.modality))
        if odd := next((each for each in self.origins if not _ORIGIN.fullmatch(each)), None):
            msg = f"origins must look like https://viewer.example.org, got {odd!r}"
            raise ConfigError(msg)
        if odd := next((each for each in self.hosts if not _NAME.fullmatch(each)), None):
            msg = f"hosts must be names like label.example.org, got {odd!r}"
            raise ConfigError(msg)

    @property
    def trained_checkpoint(self) -> Path:
        """What the server's own training writes."""
        return self.workspace / "model" / "model.pt"

    @property
    def current_checkpoint(self) -> Path:
        """The server's own training, once there is one; else what it was started with."""
        return self.trained_checkpoint if self.trained_checkpoint.is_file() else self.checkpoint


def default_workspace(studies: str) -> str:
    """A hidden folder in the studies folder; for a DICOMweb server one in the user's cache."""
    if studies.startswith(("http://", "https://")):
        name = hashlib.sha256(studies.rstrip("/").encode()).hexdigest()[:16]
        return str(Path.home() / ".cache" / "boltzformer" / name)
    return str(Path(studies) / ".boltzformer")


def default_cache_mb() -> int:
    """A quarter of the memory that the process may have."""
    return machine_memory() // 4 // 2**20


def _parsed(key: str, kind: str, value: Any) -> Any:
    try:
        if kind == "bool":
            return _TRUTH[str(value).lower()]
        if kind in ("int", "float"):
            return int(value) if kind == "int" else float(value)
    except (KeyError, ValueError):
        msg = f"--conf {key} takes {'true or false' if kind == 'bool' else 'a number'}, got {value!r}"
        raise ConfigError(msg) from None
    if key in ("prompts", "origins", "hosts"):
        return tuple(split_prompts(value))
    return Path(str(value)).expanduser().absolute() if kind == "Path" else str(value)
