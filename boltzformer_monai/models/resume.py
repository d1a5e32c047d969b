"""Finish a download that was killed.

huggingface_hub goes on where a connection was cut, and begins anew in another process. What a killed one left lies in
its cache, named after the hash of the whole file: content that was changed since has another name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlparse

from boltzformer_monai.storage import file_sha256

_SHA256 = re.compile(r"[0-9a-f]{64}")


def finish_download(repo: str, file: str, revision: str | None, *, endpoint: str) -> None:
    """Complete a file of the hub in its cache, where a part of it is there; otherwise do nothing.

    A file whose hash is wrong in the end is removed, so that it is fetched anew. Xet's downloads keep chunks of their
    own and are left to it.

    Raises:
        OSError: the cache cannot be written, or the server sent too much or too little.
        Exception: of huggingface_hub or its HTTP library.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, is_xet_available, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    cache, folder = Path(constants.HF_HUB_CACHE), repo_folder_name(repo_id=repo, repo_type="model")
    if next((cache / folder / "blobs").glob("*.incomplete"), None) is None:
        return
    url = hf_hub_url(repo, file, revision=revision, endpoint=endpoint)
    found = get_hf_file_metadata(url)
    if found.etag is None or found.size is None or not _SHA256.fullmatch(found.etag):
        return
    if found.xet_file_data is not None and is_xet_available():
        return
    blob, lock = cache / folder / "blobs" / found.etag, cache / ".locks" / folder / f"{found.etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):  # that a running download holds
        parts = sorted(blob.parent.glob(f"{found.etag}*.incomplete"), key=lambda each: each.stat().st_size)
        if not parts or blob.exists():
            return
        part = parts.pop()
        for other in parts:
            other.unlink()
        headers = build_hf_headers()
        if urlparse(url).netloc != urlparse(found.location).netloc:
            headers.pop("authorization", None)
        try:
            if (size := part.stat().st_size) < found.size:
                with part.open("ab") as written:
                    http_get(found.location, written, resume_size=size, headers=headers, expected_size=found.size)
        except OSError:
            if part.stat().st_size > found.size:  # of a server that knows no ranges: the next try begins anew
                part.unlink()
            raise
        if file_sha256(part) == found.etag:
            os.replace(part, blob)
        else:
            part.unlink()
