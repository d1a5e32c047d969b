"""MONAI Label's sessions (uploaded scans with an expiry), written atomically."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from monailabel.utils.sessions import SessionInfo, Sessions
from starlette.datastructures import UploadFile

from boltzformer_monai.errors import why
from boltzformer_monai.storage import atomic_path, sweep, temporary_beside

_log = logging.getLogger(__name__)
_METADATA = "meta.info"
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class ScanSessions(Sessions):
    """One folder a session, with its files and metadata.

    MONAI Label's own clean-up would stop at the first incomplete session.
    """

    def add_files(self, files: Sequence[UploadFile], expiry: int) -> tuple[str, SessionInfo]:
        """Store renamed files as a session; its image is the one file, or the folder of several.

        The session expires so many seconds after the last access; 0 for the maximum.

        Raises:
            OSError: they cannot be written; nothing is left of them.
        """
        name = str(uuid.uuid4())
        folder = Path(self.store_path, name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        image = "files" if len(files) > 1 else str(files[0].filename)
        session = SessionInfo()
        session.name, session.path, session.image, session.meta = name, str(folder), str(folder / image), {}
        session.create_ts = session.last_access_ts = int(time.time())
        session.expiry = min(expiry or self.expiry, self.expiry)
        staged = temporary_beside(folder)
        try:
            inside = staged / image if len(files) > 1 else staged
            inside.mkdir(parents=True)
            for file in files:
                file.file.seek(0)
                with (inside / str(file.filename)).open("wb") as copy:
                    shutil.copyfileobj(file.file, copy)
            (staged / _METADATA).write_text(session.to_str(), encoding="utf-8")
            os.replace(staged, folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        self[name] = session
        return name, session

    def remove_session(self, session_id: str) -> None:
        """Remove a session at once, even if its files cannot be deleted now.

        Raises:
            OSError: it cannot be removed, and stays.
        """
        folder = Path(self.store_path, session_id)
        removed = temporary_beside(folder)
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, removed)
        self.pop(session_id, None)
        shutil.rmtree(removed, ignore_errors=True)

    def remove_expired(self) -> int:
        """Remove expired sessions; returns how many."""
        count, store = 0, Path(self.store_path)
        sweep(store)
        for folder in store.iterdir() if store.is_dir() else ():
            if not _ID.fullmatch(folder.name):
                continue  # not a session
            try:
                session = self.get_session(folder.name, update_ts=False, fetch_cache=False)
                if session is None or 0 < session.expiry < time.time() - session.last_access_ts:
                    self.remove_session(folder.name)
                    count += 1
            except (OSError, ValueError) as error:
                _log.warning("session not removed: %s", error)
        return count

    def _write_meta_info(self, session_id: str, session_info: SessionInfo) -> None:
        """Note the access; a failure is only logged."""
        try:
            with atomic_path(Path(self.store_path, session_id, _METADATA), durable=False) as temporary:
                temporary.write_text(session_info.to_str(), encoding="utf-8")
        except OSError as error:
            _log.warning("access time of a session not written: %s", why(error))
