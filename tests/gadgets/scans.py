"""Small non-Cartesian scans by direct Fourier sums, with known truth; independent of `recon`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gadgets.items import Acquisition
from gadgets.layout import ACQUISITION_HEADER, Flag, blank

_HEADER = """<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<measurementInformation><measurementID>m1</measurementID><patientPosition>HFS</patientPosition></measurementInformation>
<experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding>
<encodedSpace><matrixSize><x>{ex}</x><y>{ey}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{efx}</x><y>{efy}</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{rx}</x><y>{ry}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{rfx}</x><y>{rfy}</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits>
<kspace_encoding_step_1><minimum>0</minimum><maximum>{views}</maximum><center>0</center></kspace_encoding_step_1>
</encodingLimits>
<trajectory>{trajectory}</trajectory>{description}
</encoding>
<sequenceParameters><TR>5</TR><TE>2</TE><TE>4</TE></sequenceParameters>
</ismrmrdHeader>"""


def header_xml(
    encoded: tuple[int, int],
    recon: tuple[int, int] | None = None,
    encoded_mm: tuple[float, float] = (200.0, 200.0),
    recon_mm: tuple[float, float] | None = None,
    trajectory: str = "other",
    views: int = 1,
    increment: float | None = None,
) -> bytes:
    """Header; matrices and fields of view are (x, y)."""
    recon, recon_mm = recon or encoded, recon_mm or encoded_mm
    description = ""
    if increment is not None:
        description = (
            "<trajectoryDescription><identifier>radial</identifier><userParameterDouble><name>angle_increment_deg</name>"
            f"<value>{increment!r}</value></userParameterDouble></trajectoryDescription>"
        )
    return _HEADER.format(
        ex=encoded[0],
        ey=encoded[1],
        efx=encoded_mm[0],
        efy=encoded_mm[1],
        rx=recon[0],
        ry=recon[1],
        rfx=recon_mm[0],
        rfy=recon_mm[1],
        trajectory=trajectory,
        views=views - 1,
        description=description,
    ).encode()


def asymmetric_object(n: int) -> np.ndarray:
    """Smooth complex `[y, x]` object that equals none of its flips, transposes and shifts; maximum 1."""
    y, x = np.mgrid[:n, :n] / n - 0.5

    def blob(cy: float, cx: float, sy: float, sx: float) -> np.ndarray:
        return np.exp(-(((y - cy) / sy) ** 2) - ((x - cx) / sx) ** 2)

    image = (
        blob(0, 0, 0.25, 0.2) + 0.8 * blob(-0.15, 0.1, 0.06, 0.05) - 0.5 * blob(0.1, 0.12, 0.04, 0.08) + 0.4 * blob(0.18, -0.1, 0.05, 0.05)
    )
    image = image * np.exp(1j * (0.8 * x - 1.5 * y))
    return (image / np.abs(image).max()).astype(np.complex128)


def coil_maps(coils: int, n: int) -> np.ndarray:
    """Smooth complex `[coil, y, x]` with sum |s|^2 = 1."""
    y, x = np.mgrid[:n, :n] / n - 0.5
    angle = 2 * np.pi * np.arange(coils) / coils
    distance = (y - 0.7 * np.sin(angle)[:, None, None]) ** 2 + (x - 0.7 * np.cos(angle)[:, None, None]) ** 2
    maps = np.exp(-distance * 1.5) * np.exp(1j * (angle[:, None, None] + 0.5 * y - 0.4 * x))
    return maps / np.sqrt((np.abs(maps) ** 2).sum(0))


def spokes(angles: Sequence[float] | np.ndarray, samples: int) -> np.ndarray:
    """`[view, sample, (kx, ky)]` in cycles per pixel, angles in degrees from kx towards ky; sample n // 2 is the centre."""
    radius = (np.arange(samples) - samples // 2) / samples
    angle = np.radians(angles)[:, None]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


def spiral(interleaves: int, turns: float, samples: int) -> np.ndarray:
    """`[view, sample, (kx, ky)]` in cycles per pixel, outwards at constant angular speed (dense in the centre)."""
    t = np.linspace(0, 1, samples)
    phase = 2 * np.pi * (turns * t + np.arange(interleaves)[:, None] / interleaves)
    return np.stack([0.5 * t * np.cos(phase), 0.5 * t * np.sin(phase)], -1)


def measure(image: np.ndarray, maps: np.ndarray, k: np.ndarray) -> np.ndarray:
    """d(k) = sum over (y, x) of image * map * exp(-2 pi i (kx x + ky y)), from pixel n // 2: `[coil, sample]` for k `[sample, 2]`."""
    ny, nx = image.shape
    along_x = np.exp(-2j * np.pi * np.outer(k[:, 0], np.arange(nx) - nx // 2))
    along_y = np.exp(-2j * np.pi * np.outer(k[:, 1], np.arange(ny) - ny // 2))
    return np.stack([((along_y @ (image * one)) * along_x).sum(1) for one in maps])


def readout(
    data: np.ndarray, trajectory: np.ndarray | None, number: int = 0, flags: Sequence[Flag] = (), center: int | None = None, **idx: int
) -> Acquisition:
    """An acquisition with counters `idx`, flags, a scan counter, and a time stamp that counts on."""
    header = blank(ACQUISITION_HEADER)
    header["version"] = 1
    header["measurement_uid"] = 7
    header["scan_counter"] = number
    header["acquisition_time_stamp"] = 1000 + number
    header["available_channels"] = len(data)
    header["center_sample"] = data.shape[1] // 2 if center is None else center
    header["sample_time_us"] = 5
    header["position"] = (10, -20, 30)
    header["read_dir"], header["phase_dir"], header["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    for name, value in idx.items():
        header["idx"][name] = value
    acquisition = Acquisition(header, data.astype(np.complex64), None if trajectory is None else trajectory.astype(np.float32))
    acquisition.agree()
    for flag in flags:
        acquisition.set_flag(flag)
    return acquisition


def frame(
    image: np.ndarray,
    maps: np.ndarray,
    trajectory: np.ndarray,
    start: int = 0,
    last: Sequence[Flag] = (Flag.LAST_IN_REPETITION,),
    **idx: int,
) -> list[Acquisition]:
    """The readouts of one image along `trajectory` `[view, sample, 2]`; the last carries `last`."""
    data = measure(image, maps, trajectory.reshape(-1, 2)).reshape(len(maps), *trajectory.shape[:2])
    views = len(trajectory)
    return [
        readout(data[:, view], trajectory[view], start + view, last if view == views - 1 else (), kspace_encode_step_1=view, **idx)
        for view in range(views)
    ]


def nrmse(image: np.ndarray, truth: np.ndarray) -> float:
    """Relative l2 error of the magnitudes, without any scaling."""
    return float(np.linalg.norm(np.abs(image) - np.abs(truth)) / np.linalg.norm(truth))
