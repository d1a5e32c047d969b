"""The one way from a scan on disk to a label map on disk: load → window → infer → restore → write.

Command line, bundle and Label app all use :class:`VolumeSegmenter`, or the three parts it is made of.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import SaveImaged, Transform

from boltzformer_monai.data.slices.folds import Fold
from boltzformer_monai.errors import CheckpointError, ConfigError, VolumeError
from boltzformer_monai.inferers.protocols import protocol_name, volume_protocol
from boltzformer_monai.inferers.run_settings import ModelRecord, RunSettings
from boltzformer_monai.inferers.sliding_volume import UNTRAINED, SlidingVolumeInferer
from boltzformer_monai.io.read import read_volume, write_label_map
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.models.folder import load_model, show_licence
from boltzformer_monai.models.licence import Licence
from boltzformer_monai.models.place import hub_id
from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.layout import set_layout
from boltzformer_monai.networks.presets import create_boltzformer, network_config
from boltzformer_monai.networks.weights import Description
from boltzformer_monai.transforms import PromptTokenizer

_log = logging.getLogger(__name__)

OUTPUT_SUFFIXES = (".nii", ".nii.gz", ".nrrd")


class LoadVolumed(Transform):
    """``{"image": path}`` → ``image`` as MetaTensor ``(1, I, J, K)`` float32 in the scanner's units.

    Its affine is voxel → RAS mm; ``meta`` holds ``modality``, ``filename_or_obj`` and, as JSON, ``caveats``.

    Args:
        series: SeriesInstanceUID to read where a DICOM folder holds several.
        modality: ``"CT"`` or ``"MR"`` where the file does not say.
    """

    def __init__(self, *, series: str | None = None, modality: str | None = None) -> None:
        self.series = series
        self.modality = modality

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Raises :class:`~boltzformer_monai.errors.VolumeError` where the scan cannot be read or trusted."""
        # A tilted stack is segmented slice by slice as it was scanned, and the mask must lie on its own grid.
        volume = read_volume(data["image"], series=self.series, modality=self.modality, tilt="keep")
        meta = {
            "modality": volume.modality,
            "filename_or_obj": str(data["image"]),
            # One text, because a loader takes lists of mappings apart.
            "caveats": json.dumps([each.as_dict() for each in volume.caveats]),
        }
        array = torch.from_numpy(np.ascontiguousarray(volume.array))[None]
        return {**data, "image": MetaTensor(array, affine=torch.from_numpy(volume.affine.copy()), meta=meta)}


class SaveLabelMapd(SaveImaged):
    """Writes ``pred`` ``(1, I, J, K)`` on the grid of ``image``, NIfTI or NRRD by suffix, and passes the item on.

    Of MONAI's kind, so that MONAI Label leaves it out of a bundle's postprocessing: it sends the map itself.

    Args:
        output: the file to write.
    """

    def __init__(self, *, output: str | Path) -> None:
        self.output = Path(output)
        super().__init__(keys="pred", output_dir=self.output.parent)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        image = data["image"]
        grid = Volume(np.asarray(image[0].cpu()), np.asarray(image.affine, dtype=np.float64))
        write_label_map(np.asarray(data["pred"][0].cpu()), grid, self.output)
        return dict(data)


def existing_scan(image: str | Path) -> None:
    """Raise a ``VolumeError`` if there is nothing at the path: before the network is loaded, not after it."""
    if not Path(image).exists():
        raise VolumeError(f"{image}: no such file or folder; give a NIfTI or NRRD file or a DICOM folder")


def check_output(output: str | Path, *inputs: str | Path) -> None:
    """Make the output's folder: before the work, not after it.

    Raises:
        ConfigError: no label map can be written under this name, or it is one of the inputs, which would be lost.
        OSError: the folder cannot be made.
    """
    if any(Path(output).resolve() == Path(path).resolve() for path in inputs):
        raise ConfigError(f"cannot write {output}: it is an input, which would be lost; give another --output")
    if not str(output).lower().endswith(OUTPUT_SUFFIXES):
        raise ConfigError(f"cannot write {output}: the output must end in {', '.join(OUTPUT_SUFFIXES)}")
    if Path(output).is_dir():
        raise ConfigError(f"cannot write {output}: it is a folder")
    Path(output).parent.mkdir(parents=True, exist_ok=True)


class VolumeSegmenter:
    """A network with everything that a scan needs on its way to a label map.

    Args:
        network: in evaluation mode.
        description: its checkpoint's.
        trained: ``False`` for a network without a checkpoint, which :meth:`segment` refuses to use.
        sha256: of the model.
        licence: of its weights, where one is stated.
    """

    def __init__(
        self,
        network: BoltzFormer,
        description: Description,
        *,
        trained: bool = True,
        sha256: str = "",
        licence: Licence | None = None,
    ) -> None:
        self.network = network
        self.description = description
        self.trained = trained
        self.sha256 = sha256
        self.licence = licence
        self.tokenizer = PromptTokenizer(path=description.network.text_model)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, device: torch.device | str = "cpu", precision: str = "auto"
    ) -> VolumeSegmenter:
        """Load a model: a checkpoint, a model folder, or the id of a fetched one; a restricted licence is shown.

        Raises:
            CheckpointError: it is missing, damaged, was changed, or is of another network.
        """
        model = load_model(path, device=device)
        show_licence(model)
        network = set_layout(model.network, trains=False).set_precision(precision)
        return cls(network, model.description, sha256=model.sha256, licence=model.licence)

    @classmethod
    def from_checkpoint_or_untrained(
        cls, path: str | Path, *, device: torch.device | str = "cpu", precision: str = "auto"
    ) -> VolumeSegmenter:
        """As above, but an untrained ``tiny`` where there is no file yet, so that a bundle can be inspected."""
        if Path(path).exists() or hub_id(path) is not None:
            return cls.from_checkpoint(path, device=device, precision=precision)
        config = network_config("tiny")
        network = create_boltzformer(config).to(device).eval()
        return cls(network, Description(config, {"plane": "axial", "targets": []}), trained=False)

    def inferer(self, settings: RunSettings, **execution: Any) -> SlidingVolumeInferer:
        """The inferer for these settings.

        Args:
            settings: what to look for, and how.
            execution: others of :class:`~boltzformer_monai.inferers.sliding_volume.SlidingVolumeInferer`, which do not
                decide what is found.

        Raises:
            PromptError: a prompt is too long, or has words that no training teaches.
            CheckpointError: the checkpoint's presence thresholds cannot be used.
        """
        return SlidingVolumeInferer(
            settings, description=self.description, tokenizer=self.tokenizer, trained=self.trained, **execution
        )

    def summary(self) -> dict[str, Any]:
        """Which model it is, for files of results: its hash, and its licence and fold where they are stated."""
        licence = {} if self.licence is None else {"licence": self.licence.as_dict()}
        fold = Fold.of(self.description.data)
        return {"sha256": self.sha256, **licence, **({} if fold is None else {"fold": fold.fold, "folds": fold.folds})}

    def record(self, settings: RunSettings) -> ModelRecord:
        """What of this model decides the results of these settings, for their manifests.

        Args:
            settings: of the run.

        Raises:
            CheckpointError: the checkpoint's presence thresholds or protocol cannot be used.
            ConfigError: there is no such protocol.
        """
        data = self.description.data
        protocol = volume_protocol(settings, data)
        return ModelRecord(
            sha256=self.sha256,
            licence=None if self.licence is None else self.licence.as_dict(),
            plane=protocol.plane,
            presence=protocol.rule,
            precision=self.network.precision,
            device=self.network.mean.device.type,
            protocol=protocol_name(settings, data),
            protocol_settings=protocol.settings,
        )

    def segment(
        self,
        image: str | Path,
        output: str | Path,
        inferer: SlidingVolumeInferer,
        *,
        series: str | None = None,
        modality: str | None = None,
    ) -> dict[str, int]:
        """Segment one scan and write the label map; returns the number of voxels found per prompt.

        Raises:
            CheckpointError: the network was never trained.
            ConfigError: the output's name is not one of a label map.
            VolumeError: the scan cannot be read or its geometry cannot be trusted.
        """
        check_output(output, image)
        save = SaveLabelMapd(output=output)
        item = LoadVolumed(series=series, modality=modality)({"image": image})
        item["pred"] = inferer(item["image"][None], self.network)[0]
        save(item)
        return count_voxels(item["pred"], inferer.prompts)

    def require_trained(self) -> None:
        """Raise a ``CheckpointError`` if there are no trained weights."""
        if not self.trained:
            raise CheckpointError(UNTRAINED)


def count_voxels(labels: torch.Tensor, prompts: Sequence[str]) -> dict[str, int]:
    """Voxels per prompt in a label map."""
    counts = torch.bincount(labels.flatten().long(), minlength=len(prompts) + 1)
    return {prompt: int(counts[i + 1]) for i, prompt in enumerate(prompts)}


def run_inference(
    evaluator: SupervisedEvaluator,
    *,
    segmenter: VolumeSegmenter,
    image: str | Path | None,
    checkpoint: str | Path,
    output: str | Path,
) -> None:
    """Run the bundle's inference once its inputs are known to be there.

    Raises:
        VolumeError: no image was given.
        CheckpointError: there is no checkpoint.
    """
    if not image:
        raise VolumeError("no image given; add --image PATH (NIfTI, NRRD or a DICOM folder)")
    if not segmenter.trained:
        raise CheckpointError(f"no checkpoint at {checkpoint}; train one, or give --checkpoint PATH")
    existing_scan(image)
    check_output(output, image, checkpoint)
    evaluator.run()
    _log.info("label map written to %s", output)
