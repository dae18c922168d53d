"""The measurement header: ISMRMRD XML, read tolerantly.

Scanners and converters send headers that the schema refuses (a trailing NUL, no acquisitionSystemInformation, vendor elements).
This reader asks only for what a reconstruction needs and says by name what is missing when it is asked for; the raw XML is kept
for everything else. Times are in ms, angles in degrees, lengths in mm, as in ISMRMRD.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from xml.etree.ElementTree import Element

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

NOT_CARTESIAN = ("radial", "goldenangle", "spiral")
"""Trajectories of the ISMRMRD schema whose readouts lie on no grid (cartesian and epi do; other may)."""


class HeaderError(ValueError):
    """The measurement header cannot be read, or lacks something a gadget needs."""


@dataclass(frozen=True)
class Space:
    """An encoded or reconstructed space: matrix (x, y, z) and field of view (x, y, z) in mm."""

    matrix: tuple[int, int, int]
    field_of_view: tuple[float, float, float]


@dataclass(frozen=True)
class Limit:
    """Range of an encoding counter and its k-space centre."""

    minimum: int = 0
    maximum: int = 0
    center: int = 0


@dataclass(frozen=True)
class Encoding:
    """One encoding space of the measurement."""

    encoded: Space
    recon: Space
    limits: dict[str, Limit] = field(default_factory=dict)
    trajectory: str = "cartesian"
    acceleration: tuple[int, int] = (1, 1)
    calibration_mode: str = ""
    interleaving_dimension: str = ""
    trajectory_description: dict[str, Any] = field(default_factory=dict)

    def limit(self, name: str) -> Limit | None:
        """Limits of a counter (``kspace_encoding_step_1``, ``slice``, ...); None when the header does not give them."""
        return self.limits.get(name)


class Header:
    """ISMRMRD measurement header.

    `xml` may end in NULs and may lack anything. Raises `HeaderError` when it is not XML or its root is no ismrmrdHeader.
    """

    def __init__(self, xml: bytes | str = b"") -> None:
        self.xml: bytes = (xml.encode() if isinstance(xml, str) else bytes(xml)).rstrip(b"\0")
        if not self.xml.strip():
            self._root = Element("ismrmrdHeader")
            return
        try:
            self._root = fromstring(self.xml)
        except (ParseError, DefusedXmlException, ValueError) as error:
            raise HeaderError(f"header: not well-formed XML ({error}); it begins {self.xml[:60]!r}") from error
        if _local(self._root) != "ismrmrdHeader":
            raise HeaderError(f"header: the root element is <{_local(self._root)}>, expected <ismrmrdHeader>")

    @cached_property
    def xsd(self) -> Any:
        """The header as `ismrmrd.xsd.ismrmrdHeader`. Raises `HeaderError` where ismrmrd's schema classes refuse it."""
        import ismrmrd

        try:
            return ismrmrd.xsd.CreateFromDocument(self.xml)
        except Exception as error:
            raise HeaderError(f"header: ismrmrd's schema classes refuse it: {error}") from error

    # -- values ------------------------------------------------------------------------------------------------------

    def text(self, *path: str) -> str | None:
        """Text of the first element at `path` below the root, stripped; None when absent."""
        found = _find(self._root, *path)
        return None if found is None else (found.text or "").strip()

    def texts(self, *path: str) -> list[str]:
        """Texts of all elements at `path`."""
        parents = [self._root]
        for name in path:
            parents = [child for parent in parents for child in parent if _local(child) == name]
        return [(element.text or "").strip() for element in parents]

    def number(self, *path: str) -> float | None:
        """Number at `path`; None when absent. Raises `HeaderError` when it is no number."""
        value = self.text(*path)
        return None if value is None else _number(value, "/".join(path))

    def sequence(self, name: str) -> list[float]:
        """All values of a sequenceParameters element: TR, TE, TI, echo_spacing in ms, flipAngle_deg in degrees."""
        return [_number(value, f"sequenceParameters/{name}") for value in self.texts("sequenceParameters", name)]

    @cached_property
    def user_parameters(self) -> dict[str, int | float | str]:
        """userParameterLong, Double and String by name."""
        element = _find(self._root, "userParameters")
        return {} if element is None else _user_parameters(element)

    @cached_property
    def encodings(self) -> list[Encoding]:
        """All encoding spaces. Raises `HeaderError` when one lacks its matrix or field of view."""
        return [_encoding(element, i) for i, element in enumerate(e for e in self._root if _local(e) == "encoding")]

    def encoding(self, space: int = 0) -> Encoding:
        """Encoding space number `space`. Raises `HeaderError` when the header has none of that number."""
        if not 0 <= space < len(self.encodings):
            raise HeaderError(
                f"header: encoding space {space} asked for, the header has {len(self.encodings)}; "
                "check <encoding> in the header and encoding_space_ref of the acquisitions"
            )
        return self.encodings[space]

    def require_cartesian(self) -> None:
        """Raise `HeaderError` for a scan along another trajectory, which a Cartesian chain would turn into pictures of nothing."""
        for space, encoding in enumerate(self.encodings):
            if encoding.trajectory in NOT_CARTESIAN:
                raise HeaderError(
                    f"header: encoding {space} has the trajectory {encoding.trajectory!r}, this chain is for Cartesian scans; "
                    "use one with NonCartesianRecon or RealtimeRecon, such as radial_gridding.xml or spiral_cgsense.xml"
                )

    @property
    def measurement_id(self) -> str:
        """measurementInformation/measurementID, empty when absent."""
        return self.text("measurementInformation", "measurementID") or ""

    @property
    def patient_position(self) -> str:
        """measurementInformation/patientPosition (HFS, ...), empty when absent."""
        return self.text("measurementInformation", "patientPosition") or ""

    @property
    def protocol_name(self) -> str:
        """measurementInformation/protocolName, empty when absent."""
        return self.text("measurementInformation", "protocolName") or ""

    @property
    def field_strength_t(self) -> float | None:
        """Field strength in tesla; None when absent."""
        return self.number("acquisitionSystemInformation", "systemFieldStrength_T")

    @property
    def relative_receiver_noise_bandwidth(self) -> float | None:
        """acquisitionSystemInformation/relativeReceiverNoiseBandwidth; None when absent."""
        return self.number("acquisitionSystemInformation", "relativeReceiverNoiseBandwidth")

    @cached_property
    def coil_labels(self) -> dict[int, str]:
        """Coil number -> coil name."""
        system = _find(self._root, "acquisitionSystemInformation")
        labels = [] if system is None else [child for child in system if _local(child) == "coilLabel"]
        return {
            int(_number(_child_text(label, "coilNumber", "coilLabel"), "coilNumber")): _child_text(label, "coilName", "coilLabel")
            for label in labels
        }

    @cached_property
    def dependencies(self) -> dict[str, str]:
        """measurementDependency: type (``Noise``, lower case) -> measurement id."""
        information = _find(self._root, "measurementInformation")
        entries = [] if information is None else [c for c in information if _local(c) == "measurementDependency"]
        return {
            _child_text(entry, "dependencyType", "measurementDependency").lower(): _child_text(
                entry, "measurementID", "measurementDependency"
            )
            for entry in entries
        }


def _local(element: Element) -> str:
    return element.tag.rsplit("}", 1)[-1]


def _find(element: Element, *path: str) -> Element | None:
    found: Element | None = element
    for name in path:
        if found is None:
            return None
        found = next((child for child in found if _local(child) == name), None)
    return found


def _child_text(element: Element, name: str, place: str) -> str:
    child = _find(element, name)
    if child is None:
        raise HeaderError(f"header: <{place}> has no <{name}>")
    return (child.text or "").strip()


def _number(value: str, place: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise HeaderError(f"header: {place} is {value!r}, expected a number") from None


def _user_parameters(element: Element) -> dict[str, int | float | str]:
    values: dict[str, int | float | str] = {}
    for child in element:
        kind = _local(child)
        if kind not in ("userParameterLong", "userParameterDouble", "userParameterString"):
            continue
        name, value = _child_text(child, "name", kind), _child_text(child, "value", kind)
        if kind == "userParameterString":
            values[name] = value
        else:
            number = _number(value, f"{kind} {name}")
            values[name] = int(number) if kind == "userParameterLong" else number
    return values


def _triple(element: Element, name: str, place: str) -> tuple[float, float, float]:
    child = _find(element, name)
    if child is None:
        raise HeaderError(f"header: {place} has no <{name}>")
    x, y, z = (_number(_child_text(child, axis, f"{place}/{name}"), f"{place}/{name}/{axis}") for axis in "xyz")
    return x, y, z


def _space(element: Element, name: str, place: str) -> Space:
    space = _find(element, name)
    if space is None:
        raise HeaderError(f"header: {place} has no <{name}>")
    matrix = _triple(space, "matrixSize", f"{place}/{name}")
    if min(matrix) < 1 or max(matrix) > 65535:
        raise HeaderError(f"header: {place}/{name}/matrixSize is {matrix}, expected 1 to 65535 along each axis")
    x, y, z = (int(n) for n in matrix)
    return Space((x, y, z), _triple(space, "fieldOfView_mm", f"{place}/{name}"))


def _encoding(element: Element, number: int) -> Encoding:
    place = f"encoding {number}"
    limits_element = _find(element, "encodingLimits")
    limits = {
        _local(limit): Limit(
            *(
                int(_number(_child_text(limit, name, f"{place}/{_local(limit)}"), f"{place}/{_local(limit)}/{name}"))
                for name in ("minimum", "maximum", "center")
            )
        )
        for limit in (limits_element if limits_element is not None else ())
    }
    factor = _find(element, "parallelImaging", "accelerationFactor")
    acceleration = (1, 1)
    if factor is not None:
        one, two = (
            int(_number(_child_text(factor, f"kspace_encoding_step_{n}", "accelerationFactor"), "accelerationFactor")) for n in (1, 2)
        )
        acceleration = (max(one, 1), max(two, 1))

    def text(*path: str) -> str:
        found = _find(element, *path)
        return "" if found is None else (found.text or "").strip()

    description_element = _find(element, "trajectoryDescription")
    description: dict[str, Any] = {}
    if description_element is not None:
        description = {
            "identifier": text("trajectoryDescription", "identifier"),
            **_user_parameters(description_element),
        }
    return Encoding(
        encoded=_space(element, "encodedSpace", place),
        recon=_space(element, "reconSpace", place),
        limits=limits,
        trajectory=text("trajectory").lower() or "cartesian",
        acceleration=acceleration,
        calibration_mode=text("parallelImaging", "calibrationMode").lower(),
        interleaving_dimension=text("parallelImaging", "interleavingDimension").lower(),
        trajectory_description=description,
    )
