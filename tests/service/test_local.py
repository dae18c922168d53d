"""The Python API: a scan in, images out, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gadgets.items import Item
from recon.metrics import nrmse
from scripts import simulate
from service.local import ReconstructionError, reconstruct

SIMPLE = b"""<configuration><version>2</version><stream>
  <gadget><dll>reconstream</dll><classname>RemoveROOversampling</classname></gadget>
  <gadget><name>Trigger</name><dll>reconstream</dll><classname>AcquisitionAccumulateTrigger</classname>
    <property name="trigger_dimension" value="repetition"/><property name="sorting_dimension" value="slice"/></gadget>
  <gadget><dll>reconstream</dll><classname>BucketToBuffer</classname></gadget>
  <gadget><dll>reconstream</dll><classname>SimpleRecon</classname></gadget>
  <gadget><dll>reconstream</dll><classname>ImageArraySplit</classname></gadget>
  <gadget><dll>reconstream</dll><classname>ComplexToFloat</classname></gadget>
</stream></configuration>"""


@pytest.fixture(scope="module")
def scan() -> simulate.Scan:
    return simulate.cartesian((32, 24), 3, acceleration=1, slices=2, noise=0.001)


def test_the_object_comes_back(scan: simulate.Scan) -> None:
    """Root sum of squares over maps with sum |s|^2 = 1; the simulation is orthonormal, and so is the reconstruction."""
    images = reconstruct(scan.items, SIMPLE, header=scan.header)
    assert [int(image.slice) for image in images] == [0, 1]
    for image, truth in zip(images, scan.truth["images"], strict=True):
        assert image.data.shape == (1, 1, 24, 32)
        assert nrmse(np.abs(truth), image.data[0, 0]) < 0.02


def test_a_file_and_its_items_give_the_same(scan: simulate.Scan, tmp_path: Path) -> None:
    scan.save(tmp_path / "scan.h5")
    (tmp_path / "simple.xml").write_bytes(SIMPLE)
    ours = reconstruct(scan.items, SIMPLE, header=scan.header)
    theirs = reconstruct(tmp_path / "scan.h5", tmp_path / "simple.xml")
    for a, b in zip(ours, theirs, strict=True):
        assert a.header.tobytes() == b.header.tobytes()
        np.testing.assert_array_equal(a.data, b.data)


def test_properties_can_be_overridden(scan: simulate.Scan) -> None:
    one_bucket = reconstruct(scan.items, SIMPLE, header=scan.header, sorting_dimension="none")
    assert len(one_bucket) == len(reconstruct(scan.items, SIMPLE, header=scan.header, parameters={"sorting_dimension@Trigger": "none"}))
    with pytest.raises(ReconstructionError, match="sorting_dimention"):
        reconstruct(scan.items, SIMPLE, header=scan.header, parameters={"sorting_dimention@Trigger": "none"})


def test_a_failure_is_raised_with_its_reason(scan: simulate.Scan) -> None:
    with pytest.raises(ReconstructionError, match=r"\[.*\] ERROR: header"):
        reconstruct(scan.items, SIMPLE, header=b"<ismrmrdHeader/>")
    with pytest.raises(FileNotFoundError):
        reconstruct("no_such_file.h5", SIMPLE)


def test_an_error_of_the_items_themselves_is_raised_as_it_is(scan: simulate.Scan) -> None:
    def items() -> Iterator[Item]:
        yield from scan.items[:5]
        raise KeyError("my own mistake")

    with pytest.raises(KeyError, match="my own mistake"):
        reconstruct(items(), SIMPLE, header=scan.header)


def test_after_a_failure_the_rest_is_not_read(scan: simulate.Scan) -> None:
    def endless() -> Iterator[Item]:
        while True:
            yield from scan.items

    with pytest.raises(ReconstructionError, match="header"):
        reconstruct(endless(), SIMPLE, header=b"<ismrmrdHeader/>")


def test_the_noise_of_a_scan_is_kept_where_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = simulate.cartesian((16, 16), 2, acceleration=1)
    monkeypatch.setenv("RECONSTREAM_STORAGE", str(tmp_path / "kept"))
    path = tmp_path / "scan.h5"
    scan.save(path)
    reconstruct(path, "cartesian.xml")
    assert [kept.suffix for kept in (tmp_path / "kept").iterdir()] == [".npz"]
