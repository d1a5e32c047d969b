"""Settings given by ``--conf KEY VALUE``, and the paths of the workspace."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from boltzformer_monai.data.prompts import checked_prompts, split_prompts
from boltzformer_monai.errors import ConfigError, reject_unknown
from boltzformer_monai.label.api_keys import KeyFile
from boltzformer_monai.label.validation import Integer, Number, validated
from boltzformer_monai.limits import machine_memory
from boltzformer_monai.modality import stated_modality
from boltzformer_monai.models.place import hub_id, locate

_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
_GUARDS = ("keys", "audit", "audit_folder")  # an empty variable in a script must not leave the server without them
_ORIGIN = re.compile(rf"https?://{_NAME.pattern}(:\d+)?/?")


def _split(value: Any) -> Any:
    return split_prompts(value) if isinstance(value, str) else value


def _check_prompts(prompts: tuple[str, ...]) -> tuple[str, ...]:
    if prompts:
        checked_prompts(prompts)
    return prompts


def _matching(pattern: re.Pattern[str], example: str) -> AfterValidator:
    def check(values: tuple[str, ...]) -> tuple[str, ...]:
        if not all(pattern.fullmatch(value) for value in values):
            raise ValueError(f"must look like {example}")
        return values

    return AfterValidator(check)


_AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
_Texts = Annotated[tuple[str, ...], BeforeValidator(_split)]


def _check_keys(path: Path) -> Path:
    KeyFile(path)
    return path


class ServerSettings(BaseModel):
    """Settings of the server; the fields are the keys of ``--conf``.

    Attributes:
        checkpoint: ``model.pt`` of a training, a model folder, or the id of a fetched model; never written.
        workspace: folder for checkpoints, scores and names; default: ``.boltzformer`` in the studies folder.
        prompts: default prompts, ``;`` between them; default: the targets that the checkpoint knows.
        device: ``"auto"``, ``"cpu"``, ``"cuda:1"``, …
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``.
        modality: ``"CT"`` or ``"MR"`` of scans that do not state theirs.
        cache_mb: image features and scans kept between requests, in megabytes; 0 keeps none; default: a quarter of
            the machine's memory, as a scan's features can be gigabytes.
        memory_gb: memory limit for reading one file, in gigabytes; 0: half of what the process may have.
        together: prompts decoded together on a CPU; one by one, a single prompt is cheapest.
        slices_together: slices decoded together on a CPU; 0: more for smaller input sizes.
        batch_size: slices per pass on a GPU.
        upload_mb: largest upload.
        queue: length of the queues of segmentations and of uploads; further requests get status 429.
        connections: open connections that may be idle.
        header_s: timeout of a request's header, in seconds.
        body_s: timeout of each part of a request's body and of a reply, in seconds.
        segment_s: time limit of one segmentation, in seconds, waiting not included; 0: none.
        drain_s: time that requests under way have to end after SIGTERM, in seconds.
        epochs: of one training.
        learning_rate: of one training.
        key_metric: selects the best epoch of a training: ``val_loss`` or a 2-D metric of the table.
        origins: further allowed origins (CORS), ``https://viewer.example.org``, ``;`` between them.
        hosts: further allowed values of ``Host`` with a dot, ``;`` between them; IP addresses are always allowed.
        keys: file of API keys, see :mod:`~boltzformer_monai.label.api_keys`; every request for data needs one then.
        audit: ``"off"``; ``"on"``: a line for every request for data; ``"required"``: none is answered without.
        audit_folder: of the audit log; default: ``audit`` in the workspace.
        audit_mb: size at which a new file of it is begun.
        audit_keep: number of its full files that are kept; 0 keeps all.
        access_log: write a line for every request into the log; its route and user, no scan.
        auto_scoring: score the scans when the server starts and after every training.

    Raises:
        PromptError: a default prompt is empty or given twice.
        ConfigError: the file of keys cannot be read.
        pydantic.ValidationError: another setting is unknown or out of range; one line by :meth:`from_conf`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: _AbsolutePath
    workspace: _AbsolutePath
    prompts: Annotated[_Texts, AfterValidator(_check_prompts)] = ()
    device: str = "auto"
    precision: str = "auto"
    modality: Annotated[str, AfterValidator(stated_modality)] | None = None
    cache_mb: Annotated[Integer, Field(ge=0)] = Field(default_factory=lambda: machine_memory() // 4 // 2**20)
    memory_gb: Annotated[Number, Field(ge=0)] = 0.0
    together: Annotated[Integer, Field(ge=1)] = 1
    slices_together: Annotated[Integer, Field(ge=0)] = 0
    batch_size: Annotated[Integer, Field(ge=1)] = 4
    upload_mb: Annotated[Integer, Field(ge=1)] = 2048
    queue: Annotated[Integer, Field(ge=1)] = 32
    connections: Annotated[Integer, Field(ge=1)] = 512
    header_s: Annotated[Number, Field(ge=1, le=3600)] = 15.0
    body_s: Annotated[Number, Field(ge=1, le=3600)] = 30.0
    segment_s: Annotated[Number, Field(ge=0)] = 3600.0
    drain_s: Annotated[Number, Field(ge=0, le=86_400)] = 60.0
    epochs: Annotated[Integer, Field(ge=1)] = 10
    learning_rate: Annotated[Number, Field(gt=0, lt=1)] = 1e-4
    key_metric: str = "val_loss"
    origins: Annotated[_Texts, _matching(_ORIGIN, "https://viewer.example.org")] = ()
    hosts: Annotated[_Texts, _matching(_NAME, "label.example.org")] = ()
    keys: Annotated[_AbsolutePath, AfterValidator(_check_keys)] | None = None
    audit: Literal["off", "on", "required"] = "on"
    audit_folder: _AbsolutePath | None = None
    audit_mb: Annotated[Integer, Field(ge=1)] = 100
    audit_keep: Annotated[Integer, Field(ge=0)] = 0
    access_log: bool = False
    auto_scoring: bool = False

    @classmethod
    def from_conf(cls, conf: Mapping[str, Any], *, studies: str) -> ServerSettings:
        """Settings from MONAI Label's ``--conf`` pairs.

        Raises:
            ConfigError: a key is unknown, a value cannot be used, or no checkpoint is given.
            CheckpointError: the model of this id was not fetched.
            PromptError: a default prompt is empty or given twice.
        """
        values = {key: value for key, value in conf.items() if key != "server_mode"}  # MONAI Label's own
        reject_unknown(values, cls.model_fields, what="--conf")
        if open_to_all := next((key for key in _GUARDS if values.get(key) == ""), None):
            raise ConfigError(f"--conf {open_to_all}: the value is empty; give one, or leave the setting out")
        values = {key: value for key, value in values.items() if value not in ("", None)}
        if "checkpoint" not in values:
            msg = "no checkpoint given; add --conf checkpoint PATH (the model.pt of a training, or a model folder)"
            raise ConfigError(msg)
        if hub_id(str(values["checkpoint"])) is not None:
            values["checkpoint"] = locate(values["checkpoint"]).path
        return validated(cls, {"workspace": default_workspace(studies), **values})

    @property
    def trained_checkpoint(self) -> Path:
        """The checkpoint that the server's own training writes."""
        return self.workspace / "model" / "model.pt"

    @property
    def current_checkpoint(self) -> Path:
        """The trained checkpoint if there is one, else the given one."""
        return self.trained_checkpoint if self.trained_checkpoint.is_file() else self.checkpoint


def default_workspace(studies: str) -> str:
    """A hidden folder in the studies folder; for a DICOMweb server one in the user's cache."""
    if studies.startswith(("http://", "https://")):
        name = hashlib.sha256(studies.rstrip("/").encode()).hexdigest()[:16]
        return str(Path.home() / ".cache" / "boltzformer" / name)
    return str(Path(studies) / ".boltzformer")
