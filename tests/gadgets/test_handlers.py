"""Functions written for gadgetron-python and FIRE, unchanged, in a chain."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gadgets import foreign
from gadgets.base import Context, GadgetError, ParameterError, run
from gadgets.handlers import PythonHandler
from gadgets.header import Header
from gadgets.items import (
    Acquisition,
    AcquisitionBucket,
    Image,
    ImageArray,
    Item,
    ReconBit,
    ReconBuffer,
    ReconData,
    Text,
    Waveform,
)
from gadgets.layout import ACQUISITION_HEADER, IMAGE_HEADER, SAMPLING_DESCRIPTION, Flag, blank

HEADER = Header(
    """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions>
  <encoding><encodedSpace><matrixSize><x>16</x><y>8</y><z>1</z></matrixSize>
    <fieldOfView_mm><x>200</x><y>200</y><z>5</z></fieldOfView_mm></encodedSpace>
   <reconSpace><matrixSize><x>16</x><y>8</y><z>1</z></matrixSize>
    <fieldOfView_mm><x>200</x><y>200</y><z>5</z></fieldOfView_mm></reconSpace>
   <encodingLimits/><trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"""
)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[object]:
    """Write a module that can be imported during the test; gives back its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written: list[str] = []

    def write(text: str) -> str:
        name = f"handler_under_test_{abs(hash(request.node.name))}_{len(written)}"
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def readout(number: int = 0, last: bool = False, samples: int = 16) -> Acquisition:
    rng = np.random.default_rng(number)
    data = (rng.normal(size=(2, samples)) + 1j * rng.normal(size=(2, samples))).astype(np.complex64)
    acquisition = Acquisition(None, data)
    acquisition.scan_counter = number
    acquisition.header["idx"]["kspace_encode_step_1"] = number % 8
    if last:
        acquisition.set_flag(Flag.LAST_IN_SLICE)
    return acquisition


def waveform() -> Waveform:
    return Waveform(None, np.arange(6, dtype=np.uint32).reshape(2, 3))


def through(handler: PythonHandler, items: list[Item], header: Header = HEADER) -> list[Item]:
    return list(run([handler], items, Context(header=header)))


def test_gadgetrons_own_example_reconstructs() -> None:
    scan = [readout(n, last=n == 7) for n in range(8)]
    (image,) = through(PythonHandler(module="gadgetron.examples", target="recon_acquisitions"), [*scan])
    assert isinstance(image, Image)
    kspace = np.stack([acquisition.data for acquisition in scan], 1)
    shifted = np.fft.ifftshift(kspace, (1, 2))
    coils = np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), (1, 2))
    truth = np.sqrt(np.sum(np.abs(coils) ** 2, 0))
    assert image.data.shape == (1, 1, 8, 16)
    np.testing.assert_allclose(image.data[0, 0] / np.linalg.norm(image.data), truth / np.linalg.norm(truth), rtol=1e-4)


def test_a_handler_gets_ismrmrd_objects_config_and_header(module) -> None:
    name = module(
        """
import ismrmrd
def handler(connection):
    assert connection.config.find("property").get("value") == "4"
    assert connection.raw_bytes.config.startswith(b"<configuration>")
    assert b"ismrmrdHeader" in connection.raw_bytes.header
    assert connection.header.encoding[0].encodedSpace.matrixSize.x == 16
    connection.add_reader(1008, None)
    connection.add_writer(lambda item: False, None)
    connection.filter(ismrmrd.Acquisition)
    connection.filter(lambda item: item.scan_counter != 1)
    for mid, acquisition in connection.iter_with_mids():
        assert mid == 1008
        acquisition.data[:] *= 2
        connection.send(acquisition)
"""
    )
    config = '<configuration><property name="n" value="4"/></configuration>'
    made: list[Item] = [readout(0), waveform(), readout(1), Text("t"), readout(2)]
    out = through(PythonHandler(module=name, target="handler", config=config), made)
    assert [type(item) for item in out] == [type(item) for item in made]
    np.testing.assert_allclose(out[0].data, 2 * made[0].data)
    assert out[1] is made[1]
    assert out[2] is made[2]
    assert out[3] is made[3]


def test_a_class_with_handle_and_next(module) -> None:
    name = module(
        """
class Twice:
    def handle(self, connection):
        with connection:
            while True:
                try:
                    mid, item = connection.next()
                except StopIteration:
                    break
                connection.send(item)
                connection.send(item)
"""
    )
    out = through(PythonHandler(module=name, target="Twice"), [readout(0), waveform()])
    assert [type(item) for item in out] == [Acquisition, Acquisition, Waveform, Waveform]
    np.testing.assert_array_equal(out[2].data, waveform().data)


def test_a_legacy_gadget_class(module) -> None:
    name = module(
        """
from gadgetron import Gadget
class Scale(Gadget):
    def process_config(self, header):
        assert b"ismrmrdHeader" in header
    def process(self, header, data):
        self.put_next(header, data * float(self.get_parameter("factor")))
"""
    )
    config = '<configuration><property name="factor" value="3"/></configuration>'
    made = readout(4)
    (out,) = through(PythonHandler(module=name, target="Scale", config=config), [made])
    np.testing.assert_allclose(out.data, 3 * made.data)


def test_what_a_handler_leaves_unread_goes_on(module) -> None:
    name = module("def handler(connection):\n    next(connection)\n")
    out = through(PythonHandler(module=name, target="handler"), [readout(n) for n in range(4)])
    assert [int(item.scan_counter) for item in out] == [1, 2, 3]


def test_a_handlers_exception_is_the_chains(module) -> None:
    name = module(
        "def handler(connection):\n    for item in connection:\n        connection.send(item)\n        raise ValueError('no coil map')\n"
    )
    out: list[Item] = []
    with pytest.raises(GadgetError, match=r"\[mine\] ValueError: no coil map"):
        out.extend(run([PythonHandler("mine", module=name, target="handler")], [readout(0), readout(1)], Context()))
    assert len(out) == 1


def test_sending_something_foreign_is_refused(module) -> None:
    name = module("def handler(connection):\n    connection.send(3.5)\n")
    with pytest.raises(GadgetError, match="cannot send a float"):
        through(PythonHandler(module=name, target="handler"), [])


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [("def handler(c): pass", "handle", "has no function or class 'handle'"), ("import no_such_package", "handler", "no_such_package")],
)
def test_a_missing_function_or_module_is_named(module, text: str, target: str, message: str) -> None:
    with pytest.raises(GadgetError, match=message):
        through(PythonHandler(module=module(text), target=target), [readout()])


def test_a_missing_module_says_where_to_put_it() -> None:
    with pytest.raises(GadgetError, match="'path' or in PYTHONPATH"):
        through(PythonHandler(module="no_such_module_anywhere", target="x"), [readout()])
    with pytest.raises(ParameterError, match="'module' must be given"):
        PythonHandler()


def test_giving_up_ends_the_handlers_thread(module) -> None:
    name = module("def handler(connection):\n    for item in connection:\n        connection.send(item)\n")
    chain = run([PythonHandler(module=name, target="handler")], iter(lambda: readout(1), None), Context())
    next(chain)
    threads = [thread for thread in threading.enumerate() if thread.name == "handler"]
    assert threads
    chain.close()  # type: ignore[attr-defined]
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_an_error_of_the_source_stops_the_handler_and_is_not_its_fault(module) -> None:
    name = module("def handler(connection):\n    for item in connection:\n        connection.send(item)\n")

    def broken() -> Iterator[Item]:
        yield readout(0)
        raise ConnectionResetError("client gone")

    with pytest.raises(ConnectionResetError, match="client gone"):
        list(run([PythonHandler(module=name, target="handler")], broken(), Context()))


FIRE = """
import itertools
import ismrmrd
import numpy as np

def process(connection, config, metadata):
    connection.send_logging("INFO    ", f"{config} {metadata.encoding[0].reconSpace.matrixSize.x}")
    group = []
    waveforms = []
    try:
        for item in connection:
            if isinstance(item, ismrmrd.Acquisition):
                group.append(item)
                if item.is_flag_set(ismrmrd.ACQ_LAST_IN_SLICE):
                    connection.send_image(make(group, connection))
                    group = []
            elif isinstance(item, ismrmrd.Image):
                connection.send_image([item, item])
            elif isinstance(item, ismrmrd.Waveform):
                waveforms.append(item)
            elif item is None:
                break
        if group:
            connection.send_image(make(group, connection))
        if waveforms:
            connection.send_waveform(waveforms[0])
    finally:
        connection.send_close()

def make(group, connection):
    data = np.stack([acquisition.data for acquisition in group], 1)
    image = ismrmrd.Image.from_array(np.abs(data).astype(np.int16)[:, None], transpose=False)
    meta = ismrmrd.Meta()
    meta["DataRole"] = "Image"
    meta["ImageProcessingHistory"] = ["FIRE", "PYTHON"]
    image.attribute_string = meta.serialize()
    return image
"""


def test_a_fire_module(module) -> None:
    name = module(FIRE)
    scan: list[Item] = [*(readout(n, last=n == 3) for n in range(6)), waveform()]
    out = through(PythonHandler(module=name, config="invertcontrast"), scan)
    assert [type(item) for item in out] == [Text, Image, Image, Waveform]
    assert out[0].text == "INFO     invertcontrast 16"
    assert [item.data.shape for item in out[1:3]] == [(2, 1, 4, 16), (2, 1, 2, 16)]
    assert out[1].data.dtype == np.int16
    np.testing.assert_array_equal(out[1].data[:, 0], np.abs(np.stack([a.data for a in scan[:4]], 1)).astype(np.int16))
    assert out[1].meta["ImageProcessingHistory"] == ["FIRE", "PYTHON"]


def test_a_fire_module_gets_images_and_the_others_pass(module) -> None:
    image = Image(None, np.arange(12, dtype=np.int32).reshape(1, 1, 3, 4) - 5, {"a": "b"})
    bucket = AcquisitionBucket([readout(0)])
    out = through(PythonHandler(module=module(FIRE)), [image, bucket])
    assert [type(item) for item in out] == [Text, Image, Image, AcquisitionBucket]
    np.testing.assert_array_equal(out[2].data, image.data)
    assert out[2].meta == {"a": "b"}


def test_fire_config_is_a_dictionary_when_the_scanner_sent_parameters(module) -> None:
    name = module(
        """
def process(connection, config, metadata):
    assert connection.peek_mrd_message_identifier() == 1008
    assert connection.peek_mrd_message_identifier() == 1008
    first = next(connection)
    assert connection.peek_mrd_message_identifier() == 1026
    connection.send_text(f"{config['parameters']['strength']} {first.scan_counter} {type(metadata).__name__}")
"""
    )
    handler = PythonHandler(module=name, extra='{"strength": "high"}')
    out = through(handler, [readout(5), waveform()], Header(b"<ismrmrdHeader><broken/></ismrmrdHeader>"))
    assert out[0].text == "high 5 str"
    assert [type(item) for item in out[1:]] == [Waveform]


def test_fire_errors_are_logged_as_errors(module, caplog: pytest.LogCaptureFixture) -> None:
    name = module("def process(connection, config, metadata):\n    connection.send_logging('ERROR   ', 'no sensitivity')\n")
    with caplog.at_level(logging.INFO, "reconstream"):
        (text,) = through(PythonHandler(module=name), [])
    assert text.text == "ERROR    no sensitivity"
    assert [(record.levelname, "no sensitivity" in record.message) for record in caplog.records] == [("ERROR", True)]


def sampling() -> np.void:
    made = blank(SAMPLING_DESCRIPTION)
    made["encoded_FOV"] = (1, 2, 3)
    made["sampling_limits"]["max"] = (7, 8, 9)
    return made


def buffer(seed: int) -> ReconBuffer:
    rng = np.random.default_rng(seed)
    headers = np.zeros((1, 2, 1, 2, 3), ACQUISITION_HEADER)
    headers["scan_counter"] = np.arange(headers.size).reshape(headers.shape)
    return ReconBuffer(
        rng.normal(size=(1, 2, 1, 2, 2, 3, 4)).astype(np.complex64),
        headers,
        sampling(),
        rng.normal(size=(1, 2, 1, 2, 3, 4, 2)).astype(np.float32),
        None,
    )


def test_buffers_are_indexed_as_in_gadgetron_and_come_back() -> None:
    ours = ReconData([ReconBit(buffer(0), buffer(1)), ReconBit(buffer(2))])
    theirs = foreign.convert(ours)
    assert theirs.bits[0].data.data.shape == (4, 3, 2, 2, 1, 2, 1)
    assert theirs.bits[0].data.data[3, 2, 1, 0, 0, 1, 0] == ours.bits[0].data.data[0, 1, 0, 0, 1, 2, 3]
    assert theirs.bits[0].data.headers[2, 1, 0, 1, 0].scan_counter == 11
    assert theirs.bits[0].data.sampling.sampling_limits[1].max == 8
    back = foreign.restore(theirs)
    assert isinstance(back, ReconData)
    for one, other in zip(ours.bits, back.bits, strict=True):
        np.testing.assert_array_equal(one.data.data, other.data.data)
        np.testing.assert_array_equal(one.data.headers, other.data.headers)
        np.testing.assert_array_equal(one.data.trajectory, other.data.trajectory)
        assert one.data.sampling.tobytes() == other.data.sampling.tobytes()
    assert back.bits[1].ref is None
    np.testing.assert_array_equal(back.bits[0].ref.data, ours.bits[0].ref.data)


def test_image_arrays_and_buckets_come_back() -> None:
    headers = np.zeros((1, 2, 3), IMAGE_HEADER)
    headers["image_index"] = np.arange(6).reshape(1, 2, 3)
    data = np.random.default_rng(0).normal(size=(1, 2, 3, 1, 2, 4, 5)).astype(np.complex64)
    ours = ImageArray(data, headers, [{"n": str(n)} for n in range(6)], [waveform()], np.zeros((1, 2, 3, 2, 4), ACQUISITION_HEADER))
    theirs = foreign.convert(ours)
    assert theirs.data.shape == (5, 4, 2, 1, 3, 2, 1)
    assert theirs.headers[2, 1, 0].image_index == 5
    back = foreign.restore(theirs)
    np.testing.assert_array_equal(back.data, data)
    np.testing.assert_array_equal(back.headers, headers)
    assert back.meta == ours.meta
    np.testing.assert_array_equal(back.waveforms[0].data, waveform().data)
    assert back.acquisition_headers.shape == (1, 2, 3, 2, 4)

    bucket = AcquisitionBucket([readout(1), readout(2)], [readout(3)], [waveform()])
    again = foreign.restore(foreign.convert(bucket))
    assert [int(one.scan_counter) for one in again.data] == [1, 2]
    np.testing.assert_array_equal(again.ref[0].data, bucket.ref[0].data)
    assert again.datastats[0].values == bucket.datastats[0].values
    assert len(again.waveforms) == 1


def test_gadgetrons_buffer_example_takes_a_bucket_and_a_buffer() -> None:
    pytest.importorskip("multimethod")
    bucket = AcquisitionBucket([readout(n) for n in range(8)])
    (image,) = through(PythonHandler(module="gadgetron.examples", target="recon_buffers"), [bucket])
    assert isinstance(image, Image)
    assert image.data.shape == (1, 1, 8, 16)
