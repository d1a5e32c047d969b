"""Cases of the challenge: read without running anything in them, refused in one line, written with their spacing."""

from __future__ import annotations

import io
import os
import pickle
import random
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io import challenge_npz
from boltzformer_monai.io.challenge_npz import read_case, read_case_volume, write_segmentation
from boltzformer_monai.io.volume import Volume

PROMPTS: dict[str, Any] = {
    "2": "Visualization of the spleen in abdominal CT",
    "10": "Liver",
    "1": "CT imaging of the left kidney – “dotted” names",
    "instance_label": 0,
}
SHAPE = (4, 5, 6)


def imgs() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


def write(path: Path, **arrays: Any) -> Path:
    content = {"imgs": imgs(), "spacing": np.array([0.7, 0.8, 2.5]), "text_prompts": np.array(PROMPTS, object)}
    np.savez_compressed(path, **{name: value for name, value in {**content, **arrays}.items() if value is not None})
    return path


def npy(descr: str, shape: str, content: bytes) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def case(path: Path, prompts: bytes) -> Path:
    """A case with these bytes as its pickle."""
    members = {"imgs": npy("|u1", "(1, 2, 2)", bytes(4)), "spacing": npy("<f8", "(3,)", np.ones(3).tobytes())}
    return archive(path, {**members, "text_prompts": npy("|O", "()", prompts)})


def test_a_case_as_numpy_writes_it(tmp_path: Path) -> None:
    path = write(tmp_path / "case.npz")
    found = read_case(path)
    assert (found.shape, found.spacing, found.instances) == (SHAPE, (0.7, 0.8, 2.5), False)
    assert list(found.prompts.items()) == [(1, PROMPTS["1"]), (2, PROMPTS["2"]), (10, "Liver")]  # by number
    assert found.modality == "CT"
    volume = read_case_volume(path)
    np.testing.assert_array_equal(volume.array, imgs().transpose(2, 1, 0))
    assert volume.array.dtype == np.float32
    assert volume.spacing == (0.7, 0.8, 2.5)
    assert (volume.modality, volume.caveats) == ("CT", ())


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_the_pickles_of_all_numpy_versions(tmp_path: Path, protocol: int, module: str) -> None:
    written = pickle.dumps(np.array(PROMPTS, object), protocol=protocol)
    own = np.core.multiarray.__name__ if hasattr(np, "core") and not hasattr(np, "_core") else "numpy._core.multiarray"
    if own != module:  # a text with its length before it, where the protocol is 4 or 5
        old, new = own.encode(), module.encode()
        written = written.replace(bytes([len(old)]) + old, bytes([len(new)]) + new).replace(b"c" + old, b"c" + new)
        written = written if protocol < 4 else pickle_unframed(written)
    assert dict(read_case(case(tmp_path / "case.npz", written)).prompts) == {
        1: PROMPTS["1"], 2: PROMPTS["2"], 10: "Liver",
    }  # fmt: skip


def pickle_unframed(data: bytes) -> bytes:
    """Without the frame, whose length no longer fits."""
    return data[:2] + data[11:] if data[2:3] == b"\x95" else data


def test_arrays_in_fortran_order_and_float_spacing(tmp_path: Path) -> None:
    path = write(tmp_path / "case.npz", imgs=np.asfortranarray(imgs()), spacing=np.array([1, 2, 3]), text_prompts=None)
    np.testing.assert_array_equal(read_case_volume(path, modality="MR").array, imgs().transpose(2, 1, 0))
    assert read_case(path).spacing == (1.0, 2.0, 3.0)
    assert dict(read_case(path).prompts) == {}
    assert read_case_volume(path, modality="MR").modality == "MR"


def test_a_case_that_asks_for_single_objects_has_a_caveat(tmp_path: Path) -> None:
    path = write(tmp_path / "case.npz", text_prompts=np.array({"1": "lesion in MRI", "instance_label": 1}, object))
    assert read_case(path).instances
    assert [each.kind for each in read_case_volume(path).caveats] == ["not instances"]


def test_what_the_prompts_say_of_the_modality_is_not_overruled(tmp_path: Path) -> None:
    ultrasound = write(tmp_path / "us.npz", text_prompts=np.array({"1": "Tumor in breast ultrasound"}, object))
    with pytest.raises(VolumeError, match="neither CT nor MR, but CT was asked for"):
        read_case_volume(ultrasound, modality="CT")
    with pytest.raises(VolumeError, match="say CT, but other was asked for"):
        read_case_volume(write(tmp_path / "ct.npz"), modality="other")
    with pytest.raises(VolumeError, match="MR was asked for"):
        read_case_volume(write(tmp_path / "ct.npz"), modality="MR")
    both = write(tmp_path / "both.npz", text_prompts=np.array({"1": "liver in CT", "2": "liver in MRI"}, object))
    assert read_case(both).modality == ""


@pytest.mark.parametrize(
    "prompt", ["Tumor in breast ultrasound", "Whole-body PET of a lesion", "Lesion in FDG-PET/CT", "Heart in US"]
)
def test_grey_values_of_other_modalities_are_taken_as_they_are(tmp_path: Path, prompt: str) -> None:
    path = write(tmp_path / "case.npz", text_prompts=np.array({"1": prompt}, object))
    for wanted in (None, "other"):
        volume = read_case_volume(path, modality=wanted)
        assert volume.modality == "other"
        np.testing.assert_array_equal(volume.array, imgs().transpose(2, 1, 0))
    silent = write(tmp_path / "silent.npz", text_prompts=np.array({"1": "lesion"}, object))
    assert read_case_volume(silent, modality="other").modality == "other"
    assert read_case_volume(silent).modality == "unknown"


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    made = tmp_path / "made"
    hidden = {"1": "liver", "2": Malicious(made)}
    for number, content in enumerate((np.array(Malicious(made), object), np.array(hidden, object), Malicious(made))):
        for protocol in range(6):
            pickled = pickle.dumps(content, protocol=protocol)
            path = case(tmp_path / f"{number}_{protocol}.npz", pickled)
            for read in (read_case, read_case_volume):
                with pytest.raises(VolumeError, match="no dict of texts") as caught:
                    read(path)
                assert "\n" not in str(caught.value)
                assert len(str(caught.value)) < 400 + len(str(path))
    assert not made.exists()
    with np.load(tmp_path / "1_3.npz", allow_pickle=True) as opened:
        assert opened["text_prompts"] is not None
    assert made.exists(), "it was no malicious file, and the test shows nothing"


@pytest.mark.parametrize(
    "pickled",
    [
        b"cposix\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85\x81.",  # NEWOBJ
        b"\x80\x02(iposix\nsystem\n.",  # INST
        b"\x80\x02P1\n.",  # a persistent id
        b"\x80\x02\x82\x01.",  # the registry of extensions
        b"\x80\x04}r\xff\xff\xff\xff.",  # a place in the memo that a C unpickler makes room for
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.",  # 2^63 bytes
        b"\x80\x04\x8b\xff\xff\xff\x7fx.",  # a whole number of 2 GB
        b"\x80\x04" + b"(" * 1000 + b".",
        b"\x80\x04" + b")" + b"\x85" * 100_000 + b".",  # a tuple in a tuple in …
        b"\x80\x04}\x94" + b"h\x00h\x00\x86" * 1000 + b".",
        b"",
        b".",
        b"\x80\x04}.",  # a dict, but no array
        b"\x80\x04R.", b"\x80\x04b.", b"\x80\x04t.", b"\x80\x04u.", b"\x80\x04h\x05.",
        pickle.dumps(PROMPTS),
        pickle.dumps(np.array([PROMPTS], object)),
        pickle.dumps(np.array("liver", object)),
        pickle.dumps(np.array({1: "liver"}, object)),
        pickle.dumps(np.array({"liver": "liver"}, object)),
        pickle.dumps(np.array({"0": "liver"}, object)),
        pickle.dumps(np.array({"70000": "liver"}, object)),
        pickle.dumps(np.array({"1": "liver", "01": "liver"}, object)),
        pickle.dumps(np.array({"1": 5}, object)),
        pickle.dumps(np.array({"1": ["liver"]}, object)),
        pickle.dumps(np.array({"1": {"2": "liver"}}, object)),
        pickle.dumps(np.array({"1": b"liver"}, object)),
        pickle.dumps(np.array({"1": None}, object)),
        pickle.dumps(np.array({"1": np.str_("liver")}, object)),
        pickle.dumps(np.array({"1": "liver", "instance_label": 2}, object)),
        pickle.dumps(np.array({"1": "liver", "instance_label": "yes"}, object)),
    ],
    ids=lambda data: ascii(bytes(data[:14])),
)  # fmt: skip
def test_other_pickles_are_refused_without_memory(tmp_path: Path, pickled: bytes) -> None:
    path = case(tmp_path / "case.npz", pickled)
    tracemalloc.start()
    try:
        with pytest.raises(VolumeError, match="no dict of texts") as caught:
            read_case(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.reason == "labels"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, "holds no imgs"),
        ({"imgs": npy("<i2", "(1, 2, 2)", bytes(8))}, "imgs are <i2"),
        ({"imgs": npy("|O", "()", pickle.dumps(1))}, "imgs are |O"),
        ({"imgs": npy("|u1", "(2, 2)", bytes(4))}, "of shape (2, 2)"),
        ({"imgs": npy("|u1", "(1, 2, 2, 3)", bytes(12))}, "of shape (1, 2, 2, 3)"),
        ({"imgs": npy("|u1", "(1, 0, 2)", b"")}, "of shape (1, 0, 2)"),
        ({"imgs": npy("|u1", "(1, 2, 3)", bytes(4))}, "claim the shape (1, 2, 3) and have 4 bytes"),
        ({"imgs": npy("|u1", "(99999, 99999, 99999)", bytes(4))}, "claim the shape"),
        ({"imgs": npy("|u1", f"({'9' * 3000}, 1, 1)", bytes(4))}, "claim the shape"),
        ({"imgs": npy("|u1", "(1, -2, 2)", bytes(4))}, "no array of NumPy"),
        ({"imgs": npy("|u1", "(1, __import__('os'), 2)", bytes(4))}, "no array of NumPy"),
        ({"imgs": b"\x93NUMPY\x01\x00\xff\xff" + bytes(100)}, "no array of NumPy"),
        ({"imgs": b"not an array"}, "no array of NumPy"),
        ({"imgs": b""}, "no array of NumPy"),
        ({"spacing": None}, "has no spacing"),
        ({"spacing": npy("<f8", "(2,)", bytes(16))}, "and three numbers"),
        ({"spacing": npy("|O", "()", pickle.dumps(1))}, "and three numbers"),
        ({"spacing": npy("<f8", "(3,)", bytes(8))}, "and three numbers"),
        ({"spacing": npy("<f8", "(3,)", np.array([1, np.nan, 1]).tobytes())}, "which no scan has"),
        ({"spacing": npy("<f8", "(3,)", np.array([1.0, -1, 1]).tobytes())}, "which no scan has"),
        ({"text_prompts": npy("<U5", "()", bytes(20))}, "text_prompts are <U5"),
        ({"text_prompts": npy("|O", "(1,)", b"")}, "text_prompts are |O of shape (1,)"),
        ({"text_prompts": npy("|O", "()", bytes(2 << 20))}, "and 2097152 bytes"),
    ],
    ids=str,
)  # fmt: skip
def test_arrays_that_are_no_case(tmp_path: Path, members: dict[str, Any], said: str) -> None:
    sound = {"imgs": npy("|u1", "(1, 2, 2)", bytes(4)), "spacing": npy("<f8", "(3,)", np.ones(3).tobytes())}
    wanted = {**sound, **members} if members else {"gts": sound["imgs"]}
    path = archive(tmp_path / "case.npz", {name: content for name, content in wanted.items() if content is not None})
    with pytest.raises(VolumeError) as caught:
        read_case(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_claims_are_judged_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb that inflates to what it claims, and one whose archive claims what no deflated bytes can become."""
    bomb = io.BytesIO()
    count = 1 << 28
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("imgs.npy", "w") as stream:
            stream.write(npy("|u1", f"({count >> 16}, 256, 256)", b""))
            for _ in range(count >> 20):
                stream.write(bytes(1 << 20))
        file.writestr("spacing.npy", npy("<f8", "(3,)", np.ones(3).tobytes()))
    path = tmp_path / "bomb.npz"
    path.write_bytes(bomb.getvalue())
    assert path.stat().st_size < count / 500
    monkeypatch.setenv("BOLTZFORMER_MEMORY_GB", "0.5")
    claimed = case(tmp_path / "claims.npz", pickle.dumps(np.array(PROMPTS, object)))
    content = bytearray(claimed.read_bytes())
    with zipfile.ZipFile(claimed) as file:
        offset = file.infolist()[0].header_offset
    central = content.index(b"PK\1\2")
    for place in (offset + 22, central + 24):  # the size of imgs, in both headers
        content[place : place + 4] = (0xF0000000).to_bytes(4, "little")
    claimed.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(VolumeError, match="would take") as caught:
            read_case_volume(path)
        assert caught.value.reason == "too large"
        with pytest.raises(VolumeError, match="claim more than the file holds"):
            read_case_volume(claimed)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_archives_that_are_none(tmp_path: Path) -> None:
    path = write(tmp_path / "case.npz")
    whole = path.read_bytes()
    many = tmp_path / "many.npz"
    with zipfile.ZipFile(many, "w") as file:
        for number in range(200):
            file.writestr(f"{number}.npy", b"")
    twice = tmp_path / "twice.npz"
    with zipfile.ZipFile(twice, "w") as file:
        file.writestr("imgs.npy", npy("|u1", "(1, 2, 2)", bytes(4)))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("imgs.npy", npy("|u1", "(1, 2, 2)", bytes(4)))
    packed = archive(tmp_path / "packed.npz", {"imgs": npy("|u1", "(1, 2, 2)", bytes(4))}, zipfile.ZIP_LZMA)
    for name, content in (("cut", whole[:-30]), ("empty", b""), ("text", b"no archive" * 9), ("head", whole[50:])):
        (tmp_path / f"{name}.npz").write_bytes(content)
    for wrong in (many, twice, packed, *(tmp_path / f"{name}.npz" for name in ("cut", "empty", "text", "head"))):
        with pytest.raises(VolumeError) as caught:
            read_case_volume(wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(VolumeError, match="No such file"):
        read_case(tmp_path / "missing.npz")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.npz")
        with pytest.raises(VolumeError, match="pipe"):
            read_case(tmp_path / "pipe.npz")


def test_damaged_bytes_are_refused_or_change_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "case.npz")
    whole, sound = path.read_bytes(), read_case_volume(path).array
    chance = random.Random(0)
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3))):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        try:
            volume = read_case_volume(path, modality="CT")
        except VolumeError:
            refused += 1
            continue
        np.testing.assert_array_equal(volume.array, sound)
    assert refused > 200


def test_a_segmentation_holds_labels_and_spacing_alone(tmp_path: Path) -> None:
    volume = read_case_volume(write(tmp_path / "case.npz"))
    labels = np.arange(volume.array.size, dtype=np.uint16).reshape(volume.shape)
    write_segmentation(labels, volume, tmp_path / "segs.NPZ")
    with np.load(tmp_path / "segs.NPZ", allow_pickle=False) as found:
        assert sorted(found.files) == ["segs", "spacing"]
        np.testing.assert_array_equal(found["segs"], labels.transpose(2, 1, 0))
        assert found["segs"].shape == SHAPE
        assert found["spacing"].tolist() == [0.7, 0.8, 2.5]
    with pytest.raises(VolumeError, match="cannot be written"):
        write_segmentation(labels, volume, tmp_path / "missing" / "segs.npz")
    assert not (tmp_path / "missing").exists()


def test_only_the_ending_makes_a_case() -> None:
    assert challenge_npz.is_challenge_file("a/CASE.NPZ")
    assert not challenge_npz.is_challenge_file("case.npz.nii")
    assert isinstance(Volume, type)
