"""What ``--conf KEY VALUE`` may say, and where the server keeps what it learns."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import ConfigError

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
        cache_mb: image features and scans kept between requests, in megabytes; 0 keeps none.
        together: prompts decoded together on a CPU; one by one, a single prompt is cheapest.
        slices_together: slices decoded together on a CPU.
        batch_size: slices per pass on a GPU.
        upload_mb: largest upload.
        epochs: of one training.
        learning_rate: of one training.
        auto_scoring: score the scans without being asked, when the server starts and after every training.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    checkpoint: Path
    workspace: Path
    prompts: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "auto"
    modality: str | None = None
    cache_mb: int = 2048
    together: int = 1
    slices_together: int = 8
    batch_size: int = 4
    upload_mb: int = 2048
    epochs: int = 10
    learning_rate: float = 1e-4
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
        for name in ("cache_mb", "together", "slices_together", "batch_size", "upload_mb", "epochs"):
            low = 0 if name == "cache_mb" else 1
            if getattr(self, name) < low:
                msg = f"{name} must be at least {low}, got {getattr(self, name)}"
                raise ConfigError(msg)
        if not 0 < self.learning_rate < 1:
            msg = f"learning_rate must lie between 0 and 1, got {self.learning_rate}"
            raise ConfigError(msg)
        if self.modality not in (None, "CT", "MR"):
            msg = f"modality must be CT or MR, got {self.modality!r}"
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


def split_prompts(text: str) -> tuple[str, ...]:
    """``"liver; left kidney"`` → its prompts."""
    return tuple(part.strip() for part in text.split(";") if part.strip())


def _parsed(key: str, kind: str, value: Any) -> Any:
    try:
        if kind == "bool":
            return _TRUTH[str(value).lower()]
        if kind in ("int", "float"):
            return int(value) if kind == "int" else float(value)
    except (KeyError, ValueError):
        msg = f"--conf {key} takes {'true or false' if kind == 'bool' else 'a number'}, got {value!r}"
        raise ConfigError(msg) from None
    if key == "prompts":
        return split_prompts(str(value)) if isinstance(value, str) else tuple(value)
    return Path(str(value)).expanduser().absolute() if kind == "Path" else str(value)
