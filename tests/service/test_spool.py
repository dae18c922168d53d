"""The folder of raw streams: names, rights, limits, and what it must never do to a scan."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from service.spool import Spool, safe_name


def make(folder: Path, name: str, size: int, age: int) -> Path:
    path = folder / name
    path.write_bytes(bytes(size))
    os.utime(path, (1_000_000_000 - age, 1_000_000_000 - age))
    return path


def spool(folder: Path, limit: int = 2**20) -> Spool:
    one = Spool(folder / "spool", limit)
    one.prepare()
    return one


def test_a_measurement_is_a_part_until_it_is_over(tmp_path: Path) -> None:
    one = spool(tmp_path)
    file = one.open("a1b2c3d4")
    file.write(b"ab")
    file.write(memoryview(bytearray(b"cd")))
    (part,) = one.folder.iterdir()
    assert part.name.endswith("_a1b2c3d4.part")
    assert part.read_bytes() == b"abcd"
    final = file.finish("45387_66/a1b2c3d4", complete=True)
    assert list(one.folder.iterdir()) == [final]
    assert final is not None
    assert final.name.endswith("_45387_66-a1b2c3d4.mrd")
    assert final.read_bytes() == b"abcd"
    assert stat.S_IMODE(final.stat().st_mode) == 0o600


def test_a_stream_without_close_is_named_so(tmp_path: Path) -> None:
    file = spool(tmp_path).open("a1b2c3d4")
    file.write(b"abc")
    final = file.finish("m1", complete=False)
    assert final is not None
    assert final.name.endswith("_m1.incomplete.mrd")


def test_a_connection_without_measurement_leaves_nothing(tmp_path: Path) -> None:
    one = spool(tmp_path)
    file = one.open("a1b2c3d4")
    file.write(b"abc")
    file.discard()
    assert list(one.folder.iterdir()) == []


def test_what_a_dead_worker_had_written_is_kept(tmp_path: Path) -> None:
    one = spool(tmp_path)
    one.open("a1b2c3d4").write(b"abc")
    one.open("other").write(b"xyz")
    kept = one.finish_abandoned("a1b2c3d4")
    assert kept is not None
    assert kept.name.endswith("_a1b2c3d4.incomplete.mrd")
    assert kept.read_bytes() == b"abc"
    assert len(list(one.folder.glob("*_other.part"))) == 1
    assert one.finish_abandoned("a1b2c3d4") is None


def test_parts_of_a_killed_server_are_finished_and_those_of_a_living_one_are_not(tmp_path: Path) -> None:
    one = spool(tmp_path)
    code = f"""
from pathlib import Path
from service.spool import Spool
Spool(Path({str(one.folder)!r}), 2**20).open("dead").write(b"abc")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    living = one.open("living")
    one.prepare()
    assert sorted(path.name.split("_")[1] for path in one.folder.iterdir()) == ["dead.incomplete.mrd", "living.part"]
    assert living.finish("living", complete=True) is not None


def test_the_oldest_go_first(tmp_path: Path) -> None:
    one = spool(tmp_path, limit=1000)
    oldest = make(one.folder, "c.mrd", 400, age=30)
    middle = make(one.folder, "a.incomplete.mrd", 400, age=20)
    youngest = make(one.folder, "b.mrd", 400, age=10)
    foreign = make(one.folder, "notes.txt", 5000, age=99)
    file = one.open("x")
    assert not oldest.exists()
    assert middle.exists()
    assert youngest.exists()
    assert foreign.exists()
    file.discard()


def test_a_running_measurement_is_never_deleted_to_make_room(tmp_path: Path) -> None:
    one = spool(tmp_path, limit=1000)
    running = one.open("running")
    running.write(bytes(900))
    os.utime(next(one.folder.glob("*.part")), (1, 1))
    done = make(one.folder, "done.mrd", 400, age=0)
    one.make_room()
    assert not done.exists()
    assert running.finish("running", complete=True) is not None


def test_a_measurement_larger_than_the_limit_goes_on_unspooled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = spool(tmp_path, limit=1000)
    file = one.open("large")
    for _ in range(3):
        file.write(bytes(400))
    assert file.finish("large", complete=True) is None
    (kept,) = one.folder.iterdir()
    assert kept.name.endswith(".incomplete.mrd")
    assert kept.stat().st_size == 800
    assert "spool_mib" in caplog.text


def test_a_full_disk_ends_the_spooling_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    file = spool(tmp_path).open("a1b2c3d4")
    file.write(b"abc")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        file.write(b"def")
    file.write(b"ghi")
    assert "No space left on device" in caplog.text
    assert file.finish("m", complete=True) is None
    (kept,) = (tmp_path / "spool").iterdir()
    assert kept.read_bytes() == b"abc"  # no hole: what comes later could not be read


def test_a_folder_that_vanished_ends_the_spooling_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = spool(tmp_path)
    one.folder.rmdir()
    file = one.open("a1b2c3d4")
    file.write(b"abc")
    assert file.finish("m", complete=True) is None
    assert "No such file" in caplog.text


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b\0c", "", "...", "x" * 500, "Ünïcode id"])
def test_names_from_outside_stay_in_the_folder(name: str) -> None:
    safe = safe_name(name)
    assert safe
    assert len(safe) <= 80
    assert os.path.basename(safe) == safe
    assert not safe.startswith(".")
    assert safe.isascii()
