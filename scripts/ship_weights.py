"""Put trained weights into the package: half precision, checksum, the numbers for the catalogue.

    python scripts/ship_weights.py OUT NAME

OUT is what scripts/train.py wrote. Writes recon/networks/NAME.weights.h5 and prints what to enter in recon/networks/weights.yaml.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import yaml

FOLDER = Path(__file__).parents[1] / "recon" / "networks"


def main() -> None:
    """Convert and describe."""
    source, name = Path(sys.argv[1]), sys.argv[2]
    target = FOLDER / f"{name}.weights.h5"
    with h5py.File(source / "weights.weights.h5", "r") as file, h5py.File(target, "w") as result:

        def copy(path: str, item: h5py.Dataset | h5py.Group) -> None:
            if isinstance(item, h5py.Dataset) and item.dtype == np.float32:
                if np.abs(item[()]).max(initial=0) > 6e4:
                    raise SystemExit(f"{path} has values that half precision cannot hold")
                compression = "gzip" if item.ndim else None
                result.create_dataset(path, data=item[()].astype(np.float16), compression=compression)
            elif isinstance(item, h5py.Dataset):
                result.create_dataset(path, data=item[()])
            else:
                result.require_group(path)
            for key, value in item.attrs.items():
                result[path].attrs[key] = value

        file.visititems(copy)
    metrics = json.loads((source / "metrics.json").read_text())
    entry = {
        "file": target.name,
        "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
        "metrics": {
            "held-out simulated": metrics["held_out"],
            "training": {
                "steps": metrics["steps"],
                "series": metrics["series_seen"],
                "seconds": round(metrics["seconds"]),
                "device": metrics["device"][-1],
                **{name: metrics["versions"][name] for name in ("tensorflow", "keras")},
            },
        },
    }
    print(yaml.safe_dump({name: entry}, sort_keys=False))


if __name__ == "__main__":
    main()
