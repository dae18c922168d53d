"""Stream the simulated contrast series to maps, and tell their errors against the truth.

    python scripts/map_errors.py FOLDER [--only t1_vfa_radial ...]

FOLDER holds ``t1_vfa_radial.h5``, ``t1_irll_radial.h5``, ``t2_mese_cartesian.h5``, ``t2star_megre_radial.h5`` and their
``..._truth.npz``. Errors are of the pixels of `mask_interior`, sensitivities are estimated from the data.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from configs import __file__ as configs
from gadgets.items import Image
from service.local import reconstruct

T2STAR_RADIAL = (Path(configs).parent / "t1_vfa_radial.xml").read_bytes().replace(b'value="VFA"', b'value="R2Star"')
"""The radial chain, for another model."""
CASES: dict[str, tuple[str | bytes, str]] = {
    "t1_vfa_radial": ("t1_vfa_radial", "T1"),
    "t1_irll_radial": ("t1_look_locker_radial", "T1"),
    "t2_mese_cartesian": ("t2_multi_echo", "T2"),
    "t2star_megre_radial": (T2STAR_RADIAL, "T2star"),
}


def errors(folder: Path, name: str, **properties: object) -> dict[str, Any]:
    """Median absolute and signed error of each map of the parameter in percent, by method, and of its standard deviation."""
    config, key = CASES[name]
    with np.load(folder / f"{name}_truth.npz") as truth:
        true, inside = truth[f"{key}_ms"], truth["mask_interior"].astype(bool)
    begun, cpu = time.perf_counter(), time.process_time()
    images = reconstruct(folder / f"{name}.h5", config, **properties)
    result: dict[str, Any] = {"wall_s": round(time.perf_counter() - begun, 1), "cpu_s": round(time.process_time() - cpu, 1)}
    for image in images:
        if image.meta.get("QuantityName") == key:
            relative = (image.data[0, 0] - true)[inside] / true[inside]
            spread = next(one for one in images if belongs(one, image))
            scatter = 1.4826 * np.median(np.abs(relative - np.median(relative)))
            result[str(image.meta["ImageComment"]).partition(", map, ")[2]] = {
                "median_absolute_error_percent": round(100 * float(np.median(np.abs(relative))), 2),
                "bias_percent": round(100 * float(np.median(relative)), 2),
                "deviation_by_scatter": round(float(np.median(spread.data[0, 0][inside] / true[inside]) / scatter), 2),
            }
    return result


def belongs(one: Image, image: Image) -> bool:
    """Whether `one` is the standard deviation of the map `image`."""
    same = all(one.header[name] == image.header[name] for name in ("image_index", "slice", "repetition"))
    return same and one.header["image_series_index"] == image.header["image_series_index"] + 1


def main() -> None:
    """Print the errors of all series as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    arguments = parser.parse_args()
    for name in arguments.only:
        print(json.dumps({name: errors(arguments.folder, name)}, indent=1), flush=True)


if __name__ == "__main__":
    main()
