"""The stock chains default, default_short and default_optimized: a real Gadgetron's images, and a known object without them."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest

from gadgets.base import Context, Gadget
from gadgets.items import Image
from gadgets.layout import Flag
from gadgets.stock import find
from tests.gadgets.readouts import dft, make_header, noise_like, read_scan, readout, through

CONFIGS = ("default", "default_short", "default_optimized")
SCANS = ("shepp_full", "shepp_r2", "shepp_r3_noise", "siemens_r3")

BETTER = {"repetition", "physiology_time_stamp"}
"""Fields that differ on purpose: Gadgetron takes the header of the central line even where that was not sampled, and does not copy
the physiology stamps."""


def chain(name: str) -> list[Gadget]:
    """The gadgets of a config, without the help of the service."""
    text = (files("configs") / name).read_text()
    gadgets = []
    for element in ElementTree.fromstring(text).iter():
        if element.tag.rpartition("}")[2] != "gadget":
            continue
        parts = {child.tag.rpartition("}")[2]: child.text or "" for child in element}
        properties = {}
        for child in element:
            if child.tag.rpartition("}")[2] == "property":
                pair = {one.tag.rpartition("}")[2]: one.text or "" for one in child} or child.attrib
                properties[pair["name"]] = pair["value"]
        gadgets.append(find(parts["dll"], parts["classname"])(parts.get("name", ""), **properties))
    return gadgets


def scan_file(shared: Path, name: str) -> Path:
    return shared / "data/cartesian_grappa_r3.h5" if name == "siemens_r3" else shared / f"reference/gadgetron/{name}.h5"


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("scan", SCANS)
def test_images_of_a_real_gadgetron(shared, scan, config):
    header, acquisitions = read_scan(scan_file(shared, scan))
    out = through(chain(f"stock/{config}.xml"), acquisitions, header)
    with h5py.File(shared / "reference/gadgetron/outputs.h5") as file:
        (series,) = file[scan][config]
        data, headers = file[scan][config][series]["data"][:], file[scan][config][series]["header"][:]
    ours = np.stack([image.data for image in out])
    assert series == "image_0"
    assert (ours.shape, ours.dtype) == (data.shape, data.dtype)
    if data.dtype.kind == "u":
        assert np.abs(ours.astype(int) - data.astype(int)).max() <= 1
        assert np.mean(ours != data) < 1e-3
    else:
        assert np.linalg.norm(ours - data) < 1e-6 * np.linalg.norm(data)
    ours_headers = np.stack([image.header for image in out])
    differing = {name for name in headers.dtype.names if not np.array_equal(ours_headers[name], headers[name])}
    assert differing <= BETTER
    if scan == "shepp_full":
        assert differing == set()


def test_repetitions_are_numbered_where_gadgetron_loses_them(shared):
    header, acquisitions = read_scan(scan_file(shared, "shepp_r3_noise"))
    out = through(chain("stock/default.xml"), acquisitions, header)
    assert [int(image.header["repetition"]) for image in out] == [0, 1, 2]


# -- without reference material ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scan():
    """Two slices of a disc seen by 20 coils with correlated noise, readout oversampled twice."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[-16:16, -32:32]
    images = []
    mixing = np.eye(20) + 0.3 * noise_like(rng, 20, 20)
    for number in range(2):
        disc = ((x - 2) ** 2 + y**2 < 100 + 60 * number).astype(float)
        maps = np.stack([np.exp(1j * 0.02 * n * x) / (1 + 0.1 * n) for n in range(20)])
        images.append(maps * disc)
    noise = [readout(mixing @ noise_like(rng, 20, 512), [Flag.IS_NOISE_MEASUREMENT], fields={"sample_time_us": 4.0})]
    lines = []
    for number, image in enumerate(images):
        kspace = np.einsum("ya,xb,nab->nyx", dft(32), dft(64), image)
        for line in range(32):
            last = [Flag.LAST_IN_SLICE] if line == 31 else []
            lines.append(readout(kspace[:, line], last, line=line, slice=number, fields={"sample_time_us": 4.0, "center_sample": 32}))
    limits = {"kspace_encoding_step_1": (0, 31, 16), "slice": (0, 1, 0)}
    header = make_header((64, 32, 1), (32, 32, 1), encoded_mm=(64, 32, 1), recon_mm=(32, 32, 1), limits=limits)
    return header, noise + lines, np.stack(images)[..., 16:48], noise[0].data


def run_chain(name: str, scan) -> list[Image]:
    header, items, _, _ = scan
    return through(chain(name), items, Context(header=header))


def rss(images: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(np.abs(images) ** 2, axis=1))


def test_default_shows_the_object(scan):
    out = run_chain("stock/default.xml", scan)
    np.testing.assert_allclose([image.data[0, 0] for image in out], rss(scan[2]), atol=1e-4)
    assert [int(image.header["slice"]) for image in out] == [0, 1]
    assert [int(image.header["image_index"]) for image in out] == [1, 2]


def test_default_short_scales_to_twelve_bits(scan):
    for image, expected in zip(run_chain("stock/default_short.xml", scan), rss(scan[2]), strict=True):
        assert image.data.dtype == np.uint16
        value = image.data[0, 0] * float(image.meta["RescaleSlope"])
        assert np.abs(value - expected).max() <= float(image.meta["RescaleSlope"])
        assert 2000 <= np.percentile(image.data, 99) <= 2048


def test_default_optimized_whitens_and_keeps_the_strongest(scan):
    _, _, images, noise = scan
    samples = noise.astype(complex)
    whitening = np.linalg.inv(np.linalg.cholesky(samples @ samples.conj().T / (samples.shape[1] - 1))) * np.sqrt(2 * 0.793)
    expected = rss(np.einsum("mn,snyx->smyx", whitening, images))
    out = run_chain("stock/default_optimized.xml", scan)
    for image, wanted in zip(out, expected, strict=True):
        assert np.linalg.norm(image.data[0, 0] - wanted) < 2e-3 * np.linalg.norm(wanted)


def test_our_cartesian_config_runs_to_integers(scan):
    out = run_chain("cartesian.xml", scan)
    for image, expected in zip(out, rss(scan[2]), strict=True):
        assert image.data.dtype == np.uint16
        inside = expected > 0
        assert np.median(image.data[0, 0][inside]) > 20 * np.median(image.data[0, 0][~inside] + 1.0)
        assert image.meta["DataRole"] == "Image"


def test_these_gadgets_do_without_tensorflow():
    modules = ["noise", "oversampling", "coils", "accumulate", "buffer", "cartesian", "images", "geometry", "meta"]
    code = f"import sys; [__import__('gadgets.' + name) for name in {modules}]; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
