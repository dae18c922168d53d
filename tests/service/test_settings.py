"""Settings: where they come from, in which order, and what is said about wrong ones. The queue, the log and the answers beside them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from service import logs
from service.bounded import BoundedQueue, QueueEnded
from service.queries import UNKNOWN, answer
from service.settings import Settings, SettingsError
from tests.service.peer import ROOT, wait_for


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("RECONSTREAM_"):
            monkeypatch.delenv(name)


def test_the_file_that_is_shipped_holds_the_defaults_of_all_settings() -> None:
    assert set(yaml.safe_load((ROOT / "configs" / "service.yaml").read_text())) == set(Settings.model_fields)
    assert Settings.load() == Settings()


def test_command_line_over_environment_over_file_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("port: 1111\nworkers: 5\nwaiting: 7\n")
    monkeypatch.setenv("RECONSTREAM_SETTINGS", str(file))
    monkeypatch.setenv("RECONSTREAM_PORT", "2222")
    monkeypatch.setenv("RECONSTREAM_WORKERS", "6")
    monkeypatch.setenv("RECONSTREAM_CONFIGS", "/somewhere/else")
    chosen = Settings.load(port=3333, workers=None)
    assert (chosen.port, chosen.workers, chosen.waiting, chosen.send_seconds) == (3333, 6, 7, 60)


def test_an_empty_variable_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECONSTREAM_THREADS", "")
    assert Settings.load().threads is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("prot: 1", "no setting 'prot'.*port"),
        ("workers: 0", "workers: .*greater than or equal to 1"),
        ("port: many", "port: .*'many'"),
        ("- a\n- b", "name: value"),
        ("a: [", "not YAML"),
    ],
)
def test_wrong_settings(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=reason):
        Settings.load(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.yaml: .*No such file"):
        Settings.load(tmp_path / "gone.yaml")


# -- queue -------------------------------------------------------------------------------------------------------------


def test_a_full_queue_makes_the_sender_wait() -> None:
    queue: BoundedQueue[int] = BoundedQueue(100)
    put: list[int] = []

    def fill() -> None:
        for number in range(10):
            queue.put(number, 40)
            put.append(number)

    thread = threading.Thread(target=fill)
    thread.start()
    wait_for(lambda: len(put) == 3, "the queue to fill")  # 40, 80, 120: the third is let in below the limit
    found = [queue.get(10)]
    wait_for(lambda: len(put) == 4, "one more to be let in")
    found += [queue.get(10) for _ in range(9)]
    thread.join(10)
    assert found == list(range(10))


def test_one_item_larger_than_the_queue_still_passes() -> None:
    queue: BoundedQueue[str] = BoundedQueue(1)
    queue.put("large", 10**9)
    assert queue.get(1) == "large"


def test_the_end_comes_after_what_is_in_the_queue_and_a_failure_before_it() -> None:
    ended: BoundedQueue[int] = BoundedQueue(10)
    ended.put(1)
    ended.end(ValueError("later"))
    assert ended.get() == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="later"):
            ended.get()
    failed: BoundedQueue[int] = BoundedQueue(10)
    failed.put(1)
    failed.fail()
    with pytest.raises(QueueEnded):
        failed.get()
    with pytest.raises(QueueEnded):
        failed.put(2)


def test_waiting_on_either_side_ends_with_the_queue() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1)
    queue.put(1, 1)
    ended = threading.Event()

    def put() -> None:
        with pytest.raises(QueueEnded):
            queue.put(2, 1)
        ended.set()

    threading.Thread(target=put).start()
    queue.fail()
    assert ended.wait(10)
    with pytest.raises(TimeoutError):
        BoundedQueue[int](1).get(0.01)


# -- log and answers ---------------------------------------------------------------------------------------------------


def test_a_peer_cannot_forge_log_lines() -> None:
    assert logs.one_line("a\nb\r\x1b[31mc") == "a b  [31mc"
    assert logs.one_line("x" * 50, 10) == "x" * 10 + "…"


def test_log_lines() -> None:
    code = "from service import logs; logs.set_up('INFO'); import logging; logging.getLogger('service.x').info('[m1] text')"
    code += (
        "; logging.getLogger('service.x').debug('no'); logging.getLogger('other').info('no'); logging.getLogger('other').warning('foreign')"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stderr.splitlines()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    assert re.fullmatch(stamp + r" INFO    \d+ \[m1\] text", lines[0])
    assert re.fullmatch(stamp + r" WARNING \d+ foreign", lines[1])
    assert len(lines) == 2


def test_answers() -> None:
    assert answer("ismrmrd::version") == version("ismrmrd")
    assert version("reconstream") in answer("gadgetron::version")
    assert int(answer("gadgetron::info::memory")) > 2**28
    assert answer("gadgetron::info::matlab") == "0"
    assert int(answer("gadgetron::cuda::devices")) == len(list(Path("/dev").glob("nvidia[0-9]*")))
    for key in ("build", "info", "info::python", "info::cuda", "cuda::driver", "cuda::runtime", "cuda::memory", "cuda::capabilities"):
        assert answer(f"gadgetron::{key}") != UNKNOWN
    assert answer("gadgetron::secrets") == UNKNOWN


def test_links_that_kubernetes_sets_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "tcp://10.0.0.7:9002"
    for name in ("PORT", "PORT_9002_TCP", "PORT_9002_TCP_ADDR", "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_MRD"):
        monkeypatch.setenv(f"RECONSTREAM_{name}", address if name.startswith("PORT") else "10.0.0.7")
    assert Settings.load().port == 9002
    monkeypatch.setenv("RECONSTREAM_PORTS", "1")
    with pytest.raises(SettingsError, match="RECONSTREAM_PORTS"):
        Settings.load()


def test_rehearsals_from_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("rehearse:\n  a.xml: /one.h5\n")
    assert Settings.load(file).rehearse == {"a.xml": Path("/one.h5")}
    assert Settings.load(file, rehearse=["b.xml=/two=2.h5", "c.xml=/three.h5"]).rehearse == {
        "b.xml": Path("/two=2.h5"),
        "c.xml": Path("/three.h5"),
    }
    monkeypatch.setenv("RECONSTREAM_REHEARSE", "b.xml=/two.h5,c.xml=/three.h5")
    assert Settings.load(file).rehearse == {"b.xml": Path("/two.h5"), "c.xml": Path("/three.h5")}
    monkeypatch.setenv("RECONSTREAM_REHEARSE", "b.xml")
    with pytest.raises(SettingsError, match=r"rehearse: .*CONFIG=FILE"):
        Settings.load(file)
