"""Watch scans being reconstructed while they stream.

    make demo                 two simulated scans: real-time radial (a beating heart), Cartesian with GRAPPA
    make demo FILE=scan.h5    a scan of yours

Starts the server as a process of its own, streams over TCP, and writes images, pictures, an animation and the server's log to
``demo-output/``. Simulated scans are compared with the known truth.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from gadgets.header import Header
from recon.metrics import nrmse
from scripts import simulate
from service.client import ClientError, replay
from service.files import read_images, read_measurement
from service.report import Report, write_reports

STAGES = ("received→triggered", "triggered→reconstructed", "reconstructed→sent")
LIMITS = {"radial": 0.35, "cartesian": 0.2}
"""Errors against the truth above which the demonstration has failed."""

console = Console(highlight=False)


def main(
    file: Annotated[Path | None, typer.Option(help="ISMRMRD HDF5 file instead of the simulated scans", exists=True, dir_okay=False)] = None,
    config: Annotated[str | None, typer.Option(help="config for it [default: by its header]")] = None,
    folder: Annotated[Path, typer.Option(help="where everything is written")] = Path("demo-output"),
) -> None:
    """Stream a real-time radial and an accelerated Cartesian scan through the server and look at what comes back."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.h5"):
        old.unlink()
    if file is not None:
        scans = [(file.stem, file, config or config_for(file), None)]
    else:
        console.print("simulating a real-time radial scan (8 coils, 13 spokes a frame) and a Cartesian one (8 coils, R = 3)")
        radial, cartesian = folder / "radial_raw.h5", folder / "cartesian_raw.h5"
        simulate.radial(128, 8, 13, 40, noise=0.01, tr_ms=4.0).save(radial)
        simulate.cartesian((192, 192), 8, acceleration=3, repetitions=4, noise=0.005).save(cartesian)
        scans = [("radial", radial, "radial_realtime.xml", "frames"), ("cartesian", cartesian, "cartesian_grappa.xml", "images")]
    problems: list[str] = []
    reports: list[Report] = []
    with server(folder / "server.log") as port:
        for name, path, chain, truth in scans:
            report = stream(name, path, chain, port, folder)
            reports.append(report)
            problems += [f"{name}: {problem}" for problem in report.problems]
            if truth is not None and report.ok:
                error = compare(folder / f"{name}.h5", path.with_name(f"{path.stem}_truth.npz"), truth)
                console.print(f"  error against the truth (NRMSE of the magnitude): {error:.3f}")
                if not error < LIMITS[name]:
                    problems.append(f"{name}: the error against the truth is {error:.3f}, more than {LIMITS[name]}")
    write_reports(reports, folder / "report.json")
    print_latencies(reports, folder / "server.log")
    console.print(f"images, pictures and the server's log are in [bold]{escape(str(folder))}[/]")
    for problem in problems:
        console.print(f"[red]failed:[/] {escape(problem)}")
    raise typer.Exit(1 if problems else 0)


def config_for(file: Path) -> str:
    """A config that suits a scan's trajectory, acceleration and repetitions."""
    encoding = Header(read_measurement(file).header_xml).encoding()
    repetitions = encoding.limit("repetition")
    realtime = repetitions is not None and repetitions.maximum > 0
    if encoding.trajectory in ("radial", "goldenangle"):
        return "radial_realtime.xml" if realtime else "radial_cgsense.xml"
    if encoding.trajectory == "spiral":
        return "spiral_realtime.xml" if realtime else "spiral_cgsense.xml"
    return "cartesian_grappa.xml" if max(encoding.acceleration) > 1 else "cartesian.xml"


@contextmanager
def server(log: Path) -> Iterator[int]:
    """A server on a free port, as long as the context lasts; gives the port."""
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--workers", "1"]
    with log.open("w") as sink:
        process = subprocess.Popen(command, stderr=sink, stdout=sink)
    try:
        port = int(wait_for(process, log, r"listening on \S+ port (\d+)", 10))
        console.print(f"server listens on port {port} (process {process.pid}); its worker is warming up")
        begin = time.monotonic()
        wait_for(process, log, r"worker \d+ is warm", 120)
        console.print(f"worker warm after {time.monotonic() - begin:.1f} s")
        yield port
    finally:
        process.terminate()
        process.wait(60)


def wait_for(process: subprocess.Popen, log: Path, pattern: str, seconds: float) -> str:
    """Wait until a line of the log matches; returns its first group. Raises `ClientError` with the log's end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(pattern, log.read_text())
        if found:
            return found.group(found.lastindex or 0)
        time.sleep(0.05)
    raise ClientError(f"the server did not start ({pattern!r} is missing in {log}):\n{log.read_text()[-2000:]}")


def stream(name: str, path: Path, chain: str, port: int, folder: Path) -> Report:
    """Send a scan and show images arriving."""
    console.print(f"\n[bold]{escape(name)}[/]: {escape(path.name)} through {escape(chain)}, at the pace of the scan")
    count = read_measurement(path).count
    columns = (TextColumn("  readouts sent"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[images]} images back"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=count, images=0)
        report = replay(
            path,
            chain,
            "localhost",
            port,
            output=folder / f"{name}.h5",
            pictures=folder / name,
            animate=True,
            realtime=True,
            progress=lambda sent, images: bar.update(task, completed=sent, images=images),
        )
        bar.update(task, completed=report.items, images=report.images)
    console.print(f"  {escape(report.line())}")
    return report


def compare(images: Path, truth: Path, name: str) -> float:
    """NRMSE of the magnitude images against the truth, after one common scale (integer images have their own)."""
    (series,) = read_images(images).values()
    data = np.abs(series[2][:, 0, 0].astype(np.complex128))
    with np.load(truth) as known:
        reference = np.abs(known[name])
    reference = np.broadcast_to(reference, data.shape) if len(reference) == 1 else reference
    scale = np.vdot(data, reference).real / np.vdot(data, data).real
    return nrmse(reference, scale * data)


def print_latencies(reports: list[Report], log: Path) -> None:
    """What the server says of its stages, and what the client saw."""
    lines = [line for line in log.read_text().splitlines() if STAGES[0] in line]
    table = Table(title="\nlatency of an image, median / 99th percentile in ms", title_justify="left")
    table.add_column("")
    for report in reports:
        table.add_column(escape(Path(report.file).name), justify="right")
    for stage in STAGES:
        found = [re.search(rf"{stage} ([\d.]+)/([\d.]+) ms", line) for line in lines]
        table.add_row(f"server: {stage}", *(f"{f.group(1)} / {f.group(2)}" if f else "" for f in found))
    seen = [report.summary().get("latency_ms") for report in reports]
    table.add_row("client: last readout → image", *(f"{s['median']:.1f} / {s['p99']:.1f}" if s else "not known" for s in seen))
    console.print(table)


if __name__ == "__main__":
    try:
        typer.run(main)
    except ClientError as error:
        console.print(f"[red]failed:[/] {escape(str(error))}")
        sys.exit(1)
