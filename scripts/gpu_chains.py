"""Every packaged chain on a GPU beside the CPU: the same scan, image by image.

    python scripts/gpu_chains.py [--json OUT.json] [--only CHAIN ...] [--seconds 240]

The CPU's images come from a process that sees no GPU, at the same time. For each chain: the largest relative difference of an image (root
of the sum of squares over that of the CPU's image; of maps the median over voxels), the seconds of the first scan on the GPU (plans made,
networks compiled) and of the second. Exit status 1 when a chain fails or differs by more than its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recon import device  # before NumPy's OpenMP libraries: sets the waiting policy

import numpy as np  # isort: skip

from gadgets.items import Acquisition, Item
from scripts import simulate
from service.local import reconstruct

Scan = tuple[bytes, list[Item]]
BOUND = 0.03
"""Of the relative difference: NUFFTs at 1e-3, iterations that amplify rounding, networks in TensorFloat-32."""
BOUND_OF_MAPS = 0.15
"""Standard deviations of regularised maps come from a few random replicas; the maps themselves agree to 1e-3."""
MAPS = ("t1_vfa_radial.xml", "t1_look_locker_radial.xml", "t2_multi_echo.xml", "t2star_multi_echo.xml", "t2star_sms.xml")
"""Compared voxel by voxel, by the median: where there is no object, a few values of maps and their deviations outweigh all others."""


def _of(scan: simulate.Scan) -> Scan:
    return scan.header, list(scan.items)


def clip() -> Scan:
    """A real-time series of 12 frames with every eighth line, in turn, and the middle eight."""
    header, items = _of(simulate.cartesian((128, 128), 10, 1, noise=0.01, repetitions=12))
    kept: list[Item] = []
    for item in items:
        assert isinstance(item, Acquisition)
        line, frame = int(item.header["idx"]["kspace_encode_step_1"]), int(item.header["idx"]["repetition"])
        if (line + 3 * frame) % 8 == 0 or abs(line - 63.5) < 4:
            kept.append(item)
    return header, kept


def from_tests(name: str) -> Scan:
    """Scans that only tests know how to make."""
    from tests.end_to_end.test_network_chains import sodium
    from tests.gadgets.contrast_scan import ContrastScan
    from tests.gadgets.field_scan import FieldScan
    from tests.gadgets.sms_scan import SMSScan

    if name == "sodium":
        header, items, _ = sodium(4, 0.5)
        return header, items
    if name == "sms_echoes":
        echoes = ContrastScan(kind="t2", shape=(4, 96, 96), bands=2, coils=8)
        return echoes.header, list(echoes.items())
    if name == "sms":
        slices = SMSScan()
        return slices.header.xml, list(slices.items())
    field, readouts = FieldScan(), list[Item]()
    for contrast in range(2):
        readouts += field.image(contrast, len(readouts))
    return field.header.xml, readouts


SCANS: dict[str, Callable[[], Scan]] = {
    "radial": lambda: _of(simulate.radial(128, coils=10, spokes=13, frames=8)),
    "spiral": lambda: _of(simulate.spiral(128, coils=8, interleaves=12, frames=4)),
    "hyperslice": lambda: _of(simulate.hyperslice(frames=8)),
    "cartesian": lambda: _of(simulate.cartesian((128, 128), 8, 2)),
    "clip": clip,
    "epi": lambda: _of(simulate.epi()),
    "vfa": lambda: _of(simulate.relaxation("t1_vfa", spokes=48)),
    "look_locker": lambda: _of(simulate.relaxation("t1_ll", spokes=400)),
    "t2": lambda: _of(simulate.relaxation("t2")),
    "sodium": lambda: from_tests("sodium"),
    "sms": lambda: from_tests("sms"),
    "sms_echoes": lambda: from_tests("sms_echoes"),
    "field": lambda: from_tests("field"),
    "t2star": lambda: _of(simulate.relaxation("t2star")),
}
CHAINS = {
    "spiral_hyperslice.xml": "hyperslice",
    "radial_fastdvdnet.xml": "radial",
    "cartesian_varnet.xml": "clip",
    "radial_unet.xml": "radial",
    "radial_realtime.xml": "radial",
    "radial_gridding.xml": "radial",
    "radial_cgsense.xml": "radial",
    "radial_grasp.xml": "radial",
    "radial_llr.xml": "radial",
    "radial_compressed_sensing.xml": "radial",
    "spiral_realtime.xml": "spiral",
    "spiral_cgsense.xml": "spiral",
    "spiral_b0.xml": "field",
    "sodium_dncnn.xml": "sodium",
    "cartesian_sms.xml": "sms",
    "t2star_sms.xml": "sms_echoes",
    "cartesian_grappa.xml": "cartesian",
    "cartesian_compressed_sensing.xml": "cartesian",
    "cartesian_spirit.xml": "cartesian",
    "epi_grappa.xml": "epi",
    "t2_multi_echo.xml": "t2",
    "t1_vfa_radial.xml": "vfa",
    "t1_look_locker_radial.xml": "look_locker",
    "t2star_multi_echo.xml": "t2star",
}


def run(chain: str, scan: Scan) -> list[np.ndarray]:
    """The images of a chain."""
    return [np.asarray(image.data) for image in reconstruct(scan[1], chain, header=scan[0])]


def references(folder: Path, chains: list[str]) -> None:
    """The CPU's images of each chain, into files; a failure's text in the place of images."""
    scans: dict[str, Scan] = {}
    for chain in chains:
        kind = CHAINS[chain]
        if kind not in scans:
            scans[kind] = SCANS[kind]()
        part = folder / f"{chain}.part.npz"
        try:
            images: dict[str, Any] = {f"i{n:04d}": image for n, image in enumerate(run(chain, scans[kind]))}
            np.savez(part, **images)
        except Exception as error:
            np.savez(part, error=np.array(f"{type(error).__name__}: {error}"))
        part.rename(folder / f"{chain}.npz")


def _differ(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / max(np.linalg.norm(other), 1e-30))


def _differ_by_voxel(one: np.ndarray, other: np.ndarray) -> float:
    known = other != 0
    return float(np.median(np.abs(one - other)[known] / np.abs(other[known]))) if known.any() else float(np.abs(one).max())


def wait_for(file: Path, other: subprocess.Popen, deadline: float) -> None:
    """Until the other process has written a file. Raises RuntimeError when it has ended without, or the time is over."""
    while not file.exists():
        if other.poll() is not None and not file.exists():
            raise RuntimeError(f"the process for the CPU's images ended with status {other.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError("the CPU's images were not there in time (--seconds)")
        time.sleep(0.05)


def compared(chain: str, scan: Scan, folder: Path, other: subprocess.Popen, deadline: float) -> dict[str, Any]:
    """Two scans on the GPU, and how the images of the second differ from the CPU's."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        images = run(chain, scan)
        seconds.append(round(time.perf_counter() - start, 3))
    file = folder / f"{chain}.npz"
    wait_for(file, other, deadline)
    with np.load(file) as stored:
        if "error" in stored:
            raise RuntimeError(f"on the CPU: {stored['error']}")
        expected = [stored[name] for name in sorted(stored)]
    if [one.shape for one in images] != [one.shape for one in expected]:
        raise RuntimeError(f"{len(images)} images instead of the CPU's {len(expected)}, or of other sizes")
    differ = _differ_by_voxel if chain in MAPS else _differ
    differences = [differ(one.astype(complex), other.astype(complex)) for one, other in zip(images, expected, strict=True)]
    return {
        "images": len(images),
        "first_s": seconds[0],
        "second_s": seconds[1],
        "difference": float(np.max(differences)),  # NaN where one is NaN
        "median_difference": float(np.median(differences)),
    }


def main() -> int:
    """Run, print, and write after each chain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(CHAINS), choices=list(CHAINS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=240, help="end then, with what is done")
    parser.add_argument("--references", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.references:
        references(arguments.references, arguments.only)
        return 0
    deadline, failed = time.monotonic() + arguments.seconds, []
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, __file__, "--references", name, "--only", *arguments.only]
        other = subprocess.Popen(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"})
        device.configure()
        results["gpu"] = device.use_gpu()
        if not results["gpu"]:
            failed.append("no GPU is in use: these are the CPU's images twice")
        scans: dict[str, Scan] = {}
        for chain in arguments.only:
            if time.monotonic() > deadline:
                failed.append(f"{chain}: not run, the time is over")
                continue
            kind = CHAINS[chain]
            try:
                if kind not in scans:
                    scans[kind] = SCANS[kind]()
                results[chain] = compared(chain, scans[kind], folder, other, deadline)
                if not results[chain]["difference"] <= (BOUND_OF_MAPS if chain in MAPS else BOUND):
                    failed.append(f"{chain}: differs by {results[chain]['difference']:.3g}")
            except Exception as error:
                results[chain] = {"error": f"{type(error).__name__}: {error}"}
                failed.append(f"{chain}: {results[chain]['error']}")
            print(chain, results[chain], flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(results | {"failed": failed}, indent=1) + "\n")
        other.kill()
        other.wait()
    print("\n".join(failed) or "all chains agree")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
