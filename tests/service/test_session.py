"""A session in this process, over a TCP connection: states, parameters, results, and every protocol error with its reason."""

from __future__ import annotations

import json
import logging
import re
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gadgets.items import Acquisition, Image, Text, Waveform
from gadgets.layout import IMAGE_HEADER
from service.dialects import serve_client, serve_gadgetron
from service.session import Outcome
from service.settings import Settings
from service.transport import Connection
from service.wire import Close, Config, ErrorReport, Filename, HeaderXml, Message, Query, Response
from tests.service.peer import ECHO, HEADER, IMAGES, LIMIT, Peer, config, images, measure, readouts, tcp_pair, texts

SETTINGS = Settings(allow_external=True, drain_silence_seconds=1, send_seconds=5)


class Session:
    """A session served by a thread, and its peer."""

    def __init__(self, dialect: str = "client", settings: Settings = SETTINGS) -> None:
        ours, theirs = tcp_pair()
        self.peer = Peer(theirs)
        self._outcome: Future[Outcome] = Future()
        serve = serve_gadgetron if dialect == "gadgetron" else serve_client
        connection = Connection.from_socket(ours, write_timeout=settings.send_seconds)
        self.thread = threading.Thread(target=lambda: self._outcome.set_result(serve(connection, settings=settings)), daemon=True)
        self.thread.start()

    @property
    def outcome(self) -> Outcome:
        return self._outcome.result(LIMIT)


@pytest.fixture
def session() -> Iterator[Session]:
    one = Session()
    yield one
    one.peer.connection.close()
    one.thread.join(LIMIT)
    assert not one.thread.is_alive(), "the session hangs"


@pytest.fixture
def gadgetron() -> Iterator[Session]:
    one = Session("gadgetron")
    yield one
    one.peer.connection.close()
    one.thread.join(LIMIT)
    assert not one.thread.is_alive(), "the session hangs"


def waveform() -> Waveform:
    return Waveform(None, np.zeros((1, 4), np.uint32))


# -- what works --------------------------------------------------------------------------------------------------------


def test_a_measurement(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = measure(session.peer, 5)
    assert [float(image.data.max()) for image in images(found)] == [1, 2, 3, 4, 5]
    assert texts(found) == []
    outcome = session.outcome
    assert outcome.error is None
    assert outcome.complete
    assert (outcome.readouts, outcome.images) == (5, 5)
    assert outcome.measurement.startswith("m_17/")
    states = [record.getMessage() for record in caplog.records if "Connection state" in record.getMessage()]
    assert [state.split("] ", 1)[1] for state in states] == ["Connection state: [STREAM]", "Connection state: [FINISHED]"]
    assert all(state.startswith(f"[{outcome.measurement}]") for state in states)


def test_latencies_of_every_stage(session: Session) -> None:
    measure(session.peer, 5)
    stages = session.outcome.latency_ms
    assert list(stages) == ["received→triggered", "triggered→reconstructed", "reconstructed→sent", "received→sent"]
    assert all(0 <= median <= late for median, late in stages.values())
    assert stages["received→sent"][1] >= max(late for _, late in stages.values()) * 0.999


def test_results_come_while_the_scan_runs(session: Session) -> None:
    session.peer.send(IMAGES, HEADER)
    for number, readout in enumerate(readouts(3), 1):
        session.peer.send(readout)
        answer = session.peer.connection.read()
        assert isinstance(answer, Image)
        assert answer.data.max() == number
    session.peer.send(Close())
    assert session.peer.answers() == []


@pytest.mark.parametrize("name", ["default.xml", "default", "default.xml\0junk"])
def test_a_config_by_name(session: Session, name: str) -> None:
    session.peer.send(Filename(name))
    session.peer.send(Close())
    assert session.peer.answers() == []
    assert session.outcome.error is None


def test_queries_are_answered_in_every_state(session: Session) -> None:
    def ask(correlation: int) -> None:
        session.peer.send(Query("gadgetron::version", correlation))
        answer = session.peer.connection.read()
        assert isinstance(answer, Response)
        assert answer.correlation == correlation
        assert answer.text.startswith("reconstream ")

    ask(1)
    session.peer.send(ECHO)
    ask(2)
    session.peer.send(HEADER)
    ask(3)
    session.peer.send(readouts(1)[0])
    assert isinstance(session.peer.connection.read(), Acquisition)
    ask(2**63)
    session.peer.send(Query("no such key", 5))
    answer = session.peer.connection.read()
    assert isinstance(answer, Response)
    assert answer.text == "Unknown query"


def test_close_without_config_and_close_instead_of_a_header(session: Session) -> None:
    session.peer.send(Close())
    assert session.peer.answers() == []
    assert not session.outcome.started
    other = Session()
    other.peer.send(IMAGES, Close())
    assert other.peer.answers() == []
    assert other.outcome.error is None


@pytest.mark.parametrize(
    "xml",
    [
        b"<ismrmrdHeader/>\0",
        b"<ismrmrdHeader xmlns='http://www.ismrm.org/ISMRMRD'><version>99</version></ismrmrdHeader>",
        b"<?xml version='1.0'?><ismrmrdHeader><experimentalConditions/><vendor x='1'/></ismrmrdHeader>\0\0\0",
        b"",
    ],
    ids=["trailing NUL", "foreign version", "no acquisitionSystemInformation", "empty"],
)
def test_headers_that_others_refuse(session: Session, xml: bytes) -> None:
    found = session.peer.send(IMAGES, HeaderXml(xml), *readouts(2), Close()).answers()
    assert len(images(found)) == 2
    assert session.outcome.error is None


def test_text_is_for_the_log(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = session.peer.send(
        Text("one"), IMAGES, Text("two"), HEADER, Text("three\nforged line"), *readouts(1), Text("four"), Close()
    ).answers()
    assert len(images(found)) == 1
    logged = [record.getMessage() for record in caplog.records if "text from the peer" in record.getMessage()]
    assert [line.rsplit(": ", 1)[1] for line in logged] == ["one", "two", "three forged line", "four"]


# -- parameters --------------------------------------------------------------------------------------------------------


def parameters(**values: object) -> Text:
    return Text(json.dumps({"version": "1", "parameters": values}))


def test_json_parameters_set_properties(session: Session) -> None:
    found = session.peer.send(IMAGES, HEADER, parameters(repeat=3, sendScale=2.5), *readouts(1), Close()).answers()
    assert texts(found) == []
    (image,) = images(found)
    assert image.data.shape[2] == 6
    assert image.data.max() == 2.5


def test_an_unknown_parameter_is_named(session: Session) -> None:
    found = session.peer.send(IMAGES, HEADER, parameters(repaet=3), *readouts(1), Close()).answers()
    assert len(images(found)) == 1
    (warning,) = texts(found)
    assert "'repaet'" in warning
    assert "repeat" in warning


def test_a_wrong_parameter_value_is_an_error(session: Session) -> None:
    error = session.peer.send(IMAGES, HEADER, parameters(repeat="many"), *readouts(1), Close()).error()
    assert "repeat" in error
    assert "many" in error


def test_json_names_the_config_where_the_file_name_means_nothing_to_us(session: Session) -> None:
    found = session.peer.send(Filename("openrecon"), HEADER, parameters(config="default"), Close()).answers()
    assert found == []
    assert session.outcome.error is None


def test_json_that_is_broken(session: Session) -> None:
    error = session.peer.send(IMAGES, HEADER, Text('{"parameters": '), *readouts(1), Close()).error()
    assert error.startswith("[parameters] ERROR: ")


# -- what may leave ----------------------------------------------------------------------------------------------------


def test_readouts_at_the_end_of_the_chain_are_not_sent_to_clients(session: Session) -> None:
    found = session.peer.send(config(), HEADER, *readouts(4), Close()).answers()
    (warning,) = texts(found)
    assert len(found) == 1
    assert "Acquisition (1008)" in warning
    assert session.outcome.counts["Acquisition dropped at the end of the chain"] == 4


def test_readouts_are_sent_where_a_writer_accepts_them(session: Session) -> None:
    found = session.peer.send(ECHO, HEADER, *readouts(4), Close()).answers()
    assert [item.scan_counter for item in found if isinstance(item, Acquisition)] == [0, 1, 2, 3]


def test_an_image_array_is_split(session: Session) -> None:
    found = session.peer.send(config("Emit kind=array"), HEADER, *readouts(1), Close()).answers()
    assert [image.data.shape for image in images(found)] == [(1, 1, 4, 4)] * 2
    assert len(found) == 2


@pytest.mark.parametrize(("kind", "name"), [("recon", "ReconData (1023)"), ("bucket", "AcquisitionBucket (1050)")])
def test_what_no_client_can_read_is_an_error(session: Session, kind: str, name: str) -> None:
    error = session.peer.send(config(f"Emit kind={kind}"), HEADER, *readouts(1), Close()).error()
    assert name in error
    assert error.startswith("[end of the chain] ERROR: ")


def test_texts_of_gadgets_reach_the_client(session: Session) -> None:
    assert texts(session.peer.send(config("Emit kind=text"), HEADER, *readouts(2), Close()).answers()) == ["readout 0", "readout 1"]


def test_waveforms_without_a_reader_are_dropped_with_a_warning(session: Session) -> None:
    chain = config("ToImage", readers=["AcquisitionReader"])
    found = session.peer.send(chain, HEADER, waveform(), *readouts(1), waveform(), Close()).answers()
    assert len(images(found)) == 1
    assert len(texts(found)) == 1
    assert session.outcome.counts["waveforms dropped"] == 2


def test_data_without_a_reader_are_an_error(session: Session) -> None:
    chain = config("ToImage", readers=["ImageReader"])
    assert "Acquisition (1008)" in session.peer.send(chain, HEADER, *readouts(1), Close()).error()


# -- NaN and Inf -------------------------------------------------------------------------------------------------------


def test_nan_and_inf_become_zero_and_are_counted(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    data = readouts(4)
    data[1].data[0, 3] = np.nan
    data[2].data[1, 5] = complex(0, np.inf)
    data[2].data[0, 0] = complex(np.nan, -np.inf)
    found = session.peer.send(IMAGES, HEADER, *data, Close()).answers()
    results = images(found)
    assert all(np.isfinite(image.data).all() for image in results)
    assert results[1].data[0, 0, 0].tolist() == [2, 2, 2, 0, 2, 2, 2, 2]
    assert (results[2].data == 0).sum() == 2
    (warning,) = texts(found)
    assert "NaN" in warning
    assert session.outcome.counts == {"NaN or Inf samples replaced by zero": 3}
    assert "replaced by zero: 3" in caplog.text


def test_a_trajectory_that_is_not_finite_loses_its_sample(session: Session) -> None:
    readout = readouts(1)[0]
    trajectory = np.full((8, 2), 0.25, np.float32)
    trajectory[6, 1] = np.nan
    sent = readout.with_data(readout.data, trajectory)
    found = session.peer.send(ECHO, HEADER, sent, Close()).answers()
    (echo,) = [item for item in found if isinstance(item, Acquisition)]
    assert echo.data[:, 6].tolist() == [0, 0]
    assert echo.traj[6].tolist() == [0, 0]
    assert echo.data[:, 5].tolist() == [1, 1]


# -- protocol errors ---------------------------------------------------------------------------------------------------

ORDERS: dict[str, tuple[list[Message], str]] = {
    "data before the config": ([readouts(1)[0], Close()], "before a config"),
    "waveform before the header": ([IMAGES, waveform(), Close()], "before the measurement header"),
    "header before the config": ([HEADER, Close()], "before a config"),
    "second config before the header": ([IMAGES, IMAGES, Close()], "second config"),
    "second config by name": ([IMAGES, Filename("default.xml"), Close()], "second config"),
    "second config in the stream": ([IMAGES, HEADER, readouts(1)[0], IMAGES, Close()], "second config"),
    "second header": ([IMAGES, HEADER, readouts(1)[0], HEADER, Close()], "second measurement header"),
    "second header at once": ([IMAGES, HEADER, HEADER, Close()], "second measurement header"),
    "response": ([IMAGES, HEADER, Response("x", 1), Close()], "Response"),
    "error report": ([ErrorReport("x"), Close()], "ErrorReport"),
    "unknown config": ([Filename("defualt"), HEADER, readouts(1)[0], Close()], "default.xml"),
    "config outside the folder": ([Filename("../../etc/passwd"), HEADER, Close()], "config folder"),
    "empty config": ([Config(b""), HEADER, Close()], "[config] ERROR: "),
    "config that is no XML": ([Config(b"hello"), HEADER, Close()], "[config] ERROR: "),
    "unknown gadget": ([config("gadgetron_mricore/NoiseAdjustGadgte"), HEADER, readouts(1)[0], Close()], "NoiseAdjustGadget"),
    "unknown property": ([config("gadgetron_mricore/NoiseAdjustGadget perform_noise_adjsut=1"), HEADER, Close()], "perform_noise_adjust"),
    "unknown element": (
        [Config(b"<configuration><version>2</version><stream><gadgte/></stream></configuration>"), HEADER, Close()],
        "gadget",
    ),
    "header that is no XML": ([IMAGES, HeaderXml(b"junk"), readouts(1)[0], Close()], "[header] ERROR: "),
    "header of something else": ([IMAGES, HeaderXml(b"<html/>"), readouts(1)[0], Close()], "ismrmrdHeader"),
}


@pytest.mark.parametrize("case", list(ORDERS))
def test_what_the_protocol_does_not_allow(session: Session, case: str) -> None:
    messages, reason = ORDERS[case]
    error = session.peer.send(*messages).error()
    assert reason in error
    assert error.startswith("[")
    assert session.outcome.error == error


BYTES = {
    "unknown id": (struct.pack("<H", 4711) + bytes(100), "4711"),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", "HTTP"),
    "4 GiB config": (struct.pack("<HI", 2, 2**32 - 1) + bytes(100), "4,294,967,295"),
    "random bytes": (np.random.default_rng(3).bytes(5000), "[connection] ERROR: "),
}


@pytest.mark.parametrize("case", list(BYTES))
def test_bytes_that_are_no_message(session: Session, case: str) -> None:
    data, reason = BYTES[case]
    assert reason in session.peer.raw(data).error()


def test_garbage_in_mid_scan_comes_after_the_images_before_it(session: Session) -> None:
    found = session.peer.send(IMAGES, HEADER, *readouts(5)).raw(struct.pack("<H", 60000) + bytes(50)).answers()
    assert len(images(found)) == 5
    assert "60000" in texts(found)[-1]


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, 100 * 2**20])
def test_a_huge_header_is_refused_before_it_is_allocated(session: Session, length: int) -> None:
    error = session.peer.send(IMAGES).raw(struct.pack("<HI", 3, length) + b"<ismrmrdHeader>").error()
    assert f"{length:,}" in error


def test_huge_image_attributes_are_refused(session: Session) -> None:
    image = np.zeros(1, IMAGE_HEADER)
    image["data_type"] = 1
    session.peer.send(IMAGES, HEADER).raw(struct.pack("<H", 1022) + image.tobytes() + struct.pack("<Q", 2**62))
    assert f"{2**62:,}" in session.peer.error()


def test_an_unknown_config_is_reported_to_a_client_that_waits(session: Session) -> None:
    """Neither header nor data nor CLOSE follow: the reason comes all the same."""
    assert "defualt" in session.peer.send(Filename("defualt")).error()


# -- failing chains ----------------------------------------------------------------------------------------------------


def test_a_gadget_that_raises_is_named_and_earlier_images_arrive(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    found = session.peer.send(config("Fail at=3", "ToImage"), HEADER, *readouts(50), Close()).answers()
    assert len(images(found)) == 3
    assert texts(found) == ["[Fail] ERROR: ArithmeticError: the matrix is singular"]
    assert "Traceback" in caplog.text
    assert session.outcome.complete  # the rest was read


def test_a_large_scan_that_fails_early_is_heard_out(session: Session) -> None:
    """64 MB that nobody wants any more, sent by a client that reads only afterwards: no reset, and the reason is there."""
    session.peer.send(config("Fail at=0"), HEADER)
    one = readouts(1, channels=32, samples=1024)[0]
    for _ in range(256):
        session.peer.send(one)
    assert "singular" in session.peer.send(Close()).error()
    assert session.outcome.complete


def test_a_singular_noise_covariance(session: Session) -> None:
    """Two channels with the same noise, through the stock front end."""
    noise = np.random.default_rng(0).standard_normal((1, 64)).astype(np.complex64)
    scan = Acquisition(None, np.repeat(noise, 2, 0))
    scan.set_flag(19)
    error = session.peer.send(config("gadgetron_mricore/NoiseAdjustGadget"), HEADER, scan, *readouts(2), Close()).error()
    assert error.startswith("[NoiseAdjustGadget] ERROR: ")
    assert "covariance" in error


# -- peers that go, or do not listen ------------------------------------------------------------------------------------


def test_end_without_close(session: Session) -> None:
    session.peer.send(IMAGES, HEADER, *readouts(2))
    assert isinstance(session.peer.connection.read(), Image)
    assert isinstance(session.peer.connection.read(), Image)
    session.peer.connection.shutdown(writing_only=True)
    assert "CLOSE" in session.peer.error()
    assert not session.outcome.complete


def test_a_client_that_is_gone_ends_the_session(session: Session) -> None:
    session.peer.send(IMAGES, HEADER, *readouts(2))
    session.peer.connection.close()
    error = session.outcome.error
    assert error is not None
    assert error.startswith("[connection] ERROR: ")


def test_silence_ends_the_session() -> None:
    one = Session(settings=SETTINGS.model_copy(update={"silence_seconds": 0.2}))
    error = one.peer.send(IMAGES, HEADER).error()
    assert "nothing was received" in error


def test_a_client_that_reads_no_images_is_given_up() -> None:
    one = Session(settings=SETTINGS.model_copy(update={"send_seconds": 0.3, "output_mib": 1, "input_mib": 1}))
    stop = threading.Event()

    def send() -> None:
        one.peer.send(config("ToImage repeat=64"), HEADER)
        readout = readouts(1, 4, 1024)[0]
        try:
            while not stop.is_set():
                one.peer.send(readout)
        except OSError:
            pass

    sender = threading.Thread(target=send)
    sender.start()
    try:
        assert one.outcome.error is not None
        assert "took no data for 0.3 s" in one.outcome.error
    finally:
        stop.set()
        one.peer.connection.shutdown()
        sender.join(LIMIT)
        one.peer.connection.close()


def test_a_client_that_reads_only_after_it_has_sent_everything_gets_its_images(session: Session) -> None:
    """More images than sockets hold: 40 MB wait in the output queue."""
    session.peer.send(config("ToImage repeat=64"), HEADER, *readouts(40, 4, 1024), Close())
    assert len(images(session.peer.answers())) == 40


# -- the other dialect -------------------------------------------------------------------------------------------------


def properties(**values: object) -> Config:
    inner = "".join(f'<property name="{name}" value="{value}"/>' for name, value in values.items())
    return Config(f'<?xml version="1.0"?>\n<configuration>{inner}</configuration>'.encode())


def inline(*gadgets: str) -> Config:
    """The gadgets of a config alone, as they stand in an ``<external>``'s ``<configuration>``."""
    text = config(*gadgets).xml.decode()
    return Config(text.replace("<version>2</version><stream>", "").replace("</stream>", "").encode())


@pytest.mark.parametrize("form", ["gadgets", "stream", "whole"])
def test_gadgetron_sends_a_chain(gadgetron: Session, form: str) -> None:
    whole = config("ToImage")
    chain = {"gadgets": inline("ToImage"), "stream": Config(whole.xml.replace(b"<version>2</version>", b"")), "whole": whole}[form]
    found = gadgetron.peer.send(chain, HEADER, *readouts(3), Close()).answers()
    assert len(images(found)) == len(found) == 3


def test_gadgetron_names_a_config_and_overrides_its_properties(gadgetron: Session) -> None:
    found = gadgetron.peer.send(properties(config="default.xml", trigger_dimension="slice"), HEADER, Close()).answers()
    assert found == []
    assert gadgetron.outcome.error is None


def test_gadgetron_gets_what_no_client_would_get(gadgetron: Session) -> None:
    found = gadgetron.peer.send(inline("Emit kind=array"), HEADER, *readouts(2), Close()).answers()
    assert [type(item).__name__ for item in found] == ["ImageArray", "ImageArray"]


def test_gadgetron_never_gets_text(gadgetron: Session) -> None:
    data = readouts(2)
    data[0].data[0, 0] = np.nan
    assert gadgetron.peer.send(inline("Emit kind=text"), HEADER, *data, Close()).answers() == []
    assert gadgetron.outcome.counts["NaN or Inf samples replaced by zero"] == 1


GADGETRON_FAULTS: dict[str, tuple[list[Message], str]] = {
    "empty document": ([Config(b'<?xml version="1.0"?>\n'), HEADER, Close()], "names no chain"),
    "empty configuration": ([Config(b"<configuration/>"), HEADER, Close()], "names no chain"),
    "no XML": ([Config(b"<configuration"), HEADER, Close()], "not well-formed"),
    "unknown config": ([properties(config="defualt.xml"), HEADER, Close()], "default.xml"),
    "unknown property": ([properties(config="default.xml", trigger_dimesion="slice"), HEADER, Close()], "trigger_dimension"),
    "file name": ([Filename("default.xml"), Close()], "Filename"),
    "second config": ([inline("ToImage"), HEADER, inline("ToImage"), Close()], "second config"),
    "gadget that raises": ([inline("Fail at=1"), HEADER, *readouts(9), Close()], "[Fail] ERROR: ArithmeticError"),
}


@pytest.mark.parametrize("case", list(GADGETRON_FAULTS))
def test_gadgetron_gets_error_and_close(gadgetron: Session, case: str) -> None:
    messages, reason = GADGETRON_FAULTS[case]
    found = gadgetron.peer.send(*messages).answers()
    assert isinstance(found[-1], ErrorReport)
    assert reason in found[-1].text
    assert not any(isinstance(message, Text) for message in found)


# -- any order of messages ---------------------------------------------------------------------------------------------

SYMBOLS: dict[str, Message] = {
    "C": IMAGES,
    "H": HEADER,
    "A": readouts(1)[0],
    "T": Text("hello"),
    "Q": Query("gadgetron::version", 1),
    "X": Close(),
    "E": ErrorReport("not from a client"),
}
LEGAL = re.compile(r"[TQ]*(X|C[TQ]*(X|H[ATQ]*X))")
"""The protocol as a regular expression."""


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text("CHATQXE", max_size=12), st.from_regex(r"C[TQ]{0,2}H[ATQCE]{0,8}X?", fullmatch=True)))
def test_any_order_ends_with_close_and_an_error_exactly_where_the_order_is_wrong(order: str) -> None:
    order = order[: order.index("X") + 1] if "X" in order else order
    one = Session()
    try:
        one.peer.send(*(SYMBOLS[symbol] for symbol in order)).connection.shutdown(writing_only=True)
        found = one.peer.answers()
        legal = LEGAL.fullmatch(order) is not None
        assert (one.outcome.error is None) == legal
        assert [text for text in texts(found) if "ERROR" in text] == ([] if legal else [one.outcome.error])
        if legal:
            assert len(images(found)) == order.count("A")
            assert sum(isinstance(message, Response) for message in found) == order.count("Q")
    finally:
        one.peer.connection.close()
        one.thread.join(LIMIT)
    assert not one.thread.is_alive()


@pytest.mark.parametrize("chain", ["ToImage", "Fail at=99"], ids=["own", "other"])
def test_the_peer_is_blamed_for_its_faults_and_not_the_gadget_that_waited(session: Session, chain: str) -> None:
    error = session.peer.send(config(chain), HEADER, *readouts(2)).raw(struct.pack("<H", 60000)).error()
    assert error.startswith("[connection] ERROR: ")
