"""Fetch weights from the Hugging Face hub into its cache: only on request, licence first and hash after.

huggingface_hub downloads: it goes on where a connection was cut, and obeys HF_ENDPOINT (a mirror), HF_HUB_OFFLINE,
TRANSFORMERS_OFFLINE, HF_HOME and HF_TOKEN.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import CheckpointError, ConfigError, StorageError, why
from boltzformer_monai.limits import read_json
from boltzformer_monai.models.catalogue import Entry, entry_named
from boltzformer_monai.models.licence import Licence
from boltzformer_monai.models.place import CARD, CONFIG, WEIGHTS, hub_id
from boltzformer_monai.models.resume import finish_download
from boltzformer_monai.storage import FULL, REFUSED, file_sha256

__all__ = ["Fetched", "fetch", "hub_address", "stated_sha256"]

_log = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Fetched:
    """Weights in the hub's cache.

    Attributes:
        path: of the file of weights.
        sha256: of it.
        checked: what the hash was compared with: ``"catalogue"``, ``"hub"``, or ``""`` where nothing states one.
        licence: of the weights.
        entry: of the catalogue; None for another model of the hub.
    """

    path: Path
    sha256: str
    checked: str
    licence: Licence
    entry: Entry | None = None


def hub_address() -> str:
    """The hub, or the mirror that HF_ENDPOINT names."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT


def fetch(name: str, *, accept_licence: bool = False, file: str | None = None, revision: str | None = None) -> Fetched:
    """Fetch weights of the catalogue, or of any model of the hub.

    Args:
        name: of the catalogue, or ``OWNER/NAME``.
        accept_licence: whoever asks has read the licence; needed where it is restricted or not known.
        file: of the weights in a model of the hub; by default ``model.safetensors`` with its ``config.json``.
        revision: branch, tag or commit; by default ``main``.

    Raises:
        ConfigError: the name is not known, or the licence was not accepted.
        CheckpointError: it cannot be fetched, or is not what its hash says.
        StorageError: the cache cannot be written.
    """
    known = hub_id(name)
    if known is None:
        entry = entry_named(name)
        if file is not None:
            raise ConfigError(f"--file is for models of the hub; {name} is {entry.file} of {entry.repo}")
        _require_accepted(entry.licence, entry.repo, accept_licence)
        for other in entry.others:
            _download(entry.repo, other, revision, gated=entry.gated)
        return _checked(entry.repo, entry.file, revision, entry.licence, entry)
    repo, in_name = known
    if revision is not None and in_name is not None:
        raise ConfigError(f"{name} names a revision already; leave --revision out")
    revision = revision or in_name
    licence = _stated_licence(repo, revision, is_model=file is None)
    _require_accepted(licence, repo, accept_licence)
    return _checked(repo, file or WEIGHTS, revision, licence, None)


def _require_accepted(licence: Licence, repo: str, accepted: bool) -> None:
    if licence.restricted and not accepted:
        msg = (
            f"the licence of {repo} restricts what its weights may be used for ({licence}); "
            "read it, and add --accept-licence"
        )
        raise ConfigError(msg)
    _log.info("licence of %s: %s", repo, licence)


def _stated_licence(repo: str, revision: str | None, *, is_model: bool) -> Licence:
    """What the model's card says, and for a model folder what its config says; nothing is fetched but these."""
    stated = []
    if is_model:
        config = _download(repo, CONFIG, revision)
        with contextlib.suppress(OSError, ValueError, AttributeError, CheckpointError):
            found = Licence.of(read_json(config)["description"]["data"])
            stated += [found] if found is not None else []
    try:
        card = _card(_download(repo, CARD, revision, missing=FileNotFoundError))
        name = str(card.get("license_name") or card.get("license") or "")
        stated.append(Licence.named(name, url=f"{hub_address()}/{repo}"))
    except FileNotFoundError:
        stated += [] if stated else [Licence.named(None, url=f"{hub_address()}/{repo}")]
    return max(stated, key=lambda each: each.restricted)


def _card(path: Path) -> Mapping[str, Any]:
    import yaml
    from huggingface_hub import ModelCard

    try:
        return dict(ModelCard.load(path, ignore_metadata_errors=True).data.to_dict())
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return {}


def _checked(repo: str, file: str, revision: str | None, licence: Licence, entry: Entry | None) -> Fetched:
    path = _download(repo, file, revision, gated=entry is not None and entry.gated)
    found = file_sha256(path)
    expected, by = stated_sha256(path, entry)
    if expected is not None and found != expected:
        for each in (path, path.resolve()):  # or the cache would go on giving it
            with contextlib.suppress(OSError):
                each.unlink()
        msg = (
            f"{file} of {repo} is not what the {by} says: its sha256 is {found[:16]}…, and {expected[:16]}… is stated; "
            "it was removed; fetch it again, and do not use it if it stays so"
        )
        raise CheckpointError(msg)
    if expected is None:
        _log.warning(
            "%s of %s: no hash of it is known, so only its size was checked; its sha256 is %s", file, repo, found
        )
    else:
        _log.info("%s of %s: its sha256 is the one that the %s states", file, repo, by)
    return Fetched(path, found, by, licence, entry)


def stated_sha256(path: Path, entry: Entry | None) -> tuple[str | None, str]:
    """The hash that a file of the hub's cache must have, and who states it; ``None`` and ``""`` if nobody does."""
    blob = path.resolve().name  # which is the hash that the hub states, for files of any size
    if entry is not None and entry.sha256:
        return entry.sha256, "catalogue"
    return (blob, "hub") if _SHA256.fullmatch(blob) else (None, "")


def _download(
    repo: str, file: str, revision: str | None, *, gated: bool = False, missing: type[Exception] = CheckpointError
) -> Path:
    """A file of the hub, from its cache where it is there already.

    Raises:
        CheckpointError: it cannot be fetched; one line that says why.
        StorageError: the cache cannot be written.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    offline, address = constants.HF_HUB_OFFLINE, hub_address()
    what = f"{file} of {repo}" + (f" at {revision}" if revision else "")
    page = f"{address}/{repo}"
    try:
        if not offline:
            finish_download(repo, file, revision, endpoint=address)
        return Path(hf_hub_download(repo, file, revision=revision, endpoint=address, local_files_only=offline))
    except HFValidationError as error:
        raise CheckpointError(f"{repo} is no id of a model on the hub ({why(error)})") from error
    except GatedRepoError as error:
        raise CheckpointError(_gated(what, page)) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if offline:
            msg = f"{what}: not in the cache, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids to fetch it; unset it"
        elif isinstance(error.__cause__, HfHubHTTPError):
            msg = _status(error.__cause__.response.status_code, what, page)
        else:
            cause = why(error.__cause__) if error.__cause__ is not None else "no response"
            msg = (
                f"{what}: {address} cannot be reached ({cause}); check the connection, or name a mirror by HF_ENDPOINT"
            )
        raise CheckpointError(msg) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{what}: there is no such revision; see {page}") from error
    except EntryNotFoundError as error:
        msg = f"{what}: there is no such file; see {page}/tree/{revision or 'main'}, and give --file"
        raise missing(msg) from error
    except RepositoryNotFoundError as error:
        if gated:
            raise CheckpointError(_gated(what, page)) from error
        msg = f"{what}: there is no such model, or it is private; check the id, or log in: hf auth login"
        raise CheckpointError(msg) from error
    except HfHubHTTPError as error:
        raise CheckpointError(_status(error.response.status_code, what, page)) from error
    except OSError as error:
        if error.errno in FULL | REFUSED | {errno.ENOTDIR, errno.EEXIST}:  # the last two: a file is in the way
            msg = f"{what}: the cache cannot be written ({why(error)}); free space, or name another folder by HF_HOME"
            raise StorageError(msg) from error
        raise CheckpointError(f"{what}: was not fetched whole ({why(error)}); run the command again") from error
    except Exception as error:  # of the HTTP library, whose errors derive from nothing of ours
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests", "urllib3"):
            msg = f"{what}: the connection to {address} broke off ({why(error)}); run the command again"
            raise CheckpointError(msg) from error
        raise


def _status(status: int, what: str, page: str) -> str:
    if status in (401, 403):
        return _gated(what, page)
    return f"{what}: {page} responds with status {status}; try again later"


def _gated(what: str, page: str) -> str:
    return (
        f"{what}: access is gated; accept the conditions at {page} with a Hugging Face account, "
        "then log in with `hf auth login` (or set HF_TOKEN), and run the command again"
    )
