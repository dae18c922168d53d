"""The measurement header is read tolerantly and complains by name."""

from __future__ import annotations

import pytest

from gadgets.header import Header, HeaderError, Limit

XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><version>7</version>
<measurementInformation><measurementID>m1</measurementID><patientPosition>HFS</patientPosition><protocolName>spokes</protocolName>
<measurementDependency><dependencyType>Noise</dependencyType><measurementID>n0</measurementID></measurementDependency></measurementInformation>
<acquisitionSystemInformation><systemFieldStrength_T>2.89</systemFieldStrength_T><relativeReceiverNoiseBandwidth>0.79</relativeReceiverNoiseBandwidth>
<coilLabel><coilNumber>0</coilNumber><coilName>Head_1</coilName></coilLabel></acquisitionSystemInformation>
<experimentalConditions><H1resonanceFrequency_Hz>123200000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding><trajectory>goldenangle</trajectory>
<encodedSpace><matrixSize><x>256</x><y>128</y><z>1</z></matrixSize><fieldOfView_mm><x>600</x><y>300</y><z>6</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>128</x><y>128</y><z>1</z></matrixSize><fieldOfView_mm><x>300</x><y>300</y><z>6</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>127</maximum><center>64</center></kspace_encoding_step_1></encodingLimits>
<parallelImaging><accelerationFactor><kspace_encoding_step_1>2</kspace_encoding_step_1><kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>
<calibrationMode>embedded</calibrationMode></parallelImaging>
<trajectoryDescription><identifier>golden</identifier><userParameterDouble><name>angle</name><value>111.25</value></userParameterDouble></trajectoryDescription>
</encoding>
<sequenceParameters><TR>4.5</TR><TE>1.2</TE><TE>3.4</TE><flipAngle_deg>15</flipAngle_deg></sequenceParameters>
<userParameters><userParameterLong><name>BitsStored</name><value>12</value></userParameterLong></userParameters>
</ismrmrdHeader>"""


def test_values() -> None:
    header = Header(XML.encode() + b"\0\0")
    assert (header.measurement_id, header.patient_position, header.protocol_name) == ("m1", "HFS", "spokes")
    assert header.dependencies == {"noise": "n0"}
    assert header.field_strength_t == 2.89
    assert header.relative_receiver_noise_bandwidth == 0.79
    assert header.coil_labels == {0: "Head_1"}
    assert header.sequence("TE") == [1.2, 3.4]
    assert header.sequence("TI") == []
    assert header.user_parameters == {"BitsStored": 12}
    encoding = header.encoding(0)
    assert encoding.trajectory == "goldenangle"
    assert encoding.encoded.matrix == (256, 128, 1)
    assert encoding.recon.field_of_view == (300.0, 300.0, 6.0)
    assert encoding.limit("kspace_encoding_step_1") == Limit(0, 127, 64)
    assert encoding.limit("slice") is None
    assert encoding.acceleration == (2, 1)
    assert encoding.calibration_mode == "embedded"
    assert encoding.trajectory_description == {"identifier": "golden", "angle": 111.25}


def test_an_empty_header_is_a_header() -> None:
    header = Header()
    assert (header.measurement_id, header.encodings, header.field_strength_t, header.user_parameters) == ("", [], None, {})


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (b"not xml at all", "not well-formed"),
        (XML.encode()[:200], "not well-formed"),
        (b"<html/>", "<html>, expected <ismrmrdHeader>"),
        (b'<!DOCTYPE x [<!ENTITY a "b">]><ismrmrdHeader>&a;</ismrmrdHeader>', "header"),
    ],
)
def test_what_is_no_header_is_refused(xml: bytes, words: str) -> None:
    with pytest.raises(HeaderError, match=words):
        Header(xml)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("<x>256</x>", "<x>wide</x>", "encoding 0/encodedSpace/matrixSize/x is 'wide'"),
        ("<x>256</x>", "<x>0</x>", "matrixSize is"),
        ("<x>256</x>", "", "has no <x>"),
        ("reconSpace>", "other>", "has no <reconSpace>"),
    ],
)
def test_a_broken_encoding_is_named(old: str, new: str, words: str) -> None:
    with pytest.raises(HeaderError, match=words):
        Header(XML.replace(old, new)).encoding(0)


def test_an_encoding_space_that_does_not_exist_is_named() -> None:
    with pytest.raises(HeaderError, match="encoding space 1 asked for, the header has 1"):
        Header(XML).encoding(1)


def test_schema_object_or_reason() -> None:
    assert Header(XML.replace("<version>7</version>", "")).xsd.encoding[0].encodedSpace.matrixSize.x == 256
    with pytest.raises(HeaderError, match="schema classes refuse"):
        _ = Header("<ismrmrdHeader><nonsense/></ismrmrdHeader>").xsd
