"""Small quantitative scans with known maps, written as ISMRMRD, PyQMRI and NIfTI files; signals by textbook formulas in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np

from gadgets.items import Acquisition
from gadgets.layout import Flag
from service.files import write_measurement
from tests.gadgets.scans import coil_maps, measure, readout, spokes

N = 32
FLIPS = (3.0, 6.0, 10.0, 16.0, 24.0)
TR = 15.0
ECHOES = (10.0, 25.0, 45.0, 70.0)
GOLDEN = 111.246117975

_HEADER = """<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding>
<encodedSpace><matrixSize><x>{wide}</x><y>{n}</y><z>{depth}</z></matrixSize>
<fieldOfView_mm><x>{wide_mm}</x><y>160</y><z>{z_mm}</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{n}</x><y>{n}</y><z>{depth}</z></matrixSize>
<fieldOfView_mm><x>160</x><y>160</y><z>{z_mm}</z></fieldOfView_mm></reconSpace>
<encodingLimits>
<kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{center}</center></kspace_encoding_step_1>
<kspace_encoding_step_2><minimum>0</minimum><maximum>{last_z}</maximum><center>{center_z}</center></kspace_encoding_step_2>
<contrast><minimum>0</minimum><maximum>{contrasts}</maximum><center>0</center></contrast>
</encodingLimits>
<trajectory>{trajectory}</trajectory>{parallel}
</encoding>
<sequenceParameters>{sequence}</sequenceParameters>
<userParameters>{user}</userParameters>
</ismrmrdHeader>"""


def elements(**values: float | str | Sequence[float]) -> str:
    """XML elements, one for each value."""
    return "".join(f"<{name}>{value}</{name}>" for name, many in values.items() for value in np.ravel(many))


def users(**values: float) -> str:
    """userParameterDouble of these names."""
    return "".join(
        f"<userParameterDouble><name>{name}</name><value>{value}</value></userParameterDouble>" for name, value in values.items()
    )


def header(
    contrasts: int,
    trajectory: str,
    sequence: str = "",
    user: str = "",
    oversampling: int = 1,
    depth: int = 1,
    lines: int = N,
    parallel: str = "",
) -> bytes:
    return _HEADER.format(
        n=N, wide=N * oversampling, wide_mm=160 * oversampling, depth=depth, z_mm=6 * depth, last=lines - 1, center=N // 2,
        last_z=depth - 1, center_z=depth // 2, contrasts=contrasts - 1, trajectory=trajectory, sequence=sequence, user=user,
        parallel=parallel,
    ).encode()  # fmt: skip


def objects() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Density, T1 and T2 in ms, `[y, x]`, unlike any of their flips and transposes; 0 outside the object."""
    y, x = np.mgrid[:N, :N] / N - 0.5
    body = (y / 0.42) ** 2 + (x / 0.34) ** 2 < 1
    spot = (y + 0.15) ** 2 + (x - 0.1) ** 2 < 0.1**2
    bar = (np.abs(y - 0.15) < 0.06) & (x > -0.15) & (x < 0.22)
    density = body * (1 + 0.3 * x - 0.2 * y) * np.exp(1j * (0.5 * x - 0.8 * y))
    t1 = np.where(spot, 1600.0, np.where(bar, 400.0, 900.0)) * body
    t2 = np.where(spot, 110.0, np.where(bar, 35.0, 70.0)) * body
    return density, t1, t2


def interior() -> np.ndarray:
    """Voxels whose neighbours are of the same tissue."""
    _, t1, _ = objects()
    same = t1 > 0
    for axis in (0, 1):
        for shift in (-2, -1, 1, 2):
            same &= np.roll(t1, shift, axis) == t1
    return same


def error(values: np.ndarray, truth: np.ndarray) -> float:
    """Median relative error over the interior."""
    inside = interior()
    return float(np.median(np.abs(values[inside] / truth[inside] - 1)))


def vfa_images(flips: Sequence[float] = FLIPS) -> np.ndarray:
    density, t1, _ = objects()
    recovery = np.exp(-TR / np.where(t1 > 0, t1, 1))
    angles = np.deg2rad(flips)[:, None, None]
    images: np.ndarray = density * np.sin(angles) * (1 - recovery) / (1 - np.cos(angles) * recovery)
    return images


def t2_images(echoes: Sequence[float] = ECHOES) -> np.ndarray:
    density, _, t2 = objects()
    images: np.ndarray = density * np.exp(-np.array(echoes)[:, None, None] / np.where(t2 > 0, t2, 1))
    return images


def train_images(count: int, first: float, step: float, flip_deg: float) -> np.ndarray:
    """Every readout of a spoiled train, the first one `first` ms after a perfect inversion: magnetisation pulse by pulse."""
    density, t1, _ = objects()
    time = np.where(t1 > 0, t1, 1)
    recovery, magnetisation, images = np.exp(-step / time), 1 - 2 * np.exp(-first / time), []
    for _ in range(count):
        images.append(density * np.sin(np.deg2rad(flip_deg)) * magnetisation)
        magnetisation = magnetisation * np.cos(np.deg2rad(flip_deg)) * recovery + 1 - recovery
    return np.array(images)


def radial(images: np.ndarray, views: int, coils: int = 4, noise: float = 0.0) -> list[Acquisition]:
    """Golden-angle spokes that go on from contrast to contrast."""
    random = np.random.default_rng(1)
    maps, items = coil_maps(coils, N), []
    for contrast, image in enumerate(images):
        for view in range(views):
            points = spokes([GOLDEN * len(items)], N)[0]
            data = measure(image, maps, points)
            data = data + noise * (random.standard_normal(data.shape) + 1j * random.standard_normal(data.shape))
            items.append(readout(data, points, len(items), contrast=contrast, kspace_encode_step_1=view))
    return items


def lines(
    images: np.ndarray,
    coils: int = 4,
    sampled: Callable[[int], bool] = lambda line: True,
    oversampling: int = 1,
    slice_: int = 0,
    **geometry: object,
) -> list[Acquisition]:
    """Cartesian lines of one slice; central ones of undersampled scans are also calibration."""
    maps, items = coil_maps(coils, N), []
    kx = (np.arange(N * oversampling) - N * oversampling // 2) / (N * oversampling)
    accelerated = not all(sampled(line) for line in range(N))
    for contrast, image in enumerate(images):
        for line in range(N):
            central = accelerated and abs(line - N // 2) < 8
            if not (sampled(line) or central):
                continue
            points = np.stack([kx, np.full(kx.shape, (line - N // 2) / N)], -1)
            flags = [Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING] if central else []
            item = readout(
                measure(image, maps, points), None, len(items), flags, contrast=contrast, kspace_encode_step_1=line, slice=slice_
            )
            item.header["position"] = geometry.get("position", (0, 0, 0))
            items.append(item)
    return items


def write(path: Path, xml: bytes, items: Sequence[Acquisition]) -> Path:
    write_measurement(path, xml, items)
    return path


def write_pyqmri(path: Path, images: np.ndarray, attributes: dict[str, object], views: int = 0, coils: int = 4, maps: bool = True) -> Path:
    """One slice twice as PyQMRI has it: FFT-ordered k-space, or with `views` golden-angle spokes and root-weighted data."""
    sensitivities = coil_maps(coils, N)
    coil_images = images[:, None] * sensitivities
    with h5py.File(path, "w") as file:
        if views:
            points = np.stack([spokes(GOLDEN * (np.arange(views) + views * n), N) for n in range(len(images))])
            data = np.stack([measure(image, sensitivities, one.reshape(-1, 2)) for image, one in zip(images, points, strict=True)])
            data = data.reshape(len(images), coils, 1, views, N).repeat(2, 2) / N
            density = np.maximum(np.abs(np.arange(N) - N // 2), 0.25) * np.ones((views, 1)) * np.pi / 4 / views
            data = data * np.sqrt(density)
            file["dcf"] = density.astype(np.float32)
            file["real_traj"], file["imag_traj"] = points[..., 0].astype(np.float32), points[..., 1].astype(np.float32)
            file.attrs["data_normalized_with_dcf"] = True
        else:
            data = np.fft.fft2(coil_images, norm="ortho")[:, :, None].repeat(2, 2)
        file["real_dat"], file["imag_dat"] = data.real.astype(np.float32), data.imag.astype(np.float32)
        if maps:
            file["Coils"] = sensitivities[:, None].repeat(2, 1).astype(np.complex64)
        file.attrs["image_dimensions"] = (N, N, 2)
        for name, value in attributes.items():
            file.attrs[name] = value
    return path
