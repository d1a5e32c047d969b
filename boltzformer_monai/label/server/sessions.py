"""Uploaded scans that are kept for a while: MONAI Label's sessions, each of which is there as a whole or not at all."""

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

__all__ = ["ScanSessions"]

_log = logging.getLogger(__name__)
_NOTES = "meta.info"
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class ScanSessions(Sessions):
    """Folders by id, with the files and a note on them.

    MONAI Label's would stop tidying up at the first folder of a session that was never finished.
    """

    def add_files(self, files: Sequence[UploadFile], expiry: int) -> tuple[str, SessionInfo]:
        """Keep files; one is the session's image, of several it is their folder.

        Args:
            files: with the names that they get.
            expiry: seconds without a question after which it goes; 0 for the most.

        Raises:
            OSError: they cannot be kept; nothing is left of them.
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
            (staged / _NOTES).write_text(session.to_str(), encoding="utf-8")
            os.replace(staged, folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        self[name] = session
        return name, session

    def remove_session(self, session_id: str) -> None:
        """Remove one; it is gone at once, also if its files cannot be deleted now.

        Raises:
            OSError: it cannot be removed, and stays.
        """
        folder = Path(self.store_path, session_id)
        gone = temporary_beside(folder)
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, gone)
        self.pop(session_id, None)
        shutil.rmtree(gone, ignore_errors=True)

    def remove_expired(self) -> int:
        """Remove what nobody has asked for long; returns how many."""
        count, store = 0, Path(self.store_path)
        sweep(store)
        for folder in store.iterdir() if store.is_dir() else ():
            if not _ID.fullmatch(folder.name):
                continue  # nothing of ours
            try:
                session = self.get_session(folder.name, update_ts=False, fetch_cache=False)
                if session is None or 0 < session.expiry < time.time() - session.last_access_ts:
                    self.remove_session(folder.name)
                    count += 1
            except (OSError, ValueError) as error:
                _log.warning("a session is not removed: %s", error)
        return count

    def _write_meta_info(self, session_id: str, session_info: SessionInfo) -> None:
        """That it was asked for is worth no refusal."""
        try:
            with atomic_path(Path(self.store_path, session_id, _NOTES), durable=False) as temporary:
                temporary.write_text(session_info.to_str(), encoding="utf-8")
        except OSError as error:
            _log.warning("not noted that a session was asked for: %s", why(error))
