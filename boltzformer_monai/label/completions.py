"""Help while a prompt is typed: names that begin like it, and how it would be read."""

from __future__ import annotations

from typing import Any

from boltzformer_monai.data.prompt_check import PromptReader
from boltzformer_monai.errors import PromptError


def complete_prompt(reader: PromptReader, text: str, limit: int = 8) -> dict[str, Any]:
    """Targets whose name begins like a text, and how the text itself would be read.

    Args:
        reader: of the checkpoint's targets.
        text: as typed so far.
        limit: at most so many names.

    Returns:
        ``{"query", "understood", "near", "refused", "completions": [{"target", "name"}]}``; ``understood`` is None for
        an unknown text, else ``{"target", "shown", "score", "changes", "size_limit"}``. ``near`` lists names that may
        be meant instead; ``refused`` says why the text would be refused, if it would.
    """
    reading, refused = None, None
    try:
        reading = reader.read(text) if text.strip() else None
    except PromptError as error:
        refused = str(error)
    understood = None
    if reading is not None and reading.target is not None:
        limits = None if reading.size_limit is None else reading.size_limit.as_dict()
        understood = {
            "target": reading.target, "shown": reading.shown, "score": reading.score,
            "changes": list(reading.changes), "size_limit": limits,
        }  # fmt: skip
    near = list(reading.near) if reading is not None and understood is None else []
    completions = [{"target": target, "name": name} for target, name in reader.complete(text, limit=limit)]
    return {"query": text, "understood": understood, "near": near, "refused": refused, "completions": completions}
