"""Small scans for the tests of the gadgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gadgets.base import Context, Gadget, run
from gadgets.header import Header
from gadgets.items import Acquisition, Item
from gadgets.layout import ACQUISITION_HEADER, Flag


def make_header(
    encoded: tuple[int, int, int] = (8, 8, 1),
    recon: tuple[int, int, int] | None = None,
    *,
    encoded_mm: tuple[float, float, float] | None = None,
    recon_mm: tuple[float, float, float] | None = None,
    trajectory: str = "cartesian",
    limits: Mapping[str, tuple[int, int, int]] | None = None,
    calibration: str = "",
    acceleration: int = 1,
    bandwidth: float | None = None,
    coils: Iterable[str] = (),
    te: Iterable[float] = (),
    encodings: int = 1,
) -> Header:
    """A header with `encodings` equal encoding spaces. `limits`: counter -> minimum, maximum, center."""
    recon = recon or encoded
    encoded_mm = encoded_mm or tuple(float(n) for n in encoded)  # type: ignore[assignment]
    recon_mm = recon_mm or encoded_mm

    def triple(name: str, values: Any) -> str:
        return f"<{name}>" + "".join(f"<{axis}>{value}</{axis}>" for axis, value in zip("xyz", values, strict=True)) + f"</{name}>"

    def space(name: str, matrix: Any, mm: Any) -> str:
        return f"<{name}>{triple('matrixSize', matrix)}{triple('fieldOfView_mm', mm)}</{name}>"

    ranges = "".join(
        f"<{name}><minimum>{low}</minimum><maximum>{high}</maximum><center>{center}</center></{name}>"
        for name, (low, high, center) in (limits or {}).items()
    )
    parallel = (
        f"<parallelImaging><accelerationFactor><kspace_encoding_step_1>{acceleration}</kspace_encoding_step_1>"
        f"<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor><calibrationMode>{calibration}</calibrationMode>"
        "</parallelImaging>"
        if calibration or acceleration > 1
        else ""
    )
    encoding = (
        f"<encoding>{space('encodedSpace', encoded, encoded_mm)}{space('reconSpace', recon, recon_mm)}"
        f"<encodingLimits>{ranges}</encodingLimits><trajectory>{trajectory}</trajectory>{parallel}</encoding>"
    )
    labels = "".join(f"<coilLabel><coilNumber>{i}</coilNumber><coilName>{name}</coilName></coilLabel>" for i, name in enumerate(coils))
    noise = "" if bandwidth is None else f"<relativeReceiverNoiseBandwidth>{bandwidth}</relativeReceiverNoiseBandwidth>"
    sequence = "".join(f"<TE>{value}</TE>" for value in te)
    return Header(
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        "<measurementInformation><measurementID>m1</measurementID><patientPosition>HFS</patientPosition>"
        "<protocolName>gre</protocolName></measurementInformation>"
        f"<acquisitionSystemInformation>{noise}{labels}</acquisitionSystemInformation>{encoding * encodings}"
        f"<sequenceParameters>{sequence}</sequenceParameters></ismrmrdHeader>"
    )


def readout(
    data: np.ndarray,
    flags: Iterable[Flag] = (),
    *,
    trajectory: np.ndarray | None = None,
    fields: Mapping[str, Any] | None = None,
    **counters: int,
) -> Acquisition:
    """A readout `[channel, sample]` with these flags, header fields and counters (``line``, ``partition`` for the encoding steps)."""
    acquisition = Acquisition(None, np.asarray(data, np.complex64), trajectory)
    acquisition.agree()
    for flag in flags:
        acquisition.set_flag(flag)
    for name, value in (fields or {}).items():
        acquisition.header[name] = value
    names = {"line": "kspace_encode_step_1", "partition": "kspace_encode_step_2"}
    for name, value in counters.items():
        acquisition.header["idx"][names.get(name, name)] = value
    return acquisition


def through(gadgets: Gadget | Iterable[Gadget], items: Iterable[Item], context: Context | Header | None = None) -> list[Any]:
    """What comes out of a chain."""
    chain = [gadgets] if isinstance(gadgets, Gadget) else gadgets
    context = Context(header=context) if isinstance(context, Header) else context or Context()
    return list(run(chain, items, context))


def noise_like(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Complex Gaussian samples."""
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def dft(n: int) -> np.ndarray:
    """Matrix of the centred orthonormal transform from image to k-space, written out."""
    index = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(index, index) / n) / np.sqrt(n)


def read_scan(path: Path) -> tuple[Header, list[Acquisition]]:
    """All readouts of an ISMRMRD file."""
    with h5py.File(path) as file:
        rows, xml = file["dataset/data"][:], file["dataset/xml"][0]
    acquisitions = []
    for row in rows:
        head = np.frombuffer(bytearray(row["head"].tobytes()), ACQUISITION_HEADER)[0]
        samples, channels = int(head["number_of_samples"]), int(head["active_channels"])
        trajectory = row["traj"].reshape(samples, -1) if head["trajectory_dimensions"] else None
        acquisitions.append(Acquisition(head, row["data"].view(np.complex64).reshape(channels, samples), trajectory))
    return Header(xml), acquisitions
