"""Streams through pipes and files: order of messages, configs from either side, failures that cannot pass for results."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from gadgets.items import Image, Text
from scripts import simulate
from service.chain import ConfigError
from service.files import read_images
from service.pipes import StreamError, stream
from service.transport import Connection
from service.wire import Close, Config, EndOfStream, Filename, HeaderXml, Message, WireError, encode

CONFIG = "default_short"
MAGNITUDE = b"""<configuration><version>2</version>
  <readers><reader><dll>gadgetron_core_readers</dll><classname>ImageReader</classname></reader></readers>
  <writers><writer><dll>gadgetron_core_writers</dll><classname>ImageWriter</classname></writer></writers>
  <stream><gadget><dll>reconstream</dll><classname>ComplexToFloat</classname></gadget></stream>
</configuration>"""


@pytest.fixture(scope="module")
def scan() -> simulate.Scan:
    return simulate.cartesian((24, 16), 2, acceleration=1, repetitions=2)


def to_bytes(*messages: Message) -> bytes:
    return b"".join(bytes(buffer) for message in messages for buffer in encode(message))


def recorded(scan: simulate.Scan, *before: Message) -> bytes:
    return to_bytes(*before, HeaderXml(scan.header), *scan.items, Close())


def run(source: bytes, folder: Path, config: str | bytes | None = CONFIG, **options: dict[str, str]) -> list[Message]:
    """Messages that leave; the last is Close if one came."""
    (folder / "in.mrd").write_bytes(source)
    count = stream(config, folder / "in.mrd", folder / "out.mrd", **options)
    messages = written(folder / "out.mrd")
    assert count == sum(isinstance(message, Image) for message in messages)
    return messages


def written(path: Path) -> list[Message]:
    connection = Connection.from_files(io.BytesIO(path.read_bytes()), None)
    messages: list[Message] = []
    try:
        while not (messages and isinstance(messages[-1], Close)):
            messages.append(connection.read())
    except EndOfStream:
        pass
    return messages


def pixels(messages: list[Message]) -> list[np.ndarray]:
    return [message.data for message in messages if isinstance(message, Image)]


def test_header_then_images_then_close(scan: simulate.Scan, tmp_path: Path) -> None:
    messages = run(recorded(scan), tmp_path)
    assert [type(message) for message in messages] == [HeaderXml, Image, Image, Close]
    assert messages[0] == HeaderXml(scan.header)
    # Root sum of squares over coils whose maps have sum |s|^2 = 1 gives the object itself, up to the 12-bit scale.
    truth = np.abs(scan.truth["images"][0])
    found = pixels(messages)[0][0, 0].astype(float)
    found *= np.vdot(found, truth) / np.vdot(found, found)
    assert np.linalg.norm(found - truth) < 0.15 * np.linalg.norm(truth)


def test_a_config_in_the_stream(scan: simulate.Scan, tmp_path: Path) -> None:
    named = run(recorded(scan, Filename(CONFIG)), tmp_path, None)
    assert len(pixels(named)) == 2
    assert not any(isinstance(message, (Config, Filename)) for message in named)


def test_a_given_config_wins_over_the_streams_own(scan: simulate.Scan, tmp_path: Path) -> None:
    messages = run(recorded(scan, Filename("no_such_config")), tmp_path, CONFIG)
    assert len(pixels(messages)) == 2


def test_parameters_override_properties(scan: simulate.Scan, tmp_path: Path) -> None:
    plain, limited = (pixels(run(recorded(scan), tmp_path, parameters=given)) for given in ({}, {"max_value@AutoScale": "100"}))
    assert max(image.max() for image in plain) > 1000
    assert max(image.max() for image in limited) <= 300


def test_images_in_images_out(tmp_path: Path) -> None:
    image = Image(None, np.full((1, 1, 2, 3), 3 + 4j, np.complex64), {"GADGETRON_ImageComment": "kept"})
    messages = run(to_bytes(HeaderXml(b"<ismrmrdHeader/>"), image, Close()), tmp_path, MAGNITUDE)
    (out,) = [message for message in messages if isinstance(message, Image)]
    assert out.data.dtype == np.float32
    np.testing.assert_allclose(out.data, 5)
    assert out.meta["GADGETRON_ImageComment"] == "kept"


def test_hdf5_in_and_out(scan: simulate.Scan, tmp_path: Path) -> None:
    scan.save(tmp_path / "scan.h5")
    assert stream(CONFIG, tmp_path / "scan.h5", tmp_path / "out.h5") == 2
    ((_, _, data),) = read_images(tmp_path / "out.h5").values()
    np.testing.assert_array_equal(data, np.stack(pixels(run(recorded(scan), tmp_path))))


# -- failures ----------------------------------------------------------------------------------------------------------


def test_no_config_at_all(scan: simulate.Scan, tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="name one with -c"):
        run(recorded(scan), tmp_path, None)
    scan.save(tmp_path / "scan.h5")
    with pytest.raises(StreamError, match="name one with -c"):
        stream(None, tmp_path / "scan.h5", tmp_path / "out.h5")


def test_an_unknown_config_names_the_nearest(scan: simulate.Scan, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"default_short\.xml"):
        run(recorded(scan), tmp_path, "default_shrot")


def test_a_failing_chain_says_why_and_does_not_close(tmp_path: Path) -> None:
    """What is downstream must not take half a result for a whole one."""
    scan = simulate.cartesian((24, 16), 2, acceleration=1)
    bad = simulate.Scan(b"<ismrmrdHeader><encoding/></ismrmrdHeader>", scan.items, {})
    with pytest.raises(StreamError, match="encodedSpace"):
        run(recorded(bad), tmp_path)
    messages = written(tmp_path / "out.mrd")
    assert isinstance(messages[0], HeaderXml)
    assert isinstance(messages[-1], Text)
    assert "ERROR" in messages[-1].text


@pytest.mark.parametrize("cut", [1, 2, 100, 5000])
def test_a_stream_that_breaks_off(scan: simulate.Scan, tmp_path: Path, cut: int) -> None:
    whole = recorded(scan)
    with pytest.raises((WireError, StreamError)):
        run(whole[:-cut], tmp_path)
    assert not isinstance(written(tmp_path / "out.mrd")[-1], Close)


@pytest.mark.parametrize("source", [b"", b"\x89HDF\r\n\x1a\n" * 100, b"GET / HTTP/1.1\r\n\r\n"])
def test_what_is_no_stream(source: bytes, tmp_path: Path) -> None:
    with pytest.raises((WireError, StreamError)):
        run(source, tmp_path)


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        stream(CONFIG, tmp_path / "none", tmp_path / "out")


def test_a_sender_that_stays_silent_after_an_error_is_not_waited_for(
    scan: simulate.Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECONSTREAM_DRAIN_SILENCE_SECONDS", "0.1")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    done = threading.Event()

    def sender() -> None:
        with fifo.open("wb", buffering=0) as pipe:
            pipe.write(recorded(simulate.Scan(b"<ismrmrdHeader><encoding/></ismrmrdHeader>", scan.items, {}))[:-2])
            done.wait(60)  # neither CLOSE nor the end of the file

    thread = threading.Thread(target=sender, daemon=True)
    thread.start()
    with pytest.raises(StreamError):
        stream(CONFIG, fifo, tmp_path / "out.mrd")
    assert thread.is_alive()
    done.set()
    thread.join(60)


def test_only_data_go_to_stdout(scan: simulate.Scan) -> None:
    """Prints of gadgets, libraries and child processes must not damage the stream."""
    program = (
        "import os, service.pipes as pipes\n"
        "real = pipes.run_inside\n"
        "def noisy(*a, **k):\n"
        "    print('a print'); os.system('echo a child'); os.write(1, b'a library')\n"
        "    return real(*a, **k)\n"
        "pipes.run_inside = noisy\n"
        f"pipes.stream({CONFIG!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=recorded(scan), capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr.decode()
    connection = Connection.from_files(io.BytesIO(done.stdout), None)
    assert [type(message) for message in connection] == [HeaderXml, Image, Image]
    for text in (b"a print", b"a child", b"a library"):
        assert text in done.stderr


def test_a_reader_that_goes_away_is_an_error(scan: simulate.Scan, tmp_path: Path) -> None:
    fifo = tmp_path / "out"
    os.mkfifo(fifo)

    def reader() -> None:
        with fifo.open("rb", buffering=0) as pipe:
            pipe.read(1)

    thread = threading.Thread(target=reader, daemon=True)
    thread.start()
    (tmp_path / "in.mrd").write_bytes(recorded(simulate.cartesian((256, 256), 1, acceleration=1, repetitions=20)))
    with pytest.raises(BrokenPipeError):
        stream(CONFIG, tmp_path / "in.mrd", fifo)
    thread.join(60)
