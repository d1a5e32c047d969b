"""FROC: the share of objects found against false positives per scan, as candidates are taken by falling confidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from boltzformer_monai.evaluation.bootstrap import Bootstrap
from boltzformer_monai.evaluation.components import IOU_THRESHOLDS
from boltzformer_monai.evaluation.detection import FAINT, ObjectScore

__all__ = ["FALSE_POSITIVES", "fractions", "sensitivities", "summarise_froc"]

FALSE_POSITIVES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
"""False positives per scan at which the sensitivity is given."""

_CURVE = tuple(2 ** (step / 4) for step in range(-20, 13))  # 1/32 … 8


def sensitivities(
    confidence: np.ndarray, hit: np.ndarray, *, objects: float, scans: float, at: Sequence[float] = FALSE_POSITIVES
) -> list[float] | None:
    """The highest sensitivity without more than these false positives per scan.

    Candidates of equal confidence are taken together or not at all. There is no interpolation: where all candidates
    have fewer false positives, the sensitivity of all is given.

    Args:
        confidence: ``(C,)`` of the candidates.
        hit: ``(C,)`` bool: finds an object that none before it found; the others are false positives.
        objects: how many there are to find.
        scans: how many were searched.
        at: false positives per scan.

    Returns:
        One for each of ``at``, 0 to 1; None without objects.
    """
    if not objects:
        return None
    order = np.argsort(-confidence, kind="stable")
    counts, sizes = np.ones((1, 1)), (np.array([scans]), np.array([objects]))
    return [
        float(value)
        for value in _sensitivities(counts, confidence[order], hit[order], np.zeros_like(order), sizes, at)[0]
    ]


def summarise_froc(
    scanned: Iterable[tuple[str, str]], objects: Iterable[ObjectScore], *, per: str, bootstrap: Bootstrap
) -> dict[str, Any] | None:
    """FROC of every target and of all, with intervals by patient.

    Over all targets a scan counts once for each prompt that it was searched for.

    Args:
        scanned: target and patient of every slice or volume that was searched for it.
        objects: and candidates of these.
        per: what a scan is, in words.
        bootstrap: of the intervals.

    Returns:
        ``per``, ``false_positives``, ``faintest`` confidence of a pixel of a candidate, ``overall`` and ``by_target``:
        for every suffix of the IoU the numbers of ``scans`` and ``objects``, ``sensitivity`` with ``low`` and ``high``
        at each of ``false_positives``, their ``mean``, ``curve`` (pairs of false positives and sensitivity), and of the
        mask itself ``mask_false_positives`` per scan and ``mask_sensitivity``. None where confidences are unknown.
    """
    everything, scans = list(objects), list(scanned)
    if any(each.confidence is None for each in everything if each.kind != "truth"):
        return None
    groups: dict[str, tuple[list[ObjectScore], list[str]]] = {
        target: ([], []) for target in sorted({t for t, _ in scans})
    }
    for each in everything:
        groups[each.target][0].append(each)
    for target, patient in scans:
        groups[target][1].append(patient)
    return {
        "per": per,
        "false_positives": list(FALSE_POSITIVES),
        "faintest": FAINT,
        "overall": _froc(everything, [patient for _, patient in scans], bootstrap),
        "by_target": {target: _froc(*group, bootstrap) for target, group in groups.items()},
    }


def _froc(objects: Sequence[ObjectScore], scanned: Sequence[str], bootstrap: Bootstrap) -> dict[str, Any]:
    patients = {patient: index for index, patient in enumerate(sorted(set(scanned)))}
    scans = np.bincount([patients[patient] for patient in scanned], minlength=len(patients)).astype(float)
    truth = np.zeros(len(patients))
    for each in objects:
        truth[patients[each.patient]] += each.kind == "truth"
    candidates = sorted((each for each in objects if each.kind != "truth"), key=lambda each: -(each.confidence or 0))
    confidence = np.array([each.confidence for each in candidates], float)
    owner = np.array([patients[each.patient] for each in candidates], int)
    in_mask = np.array([each.kind == "mask" for each in candidates], bool)
    found = {}
    for suffix in IOU_THRESHOLDS:
        hit = np.array([getattr(each, suffix) for each in candidates], bool)
        found[suffix] = _estimates(confidence, hit, owner, (scans, truth), in_mask, bootstrap)
    return found


def _estimates(
    confidence: np.ndarray,
    hit: np.ndarray,
    owner: np.ndarray,
    sizes: tuple[np.ndarray, np.ndarray],
    in_mask: np.ndarray,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """The FROC at one IoU; candidates by falling confidence, scans and objects by patient."""

    def statistic(counts: np.ndarray) -> np.ndarray:
        values = _sensitivities(counts, confidence, hit, owner, sizes, FALSE_POSITIVES)
        return np.concatenate([values, values.mean(1, keepdims=True)], axis=1)

    scans, objects = (float(each.sum()) for each in sizes)
    once = np.ones((1, len(sizes[0])))
    known = objects > 0
    values = [float(value) if known else None for value in statistic(once)[0]]
    ends = (
        bootstrap.interval(statistic, len(sizes[0]), width=len(confidence)) if known else [(None, None)] * len(values)
    )
    estimates = [{"mean": value, "low": low, "high": high} for value, (low, high) in zip(values, ends, strict=True)]
    curve = _sensitivities(once, confidence, hit, owner, sizes, _CURVE)[0] if known else []
    return {
        "scans": int(scans),
        "objects": int(objects),
        "sensitivity": estimates[:-1],
        "mean": estimates[-1],
        "curve": [[at, float(value)] for at, value in zip(_CURVE, curve, strict=False)],
        "mask_false_positives": float((in_mask & ~hit).sum() / scans) if scans else None,
        "mask_sensitivity": float((in_mask & hit).sum() / objects) if known else None,
    }


def _sensitivities(
    counts: np.ndarray,
    confidence: np.ndarray,
    hit: np.ndarray,
    owner: np.ndarray,
    sizes: tuple[np.ndarray, np.ndarray],
    at: Sequence[float],
) -> np.ndarray:
    """How often each patient was drawn ``(R, patients)`` → sensitivities ``(R, len(at))``; NaN without objects."""
    scans, objects = (counts @ each for each in sizes)
    weights = counts[:, owner].astype(float)
    lasts = np.flatnonzero(np.diff(confidence, append=-1.0))  # of each group of equal confidence
    false = np.cumsum(weights * ~hit, axis=1)[:, lasts]
    true = np.cumsum(weights * hit, axis=1)[:, lasts]
    true = np.concatenate([np.zeros((len(counts), 1)), true], axis=1)
    taken = np.stack([(false <= limit * scans[:, None]).sum(1) for limit in at], axis=1)
    share = np.take_along_axis(true, taken, axis=1)
    return np.divide(share, objects[:, None], out=np.full(share.shape, np.nan), where=objects[:, None] > 0)


def fractions(summary: Mapping[str, Any]) -> list[str]:
    """The false positives per scan as headings: ``1/8`` … ``8``."""
    return [f"1/{round(1 / at)}" if at < 1 else f"{at:g}" for at in summary["false_positives"]]
