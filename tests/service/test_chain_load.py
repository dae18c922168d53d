"""Configurations of both schemas: what they become, and what is said about wrong ones."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadgets.base import Context, Gadget, Stream, parameter
from gadgets.composite import Parallel, ParallelProcess
from gadgets.handlers import PythonHandler
from gadgets.items import Acquisition, Image, Item
from service.chain import Chain, ConfigError, Policy, load, overrides_from_json
from service.chain.external import Connect, Execute, External
from service.chain.properties import Property, ReferenceProblem, References
from service.wire import MessageId

TRUSTED = Policy(allow_external=True)


class Gain(Gadget):
    """Multiplies readouts (a gadget of someone's own module)."""

    pure = True
    factor: float = parameter(1.0, help="factor", ge=0, aliases=("gain",))
    label: str = parameter("", help="text")
    ignored = ("debug_folder",)

    def __call__(self, items: Stream) -> Iterator[Item]:
        for acquisition in items.of(Acquisition):
            yield acquisition.with_data(acquisition.data * np.float32(self.factor))


class Stateful(Gadget):
    """Keeps something between items."""

    def __call__(self, items: Stream) -> Iterator[Item]:
        yield from items


def gain(name: str = "", properties: str = "", tag: str = "gadget") -> str:
    label = f"<name>{name}</name>" if name else ""
    return f"<{tag}>{label}<dll>{__name__}</dll><classname>Gain</classname>{properties}</{tag}>"


def prop(name: str, value: str) -> str:
    return f'<property name="{name}" value="{value}"/>'


def config(stream: str, head: str = "") -> bytes:
    return f"<configuration><version>2</version>{head}<stream>{stream}</stream></configuration>".encode()


def fault(xml: bytes | str, policy: Policy = TRUSTED, **more: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(xml if isinstance(xml, bytes) else xml.encode(), source="my.xml", policy=policy, **more)  # type: ignore[arg-type]
    return str(caught.value)


def only(xml: bytes, **more: object) -> Gadget:
    (gadget,) = load(xml, policy=TRUSTED, **more).gadgets  # type: ignore[arg-type]
    return gadget


# -- stock-shaped files -------------------------------------------------------------------------------------------------

CORE = "gadgetron_core_readers"

PLAIN = f"""<?xml version="1.0" encoding="UTF-8"?>
<configuration>
  <version>2</version>
  <readers>
    <reader><dll>{CORE}</dll><classname>AcquisitionReader</classname></reader>
    <reader><dll>{CORE}</dll><classname>WaveformReader</classname></reader>
  </readers>
  <writers>
    <writer><dll>gadgetron_core_writers</dll><classname>ImageWriter</classname></writer>
  </writers>
  <stream>
    <!-- a comment -->
    <gadget><dll>gadgetron_mricore</dll><classname>NoiseAdjustGadget</classname></gadget>
    <gadget><dll>gadgetron_mricore</dll><classname>RemoveROOversamplingGadget</classname></gadget>
    <gadget><name>Trigger</name><dll>gadgetron_mricore</dll><classname>AcquisitionAccumulateTriggerGadget</classname>
            <property name="trigger_dimension" value="repetition"/></gadget>
    <gadget><dll>gadgetron_mricore</dll><classname>BucketToBufferGadget</classname>
            <property><name>split_slices</name><value>true</value></property></gadget>
    <external>
      <execute name="mymodule" target="recon_buffers" type="python"/>
      <readers><reader><dll>gadgetron_mricore</dll><classname>MRIImageReader</classname></reader></readers>
      <configuration/>
    </external>
    <gadget><dll>gadgetron_mricore</dll><classname>ImageArraySplitGadget</classname></gadget>
    <parallel>
      <branch><dll>gadgetron_core_parallel</dll><classname>ImageFanout</classname></branch>
      <stream key="unchanged"/>
      <stream key="denoised"><external><connect port="18001"/><configuration/></external></stream>
      <merge><dll>gadgetron_core_parallel</dll><classname>UnorderedMerge</classname></merge>
    </parallel>
    <distributed>
      <readers><reader><dll>gadgetron_mricore</dll><classname>MRIImageReader</classname></reader></readers>
      <writers><writer><dll>gadgetron_mricore</dll><classname>GadgetIsmrmrdAcquisitionMessageWriter</classname></writer></writers>
      <distributor><dll>gadgetron_core_distributed</dll><classname>AcquisitionDistributor</classname>
        <property name="parallel_dimension" value="repetition"/></distributor>
      <stream><gadget><dll>gadgetron_mricore</dll><classname>AutoScaleGadget</classname></gadget></stream>
    </distributed>
  </stream>
</configuration>"""


def test_every_stock_element() -> None:
    chain = load(PLAIN.encode() + b"\0\0", policy=TRUSTED)
    assert chain.readers == {MessageId.ACQUISITION, MessageId.WAVEFORM}
    assert chain.writers == {MessageId.IMAGE}
    assert [gadget.name for gadget in chain.gadgets] == [
        "NoiseAdjustGadget",
        "RemoveROOversamplingGadget",
        "Trigger",
        "BucketToBufferGadget",
        "mymodule.recon_buffers",
        "ImageArraySplitGadget",
        "parallel",
        "AutoScaleGadget",
    ]
    assert chain.gadgets[2].trigger_dimension == "repetition"  # type: ignore[attr-defined]
    assert chain.gadgets[3].split_slices is True  # type: ignore[attr-defined]
    module, parallel = chain.gadgets[4], chain.gadgets[6]
    assert isinstance(module, External)
    assert module.action == Execute("mymodule", "recon_buffers", "python")
    assert module.sends == (Image,)
    assert isinstance(parallel, Parallel)
    assert list(parallel.streams) == ["unchanged", "denoised"]
    assert parallel.streams["unchanged"] == []
    denoised = parallel.streams["denoised"][0]
    assert isinstance(denoised, External)
    assert denoised.action == Connect("localhost", 18001)
    assert chain.notes == ["distributed streams run locally, in this process"]
    words = chain.describe()
    assert all(
        text in words
        for text in ("acquisition (1008)", "trigger_dimension = 'repetition'", "python mymodule", "localhost:18001", "stream 'unchanged'")
    )


LEGACY = """<?xml version="1.0" encoding="utf-8"?>
<gadgetronStreamConfiguration xsi:schemaLocation="http://gadgetron.sf.net/gadgetron gadgetron.xsd"
        xmlns="http://gadgetron.sf.net/gadgetron" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
  <reader><slot>1008</slot><dll>gadgetron_mricore</dll><classname>GadgetIsmrmrdAcquisitionMessageReader</classname></reader>
  <reader><slot>1026</slot><dll>gadgetron_mricore</dll><classname>GadgetIsmrmrdWaveformMessageReader</classname></reader>
  <writer><slot>1005</slot><dll>gadgetron_mricore</dll><classname>MRIImageWriterFLOAT</classname></writer>
  <gadget><name>Acc</name><dll>gadgetron_mricore</dll><classname>AcquisitionAccumulateTriggerGadget</classname>
    <property><name>trigger_dimension</name><value>repetition</value></property></gadget>
  <gadget>
    <name>Recon</name><dll>gadgetron_python</dll><classname>PythonGadget</classname>
    <property><name>python_path</name><value>/home/me/gadgets</value></property>
    <property><name>python_module</name><value>my_module</value></property>
    <property><name>python_class</name><value>MyGadget</value></property>
    <property><name>lambda</name><value>0.01</value></property>
    <property><name>dim</name><value>trigger_dimension@Acc</value></property>
  </gadget>
</gadgetronStreamConfiguration>"""


def test_the_legacy_schema_and_its_python_gadget() -> None:
    chain = load(LEGACY.encode(), policy=TRUSTED)
    assert (chain.readers, chain.writers) == ({MessageId.ACQUISITION, MessageId.WAVEFORM}, {MessageId.IMAGE})
    module = chain.gadgets[1]
    assert isinstance(module, External)
    assert (module.name, module.action) == ("Recon", Execute("my_module", "MyGadget", "python"))
    for pair in (("python_path", "/home/me/gadgets"), ("python_class", "MyGadget"), ("lambda", "0.01"), ("dim", "repetition")):
        assert prop(*pair).replace("/>", " />") in module.configuration.decode()


def test_a_legacy_python_gadget_runs_in_process_where_the_file_says_so() -> None:
    more = "<property><name>in_process</name><value>true</value></property></gadget></gadgetronStream"
    handler = load(LEGACY.replace("</gadget>\n</gadgetronStream", more).encode(), policy=TRUSTED).gadgets[1]
    assert isinstance(handler, PythonHandler)
    assert (handler.name, handler.module, handler.target) == ("Recon", "my_module", "MyGadget")
    assert 'value="0.01"' in handler.config


def test_an_external_module_in_process_runs() -> None:
    execute = '<execute name="gadgetron.examples" target="pass_through" type="python"/>'
    xml = config(f"<external>{execute}{prop('in_process', 'true')}<configuration/></external>")
    made = Acquisition(None, np.ones((1, 4), np.complex64))
    chain = load(xml, policy=TRUSTED)
    (out,) = chain.run([made], Context())
    np.testing.assert_array_equal(out.data, made.data)  # type: ignore[attr-defined]


def test_a_chain_runs_and_runs_again() -> None:
    chain = load(config(gain("a", prop("factor", "3")) + gain("b", prop("gain", "factor@a"))), policy=TRUSTED)
    for _ in range(2):
        (out,) = chain.run([Acquisition(None, np.ones((1, 4), np.complex64))], Context())
        assert out.data[0, 0] == 9  # type: ignore[attr-defined]


def workers(number: str, inner: str) -> str:
    return f'<parallelprocess workers="{number}"><purestream>{inner}</purestream></parallelprocess>'


def test_parallelprocess_and_puredistributed() -> None:
    distributed = f"<puredistributed><purestream>{gain('d')}</purestream></puredistributed>"
    chain = load(config(workers("2", gain()) + distributed), policy=TRUSTED)
    block = chain.gadgets[0]
    assert isinstance(block, ParallelProcess)
    assert (block.workers, [gadget.name for gadget in block.gadgets]) == (2, ["Gain"])
    assert chain.gadgets[1].name == "d"
    zero = load(config(workers("0", ""))).gadgets[0]
    assert isinstance(zero, ParallelProcess)
    assert zero.workers >= 1


def test_a_distributed_stream_says_in_the_log_that_it_is_local(caplog: pytest.LogCaptureFixture) -> None:
    inner = f"<puredistributed><purestream>{gain()}</purestream></puredistributed>"
    list(load(config(inner + inner), policy=TRUSTED).run([], Context()))
    assert [record.message.count("run locally") for record in caplog.records if record.levelname == "WARNING"] == [1]


# -- faults -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (b"", ["my.xml", "empty"]),
        (b"\0\0", ["empty"]),
        (b"<configuration>\n<version>2</versoin></configuration>", ["my.xml:2", "mismatched tag"]),
        (b'<!DOCTYPE a [<!ENTITY x "y">]><configuration>&x;</configuration>', ["refused"]),
        (b"<a/>", ["my.xml:1", "<a>", "<configuration>", "gadgetronStreamConfiguration"]),
        (b"<configuration/>", ["<version>2</version> is missing"]),
        (b"<configuration><version>3</version></configuration>", ["<version> is '3'"]),
        (b"<configuration><version>2</version></configuration>", ["no <stream>"]),
        ("<a>" * 100 + "</a>" * 100, ["64 deep"]),
        (config("<gadgte/>"), ["my.xml:1: <stream>", "unknown element <gadgte>", "did you mean 'gadget'"]),
        (config("<gadget><clasname>X</clasname></gadget>"), ["<clasname>", "'classname'", "needs a <classname>"]),
        (config("<gadget/>"), ["<gadget>", "needs a <classname>"]),
        (config("<gadget><classname>NoiseAdjustGadgt</classname></gadget>"), ["'NoiseAdjustGadgt'", "did you mean 'NoiseAdjust"]),
        (config(gain("g", prop("facotr", "2"))), ["<gadget> 'g'", "Gain", "no property 'facotr'", "did you mean 'factor'"]),
        (config(gain("g", prop("factor", "2x"))), ["<gadget> 'g'", "'factor'", "'2x'"]),
        (config(gain("g", prop("gain", "-1"))), ["'gain'", "greater than or equal to 0", "'-1'"]),
        (config(gain("g", '<property name="factor"/>')), ["'factor'", "incomplete"]),
        (config(gain("g", '<property name="factor" value="1"><name>factor</name><value>1</value></property>')), ["'factor'", "ambiguous"]),
        (config(gain("g", '<property nam="factor" value="1"/>')), ["unknown attribute 'nam'", "'name'"]),
        (config(gain("a", prop("label", "label@b")) + gain("b", prop("label", "label@a"))), ["circle: label@b -> label@a -> label@b"]),
        (config(gain("a", prop("label", "label@bb")) + gain("b", prop("label", "x"))), ["<gadget> 'a'", "'label'", "gadget 'bb'", "'b'"]),
        (config(gain("a", prop("label", "lable@b")) + gain("b", prop("label", "x"))), ["sets no property 'lable'", "'label'"]),
        (
            config("", f"<readers><reader><dll>{CORE}</dll><classname>AcquisitonReader</classname></reader></readers>"),
            ["<reader>", "'AcquisitionReader'"],
        ),
        (config("", "<readers><reader><slot>1009</slot></reader></readers>"), ["slot '1009'", "1008"]),
        (config("", "<writers><writer/></writers>"), ["<writer>", "<classname> or a <slot>"]),
        (config("<parallel/>"), ["exactly one <branch>, has 0", "exactly one <merge>", "at least one <stream>"]),
        (config("<gadget><classname>ImageFanout</classname></gadget>"), ["belongs in a <branch>"]),
        (config(f"<parallel>{gain('g', tag='branch')}<stream/></parallel>"), ["Gain does not belong in a <branch>"]),
        (config("<parallelprocess><purestream/></parallelprocess>"), ["needs workers"]),
        (config('<parallelprocess workers="-1"><purestream/></parallelprocess>'), ["workers is '-1'"]),
        (config('<parallelprocess workers="2"/>'), ["needs a <purestream>"]),
        (config(workers("1", f"<gadget><dll>{__name__}</dll><classname>Stateful</classname></gadget>")), ["Stateful keeps state"]),
        (config("<distributed/>"), ["needs a <distributor>", "needs a <stream>"]),
        (config("<external/>"), ["exactly one <execute> or <connect>"]),
        (config('<external><execute name="m" type="pyhton"/></external>'), ["type is 'pyhton'", "'python'"]),
        (config('<external><execute type="python"/></external>'), ["needs name"]),
        (config('<external><connect port="x"/></external>'), ["port is 'x'"]),
        (config(f'<external><connect port="1"/>{prop("silence", "3")}</external>'), ["no property 'silence'", "'silence_timeout'"]),
        (config(f'<external><connect port="1"/>{prop("in_process", "true")}</external>'), ["in_process needs <execute>"]),
        (config("<gadget><dll>no_such_module</dll><classname>X</classname></gadget>"), ["cannot import", "no_such_module"]),
        (config(f"<gadget><dll>{__name__}</dll><classname>Gian</classname></gadget>"), ["no gadget 'Gian'", "'Gain'"]),
        (LEGACY.replace("<name>lambda</name><value>0.01</value>", ""), ["my.xml:14", "<gadget> 'Recon'", "needs <property>"]),
        (LEGACY.replace("python_module", "python_modul"), ["PythonGadget needs the property 'python_module'", "'python_modul'"]),
        (LEGACY.replace("</gadgetronS", "<external/></gadgetronS"), ["unknown element <external>"]),
    ],
)
def test_faults_are_named(xml: bytes | str, words: list[str]) -> None:
    text = fault(xml)
    assert all(word in text for word in words), text


def test_all_faults_of_a_file_are_reported_with_their_lines() -> None:
    text = fault(
        """<configuration>
<version>2</version>
<readers>
  <reader><classname>WaveformRaeder</classname></reader>
</readers>
<stream>
  <gadget><name>One</name><classname>NoSuchThing</classname></gadget>
  <gadget><classname>AutoScaleGadget</classname>
    <property name="max_value" value="many"/>
    <property name="histogramm_bins" value="3"/>
  </gadget>
  <parallel>
    <stream><gadget><classname>ExtractGadget</classname>
      <property name="extract_magnitude" value="perhaps"/></gadget></stream>
  </parallel>
</stream>
</configuration>"""
    )
    lines = text.splitlines()
    assert [line.split(":")[1] for line in lines] == ["4", "7", "9", "10", "12", "12", "14"], text
    assert all(line.startswith("my.xml:") for line in lines)
    assert "did you mean 'histogram_bins'" in lines[3]
    assert "'extract_magnitude'" in lines[6]


def test_matlab_and_julia_need_their_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for kind in ("matlab", "julia"):
        assert f"no command '{kind}'" in fault(config(f'<external><execute name="m" target="t" type="{kind}"/></external>'))


def test_commands_of_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("GADGETRON_HOME", "/opt/gadgetron")
    command, environment = Execute("m", "t", "python").command(4)
    assert command[1:] == ["-m", "gadgetron", "4", "m", "t"]
    assert environment == {"PYTHONPATH": "/mine:/opt/gadgetron/share/gadgetron/python"}
    assert Execute("m", "", "matlab").command(4) == (
        ["matlab", "-batch", "gadgetron.external.main"],
        {"GADGETRON_EXTERNAL_PORT": "4", "GADGETRON_EXTERNAL_MODULE": "m"},
    )
    assert Execute("m", "t", "julia").command(4)[0][-3:] == ["4", "m", "t"]


@given(st.sampled_from([PLAIN, LEGACY]), st.data())
def test_a_damaged_file_is_a_config_error_or_a_chain(text: str, data: st.DataObject) -> None:
    parts = re.split(r"(<[^>]*>|\s+)", text)
    for _ in range(data.draw(st.integers(1, 4))):
        place, other = (data.draw(st.integers(0, len(parts) - 1)) for _ in range(2))
        parts[place] = data.draw(st.sampled_from([parts[other], "", "<", "@", "&", "\0", "é", parts[place] * 2]))
    with contextlib.suppress(ConfigError):
        assert load("".join(parts).encode()).gadgets is not None


# -- what a client may send ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stream",
    [
        '<external><execute name="os" target="system" type="python"/></external>',
        '<external><connect port="22"/></external>',
        "<gadget><dll>reconstream</dll><classname>PythonHandler</classname><property name='module' value='os'/></gadget>",
        "<gadget><dll>os</dll><classname>system</classname></gadget>",
        "<gadget><dll>antigravity</dll><classname>NoiseAdjustGadget</classname></gadget>",
        "<parallel><branch><dll>os</dll><classname>ImageFanout</classname></branch><stream/></parallel>",
    ],
)
def test_a_clients_configuration_runs_nothing_foreign(stream: str) -> None:
    text = fault(config(stream), Policy())
    assert "--allow-external" in text
    assert "--allow-external" not in str(load(config(gain()), policy=TRUSTED).gadgets)


def test_a_clients_legacy_python_gadget_is_refused() -> None:
    assert "--allow-external" in fault(LEGACY, Policy())


def test_a_refused_module_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    fault(config("<gadget><dll>evil_module</dll><classname>X</classname></gadget>"), Policy())
    assert not (tmp_path / "touched").exists()


# -- references and overrides -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["me@example.org", "write to me@home, please", "@", "a@", "@b", "a b@c d", "2@3", "x@y@z"])
def test_what_cannot_be_a_reference_stays_as_it_is(value: str) -> None:
    assert only(config(gain("g", prop("label", value)))).label == value  # type: ignore[attr-defined]


def test_names_with_blanks_and_dots_are_referred_to() -> None:
    xml = config(gain("my gain v1.2", prop("factor", "4")) + gain("b", prop("factor", "factor@my gain v1.2")))
    assert [gadget.factor for gadget in load(xml, policy=TRUSTED).gadgets] == [4, 4]  # type: ignore[attr-defined]


def test_the_configuration_of_an_external_module_is_left_alone() -> None:
    module = only(config(f'<external><connect port="1"/><configuration><x>{prop("a", "lable@nobody")}</x></configuration></external>'))
    assert isinstance(module, External)
    assert b"lable@nobody" in module.configuration


NAMES = st.sampled_from(["a", "b", "c", "d"])


@given(st.dictionaries(st.tuples(NAMES, NAMES), st.one_of(st.text("xyz", max_size=3), st.tuples(NAMES, NAMES)), max_size=12))
def test_references_agree_with_following_them_by_hand(table: dict[tuple[str, str], str | tuple[str, str]]) -> None:
    gadgets: dict[str, dict[str, Property]] = {}
    for (name, gadget), value in table.items():
        text = value if isinstance(value, str) else f"{value[0]}@{value[1]}"
        gadgets.setdefault(gadget, {})[name] = Property(name, text, 1)
    references = References(gadgets.items())
    for name, gadget in table:
        at: str | tuple[str, str] | None = (name, gadget)
        for _ in range(len(table) + 1):
            if isinstance(at, tuple):
                at = table.get(at)
        if isinstance(at, str):
            assert references.resolve(f"{name}@{gadget}") == at
        else:
            with pytest.raises(ReferenceProblem, match="circle" if isinstance(at, tuple) else "sets no property|does not exist"):
                references.resolve(f"{name}@{gadget}")


def chain_of(overrides: dict[str, str], **more: object) -> Chain:
    xml = config(gain("a", prop("factor", "3")) + gain("b", prop("factor", "factor@a") + prop("label", "l")))
    return load(xml, policy=TRUSTED, overrides=overrides, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "factors", "labels"),
    [
        ({}, [3, 3], ["", "l"]),
        ({"factor@a": "5"}, [5, 5], ["", "l"]),
        ({"gain@a": "5"}, [5, 5], ["", "l"]),
        ({"factor@b": "5"}, [3, 5], ["", "l"]),
        ({"factor": "7", "label": "x"}, [7, 7], ["x", "x"]),
        ({"factor@Gain": "8"}, [8, 8], ["", "l"]),
    ],
)
def test_overrides(overrides: dict[str, str], factors: list[float], labels: list[str]) -> None:
    gadgets = chain_of(overrides).gadgets
    assert [gadget.factor for gadget in gadgets] == factors  # type: ignore[attr-defined]
    assert [gadget.label for gadget in gadgets] == labels  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"facotr": "1"}, ["override 'facotr'", "'factor'"]),
        ({"factor@c": "1"}, ["override 'factor@c'", "no gadget 'c'"]),
        ({"factor@a": "many"}, ["'factor'", "'many'"]),
    ],
)
def test_wrong_overrides_are_named(override: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        chain_of(override)
    assert all(word in str(caught.value) for word in words)


def test_an_override_that_fits_nowhere_can_be_a_note() -> None:
    chain = chain_of({"facotr": "1", "factor": "2"}, strict=False)
    assert [gadget.factor for gadget in chain.gadgets] == [2, 2]  # type: ignore[attr-defined]
    assert len(chain.notes) == 1
    assert "'facotr' is not used" in chain.notes[0]


def test_overrides_reach_external_modules_and_handlers() -> None:
    xml = config(
        f'<external><execute name="m" target="t" type="python"/><configuration>{prop("n", "1")}</configuration></external>'
        f"<gadget><name>fire</name><dll>reconstream</dll><classname>PythonHandler</classname>{prop('module', 'm')}</gadget>"
    )
    chain = load(xml, policy=TRUSTED, overrides={"n": "2", "new@m": "3", "silence_timeout": "4", "strength": "high"})
    module, handler = chain.gadgets
    assert isinstance(module, External)
    assert module.configuration == b'<configuration><property name="n" value="2" /><property name="new" value="3" /></configuration>'
    assert module.silence_timeout == 4
    assert isinstance(handler, PythonHandler)
    assert handler.extra == '{"n": "2", "silence_timeout": "4", "strength": "high"}'


def test_parameters_from_the_scanner() -> None:
    values = '"on": true, "off": false, "n": 3, "x": 0.5, "l": [1, 2], "none": null'
    text = f'{{"version": "1", "parameters": {{"config": "a", "customconfig": "", {values}}}}}\0'
    assert overrides_from_json(text) == ("a", {"on": "true", "off": "false", "n": "3", "x": "0.5", "l": "1,2", "none": ""})
    assert overrides_from_json('{"parameters": {"config": "a", "customconfig": "b"}}') == ("b", {})
    assert overrides_from_json("{}") == (None, {})


@pytest.mark.parametrize("text", ["", "no", "[1]", '{"parameters": 3}', '{"parameters": {"a": {"b": 1}}}'])
def test_parameters_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="parameter"):
        overrides_from_json(text)
