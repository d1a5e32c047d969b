"""One scan that the command line names: its case, and who it is."""

from __future__ import annotations

import argparse
import logging

from boltzformer_monai.data.label_names import LabelMap, read_label_names
from boltzformer_monai.io.dicom.series import choose_series
from boltzformer_monai.io.read import existing, is_dicom
from boltzformer_monai.slicing.cases import Case, LabelFile

logger = logging.getLogger(__name__)


def single_case(options: argparse.Namespace) -> Case:
    """Return the scan of ``--image`` with its ``--label``.

    Raises:
        BoltzFormerError: a file is missing, or the labels.json or the DICOM folder cannot be read.
    """
    names = LabelMap({}) if options.labels_json is None else read_label_names(options.labels_json)
    if options.labels_json is not None:
        names = names.settled(options.modality, source=options.labels_json)
    stated = None if names.modality == "unknown" else names.modality
    for path in (options.image, options.label):
        if path is not None:
            existing(path)
    volume_id, patient = _identity(options)
    annotation = None
    if options.label is not None:
        annotation = LabelFile(options.label, names.labels if options.labels_json else None)
    return Case(
        volume_id=options.volume_id or volume_id,
        patient=options.patient or patient,
        image=options.image,
        annotation=annotation,
        site=options.site or names.site,
        modality=options.modality or stated,
        series=options.series,
    )


def _identity(options: argparse.Namespace) -> tuple[str, str]:
    """Return identities of the scan and of the patient; both are hashed before they are stored."""
    path = options.image.resolve()
    if is_dicom(path):
        header = choose_series(options.image, options.series)[0]
        series, patient = header.series or path.name, header.patient_id
        if options.patient is None and not patient:
            logger.warning("%s has no PatientID: counted as a patient of its own; see --patient", options.image)
        return series, patient or series
    if options.patient is None:
        logger.warning("%s names no patient: counted as a patient of its own; see --patient", options.image)
    # The whole path: files in other folders, called by the same names, are other scans and maybe other patients.
    return str(path), str(path)
