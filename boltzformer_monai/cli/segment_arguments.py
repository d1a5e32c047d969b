"""Arguments of ``boltzformer segment`` → settings, and checks of file names."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boltzformer_monai.data.windows import StoredGrey
from boltzformer_monai.errors import ConfigError, PromptError, VolumeError, why
from boltzformer_monai.inferers.run_settings import DICOM_ENDINGS, ENDINGS, RunSettings
from boltzformer_monai.io.challenge_npz import ENDING, ChallengeCase, is_challenge_file, read_case
from boltzformer_monai.io.formats import is_image_file
from boltzformer_monai.limits import read_text
from boltzformer_monai.models.place import locate

__all__ = ["check_inputs", "check_output", "check_sharing", "model_files", "prompts_in", "run_settings"]

# Likely a mistyped file ending, not a folder.
_A_FILE = re.compile(
    r"(?i)\.(nii(\.\w*)?|n?rrd|nhdr|mh[ad]|hdr|img|dcm\w*|dicom|json|png|jpe?g|tiff?|gz|zip|txt|pt|np[yz])$"
)


def run_settings(arguments: argparse.Namespace) -> RunSettings:
    """Build the settings.

    Raises:
        PromptError: the prompts cannot be used, or there are none.
        ConfigError: a value is unknown or out of range.
    """
    case = _case(arguments)
    prompts = [*arguments.prompts, *prompts_in(arguments.prompts_file)]
    of_case = {} if case is None or prompts else case.prompts
    prompts = prompts or list(of_case.values())
    if not prompts:
        raise PromptError('no prompt given; name a target, e.g. --prompts "left kidney", or give --prompts-file FILE')
    return RunSettings(
        prompts=prompts,
        seed=arguments.seed,
        threshold=arguments.threshold,
        planes=arguments.planes,
        in_plane=arguments.in_plane,
        presence=arguments.presence == "auto",
        repeats=arguments.uncertainty or 1,
        tta=arguments.tta,
        arbitration=arguments.arbitration,
        masks=arguments.masks,
        ending=_ending(arguments.output) or f".{arguments.format or 'nii.gz'}",
        preview=arguments.preview is not None,
        window=arguments.window if case is None else StoredGrey(),
        modality=arguments.modality,
        literal=arguments.literal or bool(of_case),  # what a case asks is meant as it is written
        protocol=arguments.protocol,
        protocol_settings=_protocol_settings(arguments.protocol_settings),
        lesion_min_ml=arguments.lesion_min_ml,
        lesion_min_mm=arguments.lesion_min_mm,
        point=arguments.point,
        keep_lesions=arguments.keep_lesions,
        look_closer=arguments.look_closer,
        label_values=tuple(of_case) or None,
        batch_size=arguments.batch_size,
    )


def _case(arguments: argparse.Namespace) -> ChallengeCase | None:
    """The case of the challenge that the image is, if it is one."""
    if not is_challenge_file(arguments.image):
        return None
    _check_image(arguments.image)  # before its prompts are asked for
    if arguments.window is not None:
        raise ConfigError(f"{arguments.image}: its grey values are windowed already; leave --window out")
    return read_case(arguments.image)


def _protocol_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` → names and values: true, false, numbers, or else texts."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ConfigError(f"--protocol-settings takes NAME=VALUE, e.g. suppress=false, not {pair[:60]!r}")
        try:
            found[name] = json.loads(value.lower())
        except ValueError:
            found[name] = value
    return found


def prompts_in(path: Path | None) -> list[str]:
    """Read the prompts of a file; an empty list without a file.

    Raises:
        PromptError: it cannot be read, is not UTF-8, or has no prompt.
    """
    if path is None:
        return []
    try:
        text = read_text(path, encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise PromptError(f"{path}: is no text in UTF-8; save it with this encoding") from None
    except OSError as error:
        raise PromptError(f"{path}: cannot be read ({why(error)}); give a text file with one prompt a line") from error
    lines = [line.strip() for line in text.splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise PromptError(f"{path}: holds no prompt; write one a line")
    return prompts


def model_files(arguments: argparse.Namespace) -> list[Path]:
    """The model's folder and files, which are not to be written."""
    place = locate(arguments.checkpoint)
    return list(dict.fromkeys((place.path, *place.files)))


def _check_image(image: Path) -> None:
    if not image.exists():
        msg = f"{image}: no such file or folder; give a NIfTI or NRRD file, a DICOM folder or one of scans"
        raise VolumeError(msg, reason="missing")


def check_inputs(arguments: argparse.Namespace) -> None:
    """Refuse a scan or model that is not there, and ``--series`` of a file."""
    _check_image(arguments.image)
    locate(arguments.checkpoint)
    if arguments.series is not None and not arguments.image.is_dir():
        raise ConfigError(f"--series chooses in a DICOM folder, and {arguments.image} is a file; leave it out")


def check_sharing(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go with sharing the scans out."""
    if arguments.scheduler is not None and arguments.workers > 1:
        raise ConfigError("--workers is for processes of this machine; a cluster has its own, leave one of both out")


def _ending(output: Path) -> str | None:
    """The ending of an output file, ``None`` for a folder."""
    ending = next((each for each in ENDINGS if output.name.lower().endswith(each)), None)
    return None if ending is None or len(output.name) == len(ending) else ending


def check_output(arguments: argparse.Namespace, settings: RunSettings) -> None:
    """Refuse outputs that would overwrite an input, or whose name does not fit a file or folder."""
    output: Path = arguments.output
    ending = _ending(output)
    many = ending is None and arguments.image.is_dir() and arguments.series is None
    inputs = [arguments.image, *model_files(arguments), *([arguments.prompts_file] if arguments.prompts_file else [])]
    _refuse_inputs(output, inputs)
    if arguments.preview is not None:
        _refuse_inputs(arguments.preview, [*inputs, output])
        if not many and arguments.preview.suffix.lower() != ".png":
            raise ConfigError(f"cannot write {arguments.preview}: the preview must end in .png")
        if many and _inside(arguments.preview, arguments.image):
            msg = f"cannot write {arguments.preview}: it lies in the folder of the scans; choose another place"
            raise ConfigError(msg)
        if many and _mistyped(arguments.preview) and arguments.preview.suffix.lower() != ".png":
            msg = f"cannot write {arguments.preview}: for many scans it is a folder, which this is no name of"
            raise ConfigError(msg)
    if arguments.lesions_csv is not None:
        _refuse_inputs(arguments.lesions_csv, inputs)
        if arguments.lesions_csv.suffix.lower() != ".csv":
            raise ConfigError(f"cannot write {arguments.lesions_csv}: a table of lesions must end in .csv")
    problem = ""
    if ending is None and not arguments.masks and not many:
        problem = f"the output must end in {', '.join(ENDINGS)}; or give --masks for a folder with one mask a prompt"
    elif ending is None and _mistyped(output):
        problem = f"this is no name of a folder; files end in {', '.join(ENDINGS)}"
    elif ending is not None and arguments.masks:
        problem = "--masks writes a folder; leave the ending out"
    elif ending is not None and arguments.format:
        problem = "--format is for folders; the ending says it here"
    elif ending is not None and output.is_dir():
        problem = "it is a folder"
    elif ending is None and output.is_file():
        problem = "it is a file, and a folder is needed"
    elif ending != ENDING and is_challenge_file(arguments.image):
        problem = f"an .npz does not say where the patient's left is, so its masks can be written as {ENDING} alone"
    elif ending == ".dcm" and "rtstruct" in output.name.lower():
        problem = "the ending .dcm is of a DICOM SEG; the name of an RTSTRUCT ends in .rtstruct.dcm"
    elif ending == ".dcm" and output.name.lower().endswith(".sr.dcm"):
        problem = "the ending .dcm is of a DICOM SEG; a structured report is written by --report"
    elif ending is None and arguments.image.is_dir() and _inside(output, arguments.image):
        problem = "it lies in the folder of the scans; choose another place"
    if problem:
        raise ConfigError(f"cannot write {output}: {problem}")
    if settings.ending in DICOM_ENDINGS and arguments.image.is_file() and is_image_file(arguments.image):
        what = f"is no DICOM series, which {DICOM_ENDINGS[settings.ending]} must refer to"
        raise ConfigError(f"{arguments.image}: {what}; write .nii.gz or .nrrd instead")


def _refuse_inputs(output: Path, inputs: Sequence[Path]) -> None:
    if any(output.resolve() == path.resolve() for path in inputs):
        raise ConfigError(f"cannot write {output}: it is an input, which would be lost; give another name")


def _mistyped(folder: Path) -> bool:
    return _A_FILE.search(folder.name) is not None and not folder.is_dir()


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
