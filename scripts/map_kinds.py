"""Maps of every kind of scan, streamed through the packaged chains: errors against the truth, and the time of a first and a second scan.

    python scripts/map_kinds.py [--only NAME ...]

Scans are those of the tests (`tests.gadgets.contrast_scan`), larger, with the iterations that the chains ship. Errors are medians over
the inside of the tissues in percent, the mean of slices; seconds are CPU time of the whole chain.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from service.local import reconstruct
from tests.gadgets.contrast_scan import ContrastScan

CASES: dict[str, tuple[ContrastScan, str, dict[str, Any]]] = {
    "spirals": (ContrastScan(sampling="spirals", readouts=8, shape=(2, 64, 64), noise=0.02), "t1_vfa_radial", {}),
    "spirals, twice the field of view": (
        ContrastScan(sampling="spirals", readouts=16, shape=(1, 64, 64), oversampling=2, noise=0.02), "t1_vfa_radial", {}
    ),
    "Cartesian volume": (ContrastScan(kind="t2", shape=(16, 48, 48), volume=True, noise=0.02), "t2_multi_echo", {}),
    "stack of stars": (ContrastScan(sampling="spokes", readouts=32, shape=(12, 40, 40), volume=True, noise=0.02), "t1_vfa_radial", {}),
    "4 slices, 2 at once": (
        ContrastScan(kind="t2", shape=(4, 64, 64), bands=2, coils=8, noise=0.02), "t2star_sms", {"signal_model": "ExpDecay"}
    ),
    "4 slices, one by one": (ContrastScan(kind="t2", shape=(4, 64, 64), coils=8, noise=0.02), "t2_multi_echo", {}),
    "B1 of +-20 %, not known": (ContrastScan(shape=(1, 64, 64), relative=0.2), "t2_multi_echo", {"signal_model": "VFA"}),
    "B1 of +-20 %, from a file": (ContrastScan(shape=(1, 64, 64), relative=0.2), "t2_multi_echo", {"signal_model": "VFA", "b1_map": "b1"}),
    "B1 of +-20 %, double angle": (ContrastScan(shape=(1, 64, 64), relative=0.2, pair=60.0), "t2_multi_echo", {"signal_model": "VFA"}),
}  # fmt: skip


def measured(scan: ContrastScan, config: str, properties: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Errors by method, and seconds of two scans."""
    if "b1_map" in properties:
        np.save(folder / "b1.npy", scan.b1)
        properties = properties | {"b1_map": folder / "b1.npy"}
    result: dict[str, Any] = {"cpu_s": []}
    for _ in range(2):
        begun = time.process_time()
        images = reconstruct(scan.items(), config, header=scan.header, minimum_contrasts=0, **properties)
        result["cpu_s"].append(round(time.process_time() - begun, 1))
    errors: dict[str, list[float]] = {}
    for image in images:
        if image.meta.get("QuantityName") == scan.kind.upper():
            part, values = (slice(None), image.data[0]) if scan.volume else (int(image.header["slice"]), image.data[0, 0])
            errors.setdefault(str(image.meta["ImageComment"]).partition(", map, ")[2], []).append(scan.error(values, part))
    return {name: round(float(np.mean(values)), 2) for name, values in errors.items()} | result


def main() -> None:
    """Print a line for each scan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    with tempfile.TemporaryDirectory() as folder:
        for name in parser.parse_args().only:
            print(json.dumps({name: measured(*CASES[name], Path(folder))}), flush=True)


if __name__ == "__main__":
    main()
