"""A small simulated Cartesian scan with known truth, as readouts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gadgets.accumulate import AcquisitionAccumulateTrigger
from gadgets.base import Context, Gadget, run
from gadgets.buffer import BucketToBuffer
from gadgets.header import Header
from gadgets.items import Acquisition, Item
from gadgets.layout import Flag
from recon.fourier import fftc
from recon.phantoms import birdcage_coils, shepp_logan

_XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <measurementInformation><measurementID>dev_pat_study_7</measurementID><protocolName>P</protocolName></measurementInformation>
  <encoding>
    <encodedSpace><matrixSize><x>{n}</x><y>{rows}</y><z>{z}</z></matrixSize>
      <fieldOfView_mm><x>{fov}</x><y>{encoded_fov}</y><z>{thick}</z></fieldOfView_mm></encodedSpace>
    <reconSpace><matrixSize><x>{recon_x}</x><y>{recon_y}</y><z>{recon_z}</z></matrixSize>
      <fieldOfView_mm><x>{fov}</x><y>{recon_fov}</y><z>{thick}</z></fieldOfView_mm></reconSpace>
    <encodingLimits>
      <kspace_encoding_step_1><minimum>0</minimum><maximum>{last1}</maximum><center>{center1}</center></kspace_encoding_step_1>
      <kspace_encoding_step_2><minimum>0</minimum><maximum>{last2}</maximum><center>{center2}</center></kspace_encoding_step_2>
      <repetition><minimum>0</minimum><maximum>{last_repetition}</maximum><center>0</center></repetition>
    </encodingLimits>
    <trajectory>cartesian</trajectory>
    <parallelImaging>
      <accelerationFactor><kspace_encoding_step_1>{r1}</kspace_encoding_step_1><kspace_encoding_step_2>{r2}</kspace_encoding_step_2>
      </accelerationFactor>
      <calibrationMode>{mode}</calibrationMode>
    </parallelImaging>
  </encoding>
</ismrmrdHeader>"""


@dataclass
class Scan:
    """What to simulate: factors and calibration in (e2, e1) order; `first` drops the lines before it (partial Fourier).

    `lines`, bool ``[e2, e1]``, are the imaging lines where the factors do not tell.
    """

    n: int = 64
    partitions: int = 1
    coils: int = 8
    acceleration: tuple[int, int] = (1, 1)
    mode: str = "embedded"
    calibration: tuple[int, int] = (1, 24)
    repetitions: int = 1
    first: int = 0
    noise: float = 0.0
    recon: tuple[int, int, int] | None = None
    encoded_fov: float = 300.0
    recon_fov: float = 300.0
    seed: int = 0
    calibrated: set[int] | None = None
    lines: np.ndarray | None = None
    truth: np.ndarray = field(init=False)
    maps: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        n, z = self.n, self.partitions
        maps = birdcage_coils(self.coils, (n, n))[:, None]
        if z > 1:
            towards = np.linspace(-1, 1, z)[:, None, None]
            near, far = np.exp(-((towards - 0.8) ** 2)), np.exp(-((towards + 0.8) ** 2) + 0.5j)
            maps = np.concatenate([maps * near, maps * far])
        self.maps = (maps / np.sqrt((np.abs(maps) ** 2).sum(0))).astype(np.complex64)
        profile = np.hanning(z + 2)[1:-1, None, None] if z > 1 else np.ones((1, 1, 1))
        self.truth = (100 * profile * shepp_logan((n, n))).astype(np.complex64)

    @property
    def header(self) -> Header:
        n, z = self.n, self.partitions
        x, y, recon_z = self.recon or (n, n, z)
        return Header(
            _XML.format(
                n=n, rows=n, z=z, fov=300.0, encoded_fov=self.encoded_fov, recon_fov=self.recon_fov, thick=5.0 * z,
                recon_x=x, recon_y=y, recon_z=recon_z,
                last1=n - 1 - self.first, center1=n // 2 - self.first, last2=z - 1, center2=z // 2,
                last_repetition=self.repetitions - 1, r2=self.acceleration[0], r1=self.acceleration[1], mode=self.mode,
            )
        )  # fmt: skip

    def readouts(self) -> list[Acquisition]:
        """Readouts of all repetitions; interleaved scans shift the sampled lines from one to the next."""
        rng = np.random.default_rng(self.seed)
        axes = (-3, -2, -1) if self.partitions > 1 else (-2, -1)
        kspace = fftc(self.maps * self.truth, axes)
        result = []
        for repetition in range(self.repetitions):
            for e2 in range(self.partitions):
                for e1 in range(self.first, self.n):
                    flag = self._flag(e2, e1, repetition)
                    if flag is not None:
                        data = kspace[:, e2, e1].copy()
                        data += self.noise * (rng.standard_normal(data.shape) + 1j * rng.standard_normal(data.shape)) / np.sqrt(2)
                        result.append(self._readout(data.astype(np.complex64), e2, e1, repetition, flag, len(result)))
        return result

    def _flag(self, e2: int, e1: int, repetition: int) -> int | None:
        """0 for an imaging line, a calibration flag, or None for a line that is not acquired."""
        r2, r1 = self.acceleration
        shift = repetition if self.mode == "interleaved" else 0
        imaging = (e2 - self.partitions // 2) % r2 == 0 and (e1 - self.n // 2 - shift) % r1 == 0
        if self.lines is not None:
            imaging = bool(self.lines[e2, e1])
        accelerated = max(self.acceleration) > 1 and self.mode == "embedded"
        wanted = accelerated and (self.calibrated is None or repetition in self.calibrated)
        c2, c1 = self.calibration
        inside = abs(e2 - self.partitions // 2 + 0.25) <= c2 / 2 and abs(e1 - self.n // 2 + 0.25) <= c1 / 2
        if wanted and inside:
            return int(Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING if imaging else Flag.IS_PARALLEL_CALIBRATION)
        return 0 if imaging else None

    def _readout(self, data: np.ndarray, e2: int, e1: int, repetition: int, flag: int, number: int) -> Acquisition:
        readout = Acquisition(None, data)
        header = readout.header
        header["idx"]["kspace_encode_step_1"], header["idx"]["kspace_encode_step_2"] = e1 - self.first, e2
        header["idx"]["repetition"] = repetition
        header["scan_counter"] = number
        header["acquisition_time_stamp"] = 1000 + number
        header["physiology_time_stamp"] = (10 + number, 0, 0)
        header["position"], header["read_dir"] = (1, 2, 3), (1, 0, 0)
        header["phase_dir"], header["slice_dir"] = (0, 1, 0), (0, 0, 1)
        header["user_int"][0] = 42
        header["sample_time_us"] = 5
        if flag:
            readout.set_flag(flag)
        return readout

    def buffers(self, **sorting: str) -> list[Gadget]:
        """The front end: all readouts in one bucket, sorted."""
        return [AcquisitionAccumulateTrigger(trigger_on_flags=False), BucketToBuffer(**({"N_dimension": "repetition"} | sorting))]

    def run(self, *gadgets: Gadget, context: Context | None = None, front: list[Gadget] | None = None) -> list[Item]:
        """What comes out of the front end and `gadgets`."""
        chain = [*(self.buffers() if front is None else front), *gadgets]
        return list(run(chain, self.readouts(), context or Context(header=self.header, measurement="test")))
