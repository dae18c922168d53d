"""Correction of off-resonance: images and field maps of a simulated spiral scan against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gadgets.base import Context, Gadget, GadgetError, run
from gadgets.header import Header
from gadgets.items import Acquisition, AcquisitionBucket, Image, Item
from gadgets.layout import Flag
from gadgets.noncartesian import NonCartesianRecon
from gadgets.off_resonance import DATASET, OffResonanceRecon, _Corrected
from gadgets.stock import find
from tests.gadgets.field_scan import FieldScan, nrmse

SCAN = FieldScan()
SIGNAL = np.abs(SCAN.truth) > 0.1


@pytest.fixture(scope="module")
def echoes() -> list[list[Acquisition]]:
    """The images of both echoes."""
    return [SCAN.image(0, 0), SCAN.image(1, 4)]


def through(gadget: Gadget, items: list[Any], header: Header = SCAN.header) -> list[Any]:
    return list(run([gadget], items, Context(header=header)))


def shuffled(echoes: list[list[Acquisition]]) -> list[Acquisition]:
    """Arm by arm, both echoes of each; only the very last readout ends the slice."""
    readouts = [one.with_data(one.data, one.trajectory) for pair in zip(*echoes, strict=True) for one in pair]
    readouts[-2].header["flags"] = 0
    return readouts


@pytest.fixture(scope="module")
def corrected(echoes: list[list[Acquisition]]) -> list[Image]:
    return through(OffResonanceRecon(), [*echoes[0], *echoes[1]])


def test_both_echoes_become_as_sharp_as_in_a_homogeneous_field(echoes: list[list[Acquisition]], corrected: list[Image]) -> None:
    (plain,) = through(NonCartesianRecon(), SCAN.image(0, 0, field=False))
    blurred = through(NonCartesianRecon(), [*echoes[0], *echoes[1]])
    best = nrmse(plain.data[0, 0], SCAN.truth)
    assert [int(image.contrast) for image in corrected] == [0, 1]
    for image, other in zip(corrected, blurred, strict=True):
        assert nrmse(image.data[0, 0], SCAN.truth) < best + 0.025
        assert nrmse(other.data[0, 0], SCAN.truth) > 4 * nrmse(image.data[0, 0], SCAN.truth)
        assert np.array_equal(image.position, other.position)


def test_the_field_is_found_and_found_better_from_corrected_images(echoes: list[list[Acquisition]]) -> None:
    errors = []
    for refinements in (0, 1):
        reconstruction = _Corrected(OffResonanceRecon(refinements=refinements, map_smoothing=1.0), Context(header=SCAN.header))
        readouts = [[reconstruction.readout(one) for one in echo] for echo in echoes]
        reconstruction.calibrate(readouts[0])  # type: ignore[arg-type]
        found = reconstruction._from_echoes(readouts, (0, 0))  # type: ignore[arg-type]
        errors.append(float(np.sqrt(((found - SCAN.field_hz)[SIGNAL] ** 2).mean())))
    assert errors[1] < 3.5  # of a range of 280 Hz
    assert errors[1] < errors[0] < 8


def test_order_of_echoes_and_buckets_do_not_matter(echoes: list[list[Acquisition]], corrected: list[Image]) -> None:
    mixed = through(OffResonanceRecon(), shuffled(echoes))
    bucket = through(OffResonanceRecon(), [AcquisitionBucket(data=[*echoes[0], *echoes[1]])])
    for other in (mixed, bucket):
        assert [image.data.tobytes() for image in other] == [image.data.tobytes() for image in corrected]


def test_calibration_readouts_bring_the_map_for_a_scan_of_one_contrast() -> None:
    flag = [Flag.IS_PARALLEL_CALIBRATION]
    calibration = SCAN.image(0, 0, flags=flag, last=()) + SCAN.image(1, 4, flags=flag, last=())
    scan = [SCAN.image(0, 8 + 4 * r, repetition=r) for r in range(2)]
    seen: list[Any] = []

    def watched() -> Any:
        for repetition, readouts in enumerate(scan):
            yield from [*calibration, *readouts] if repetition == 0 else readouts
            seen.append(len(images))

    images: list[Item] = []
    for image in run([OffResonanceRecon()], watched(), Context(header=SCAN.header)):
        images.append(image)
    assert seen == [1, 2]  # each with its last readout: none is held
    assert all(nrmse(image.data[0, 0], SCAN.truth) < 0.07 for image in images)  # type: ignore[attr-defined]


def test_discarded_samples_count_in_time(corrected: list[Image]) -> None:
    late = FieldScan(discarded=100)
    images = through(OffResonanceRecon(), late.image(0, 0) + late.image(1, 4))
    # Only the phase of the image tells: it is that of the moment when sampling began.
    assert all(nrmse(image.data[0, 0], SCAN.truth) < 0.07 for image in images)
    step = np.angle((images[0].data[0, 0] * corrected[0].data[0, 0].conj())[SIGNAL])
    assert np.sqrt((step**2).mean()) < 0.25


def test_a_map_from_a_file(tmp_path: Path, echoes: list[list[Acquisition]]) -> None:
    path = tmp_path / "field.h5"
    with h5py.File(path, "w") as file:
        file[DATASET] = SCAN.field_hz[None].astype(np.float32)
    (image,) = through(OffResonanceRecon(field_map="file", field_map_file=str(path)), echoes[0])
    assert nrmse(image.data[0, 0], SCAN.truth) < 0.05


def test_each_slice_has_its_field_and_its_echoes(echoes: list[list[Acquisition]]) -> None:
    other = FieldScan()
    other.field_hz = -0.7 * SCAN.field_hz.T
    items = []
    for contrast in range(2):
        items += echoes[contrast] + other.image(contrast, 20 + 4 * contrast, slice=1)
    images = through(OffResonanceRecon(), items)
    assert [(int(i.slice), int(i.contrast)) for i in images] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(nrmse(image.data[0, 0], SCAN.truth) < 0.07 for image in images)


def test_one_coil_is_enough() -> None:
    scan = FieldScan(coils=1)
    images = through(OffResonanceRecon(), scan.image(0, 0) + scan.image(1, 4))
    assert all(nrmse(image.data[0, 0], scan.truth) < 0.1 for image in images)


def test_lost_samples_cost_no_image(echoes: list[list[Acquisition]], corrected: list[Image]) -> None:
    broken = [one.with_data(one.data.copy(), one.trajectory) for one in [*echoes[0], *echoes[1]]]
    broken[1].data[:, 50:60] = np.nan
    images = through(OffResonanceRecon(), broken)
    assert [nrmse(image.data[0, 0], SCAN.truth) < 0.08 for image in images] == [True, True]


@pytest.mark.parametrize(
    ("items", "properties", "header", "message"),
    [
        ([0], {}, None, r"slice 0: a field map needs the contrasts 0 to 1.*only 0 came.*field_map=file"),
        ([0, 0], {}, None, "only 0 came"),
        ([1], {}, None, "only 1 came"),
        ([0, 1], {"echoes": 3}, None, r"TE, in ms\); a field map from 3 contrasts"),
        ([0, 1], {}, b"<TE>4</TE>", "all different"),
        ([0], {"field_map": "file"}, None, "field_map_file '' is no file"),
        ([0], {"field_map": "file", "field_map_file": __file__}, None, "no readable dataset b0_hz"),
    ],
)
def test_what_is_missing_is_named(
    items: list[int], properties: dict[str, Any], header: bytes | None, message: str, echoes: list[list[Acquisition]]
) -> None:
    xml = SCAN.header.xml if header is None else SCAN.header.xml.replace(b"<TE>2</TE>", header)
    readouts = [
        one.with_data(one.data, one.trajectory) for repetition, contrast in enumerate(items) for one in _again(echoes[contrast], repetition)
    ]
    with pytest.raises(GadgetError, match=rf"OffResonanceRecon.*{message}"):
        through(OffResonanceRecon(**properties), readouts, Header(xml))


def _again(readouts: list[Acquisition], repetition: int) -> list[Acquisition]:
    copies = [one.with_data(one.data, one.trajectory) for one in readouts]
    for one in copies:
        one.header["idx"]["repetition"] = repetition
    return copies


def test_wrong_files_and_times_are_refused(tmp_path: Path, echoes: list[list[Acquisition]]) -> None:
    path = tmp_path / "field.h5"
    for values, message in ((np.zeros((1, 3, 3)), "does not hold slice 0"), (np.full((1, 40, 40), np.nan), "not finite")):
        with h5py.File(path, "w") as file:
            file[DATASET] = values.astype(np.float32)
        with pytest.raises(GadgetError, match=message):
            through(OffResonanceRecon(field_map="file", field_map_file=str(path)), echoes[0])
    timeless = _again(echoes[0], 0)
    timeless[0].header["sample_time_us"] = 0
    with pytest.raises(GadgetError, match="sample_time_us of 0"):
        through(OffResonanceRecon(), [*timeless, *echoes[1]])


def test_it_is_found_by_name() -> None:
    assert find("reconstream", "OffResonanceRecon") is OffResonanceRecon
