"""The demonstration, with a file of one's own: a real server, images on disk, latencies on the terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scripts import simulate
from service.files import read_images

ROOT = Path(__file__).resolve().parents[2]


def demo(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.demo", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=110)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    scan = tmp_path / "mine.h5"
    simulate.radial(48, 4, 13, 4).save(scan)
    done = demo("--file", str(scan), "--folder", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "radial_realtime.xml" in done.stdout
    for stage in ("received→triggered", "triggered→reconstructed", "reconstructed→sent", "last readout → image"):
        assert stage in done.stdout
    ((_, _, data),) = read_images(tmp_path / "out" / "mine.h5").values()
    assert data.shape == (4, 1, 1, 48, 48)
    assert (tmp_path / "out" / "mine" / "series_001.gif").is_file()
    assert "stopped" in (tmp_path / "out" / "server.log").read_text()


def test_a_failure_is_a_failure(tmp_path: Path) -> None:
    scan = tmp_path / "mine.h5"
    simulate.cartesian((16, 16), 2, acceleration=1).save(scan)
    done = demo("--file", str(scan), "--config", "no_such_config", "--folder", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "no such configuration" in done.stdout
