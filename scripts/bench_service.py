"""Measure the running service over TCP: start-up, warm start, real-time latency, pass-through.

    python scripts/bench_service.py [--frames 60] [--runs 5] [--json OUT.json] [--configs CONFIG[=SCAN] …] [--rehearse]

A server process with one worker; everything it answers comes over loopback. SCAN: a real-time scan (ISMRMRD HDF5), or `radial` (10 coils,
128 x 128, 13 tiny-golden-angle spokes a frame) or `hyperslice` (10 coils, 240 x 240, 15 spiral arms a frame), simulated here. With
--rehearse the worker runs each chain once before it takes clients.

* start: from starting the process until the port answers a query, and until the worker is warm.
* warm start: latency of the first image of a measurement that is not the first, over that of its steady frames (median of the second
  half), at the scan's pace. A core that idled while the first frame was measured computes slowly at first, above all in a virtual machine.
* real time: from handing the last readout of a frame to the socket until its image is decoded, sent at the pace of the scan.
* throughput: images per second when the scan is sent as fast as the service takes it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts import simulate
from service.client import ask, replay
from service.report import Report

SIMULATED: dict[str, Callable[[int], simulate.Scan]] = {
    "radial": lambda frames: simulate.radial(128, coils=10, spokes=13, frames=frames),
    "hyperslice": lambda frames: simulate.hyperslice(frames=frames),
}


@contextmanager
def server(log: Path, timings: dict[str, float], rehearse: dict[str, Path]) -> Iterator[int]:
    """A server process with one warm worker; yields its port."""
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--workers", "1"]
    for config, scan in rehearse.items():
        command += ["--rehearse", f"{config}={scan}"]
    with open(log, "w") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stderr=output, stdout=output, env=os.environ)
        try:
            port = int(_wait(process, log, "port ").split("port ")[1].split()[0])
            ask("127.0.0.1", port)
            timings["listening_s"] = time.perf_counter() - start
            _wait(process, log, "is warm")
            timings["warm_s"] = time.perf_counter() - start
            yield port
        finally:
            process.terminate()
            process.wait(30)


def _wait(process: subprocess.Popen, log: Path, words: str, seconds: float = 300) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if words in line:
                return line
        if process.poll() is not None:
            break
        time.sleep(0.005)
    raise SystemExit(f"the server did not say {words!r}:\n{log.read_text()}")


def _scan(kind: str, folder: Path, frames: int) -> Path:
    """A file as it is, or one simulated of this kind."""
    if kind not in SIMULATED:
        return Path(kind)
    path = folder / f"{kind}.h5"
    if not path.exists():
        SIMULATED[kind](frames).save(path)
    return path


def _stages(log: Path) -> list[str]:
    """What the worker says about the time of each measurement."""
    return [line.partition("; ")[2] for line in log.read_text().splitlines() if "received→triggered" in line]


def latencies(report: Report) -> np.ndarray:
    """Latency of every image in ms; ends the benchmark when the replay failed."""
    if not report.ok:
        raise SystemExit(f"replay failed: {report.problems}")
    return np.array([value for value in report.latency_ms if value is not None])


def measure(scan: Path, config: str, port: int, runs: int) -> dict[str, Any]:
    """Warm start, latency at the scan's pace and throughput of one chain."""
    first = latencies(replay(scan, config, "127.0.0.1", port, realtime=True))
    paced = [latencies(replay(scan, config, "127.0.0.1", port, realtime=True)) for _ in range(runs)]
    fast = [replay(scan, config, "127.0.0.1", port) for _ in range(runs)]
    steady = [float(np.median(run[len(run) // 2 :])) for run in paced]
    together = np.concatenate([run[1:] for run in paced])
    return {
        "images": len(first),
        "first_measurement_first_image_ms": float(first[0]),
        "warm_first_image_ms": statistics.median(float(run[0]) for run in paced),
        "steady_ms": statistics.median(steady),
        "warm_start_ratio": statistics.median(float(run[0]) / one for run, one in zip(paced, steady, strict=True)),
        "latency_median_ms": float(np.median(together)),
        "latency_p99_ms": float(np.percentile(together, 99)),
        "images_per_s_at_full_speed": statistics.median(report.images / report.total_ms * 1e3 for report in fast),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--configs", nargs="*", default=["radial_realtime.xml"])
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        scans = {
            config: _scan(kind or "radial", Path(folder), arguments.frames)
            for config, _, kind in (one.partition("=") for one in arguments.configs)
        }
        with server(log, results, scans if arguments.rehearse else {}) as port:
            for config, scan in scans.items():
                results[config] = measure(scan, config, port, arguments.runs)
                results[config]["stages_of_the_last_paced_measurement"] = _stages(log)[-1 - arguments.runs]
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
