"""Run the benchmarks side by side with the peers: ``python scripts/bench.py [PART ...]`` (default: all of `PARTS`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PARTS = ("wire", "recon", "coils", "grappa", "compressed_sensing", "quantitative", "service")


def main() -> None:
    """Run each part in a process of its own, one after another."""
    parts = sys.argv[1:] or list(PARTS)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise SystemExit(f"no benchmark {unknown[0]!r}; there are {', '.join(PARTS)}")
    for part in parts:
        print(f"\n# {part}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).with_name(f"bench_{part}.py"))], check=True)


if __name__ == "__main__":
    main()
