"""Noise whitening of the receiver channels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np

from gadgets.base import Context, Gadget, Stream, parameter
from gadgets.header import Header
from gadgets.items import Acquisition, DependencyQuery, Item
from gadgets.layout import Flag
from gadgets.noise_store import NoiseStore, StoredNoise
from recon.coils import SingularNoiseError, whitening_matrix

BANDWIDTH = 0.793
"""Relative receiver noise bandwidth where the header gives none (Gadgetron's default)."""


class NoiseAdjust(Gadget):
    """Whiten the channels with the covariance of the noise readouts.

    Acquisition -> Acquisition. Noise readouts are consumed. With samples n of the noise readouts, C = sum n n^H / (count - 1)
    and its lower Cholesky factor L, a readout d becomes

        sqrt(2 * dwell / noise dwell * relative receiver noise bandwidth) * inv(L) d,

    so that real and imaginary part of the noise have variance 1 (Kellman & McVeigh, Magn Reson Med 2005;54:1439). Noise readouts
    that come after the first whitened readout are ignored and counted. Needs no measurement, patient or device ids.

    Where the service keeps noise (setting ``storage``), the covariance is kept under the header's measurementID. A scan without
    noise readouts of its own uses that of the measurement that its header names as ``measurementDependency`` of type Noise.
    Without either, data pass as they are.
    """

    stock = (("gadgetron_mricore", "NoiseAdjustGadget"),)
    ignored = ("noise_dependency_prefix", "noise_dependency_folder")

    perform_noise_adjust: bool = parameter(True, help="false: drop noise readouts and pass all others as they are")
    pass_nonconformant_data: bool = parameter(True, help="pass readouts whose channel count differs from the noise's; false: error")
    noise_dwell_time_us_preset: float = parameter(0.0, unit="us", ge=0, help="sample time of the noise readouts; 0: from their headers")
    scale_only_channels_by_name: str = parameter("", help="names of coils, separated by commas, to be scaled and not mixed")
    singular_noise: Literal["error", "pass"] = parameter(
        "error", help="when the covariance is singular (a dead channel, too few samples): stop, or pass data unwhitened with a warning"
    )

    def __call__(self, items: Stream) -> Iterator[Item]:
        noise = _Noise()
        whitener: _Whitener | None = None
        told = not self.perform_noise_adjust
        for acquisition in items.of(Acquisition):
            if acquisition.is_flag_set(Flag.IS_NOISE_MEASUREMENT):
                if whitener is None and self.perform_noise_adjust:
                    noise.add(acquisition)
                else:
                    items.context.count("noise readouts ignored")
                continue
            if whitener is None and not told:
                told = True
                found = self._noise(noise, items.context)
                whitener = None if found is None else self._whitener(found, items.context)
            yield acquisition if whitener is None else self._whiten(acquisition, whitener)
        if whitener is None and noise.samples:  # a noise scan: nothing but noise readouts
            self._noise(noise, items.context)

    def _noise(self, noise: _Noise, context: Context) -> StoredNoise | None:
        """The noise of this scan, which is kept for later scans, or of the scan it depends on."""
        if noise.samples:
            measured = StoredNoise(noise.covariance(), noise.dwell_us, noise.samples)
            if context.storage is not None and context.header.measurement_id:
                try:
                    NoiseStore(context.storage).save(context.header.measurement_id, measured)
                except OSError as error:
                    context.log.warning("%s: the noise covariance is not kept for later scans: %s", self.name, error)
            return measured
        wanted = context.header.dependencies.get("noise")
        if wanted is None:
            context.log.info("%s: no noise readout before the first imaging readout; data pass unwhitened", self.name)
            return None
        stored = None if context.storage is None else NoiseStore(context.storage).load(wanted)
        if stored is None:
            where = "this service keeps none (setting 'storage')" if context.storage is None else f"none is kept in {context.storage}"
            context.log.warning("%s: the scan depends on the noise of measurement %s; %s; data pass unwhitened", self.name, wanted, where)
        return stored

    def _whitener(self, noise: StoredNoise, context: Context) -> _Whitener:
        covariance = noise.covariance.copy()
        for channel in self._scale_only(context):
            if channel < len(covariance):
                variance = covariance[channel, channel]
                covariance[channel, :] = covariance[:, channel] = 0
                covariance[channel, channel] = variance
        try:
            matrix: np.ndarray | None = whitening_matrix(covariance)
        except SingularNoiseError as error:
            coils = _coil_names(context.header, error.channels)
            text = f"{noise.samples} noise samples, {len(covariance)} channels: {error}{coils}. {_REMEDY}"
            if self.singular_noise == "error":
                raise ValueError(text) from error
            context.log.warning("%s: data pass unwhitened; %s", self.name, text)
            context.count("scans with singular noise passed unwhitened")
            matrix = None
        bandwidth = context.header.relative_receiver_noise_bandwidth
        return _Whitener(matrix, self.noise_dwell_time_us_preset or noise.dwell_us, BANDWIDTH if bandwidth is None else bandwidth)

    def _whiten(self, acquisition: Acquisition, whitener: _Whitener) -> Acquisition:
        if whitener.matrix is None:
            return acquisition
        channels = acquisition.data.shape[0]
        if channels != len(whitener.matrix):
            if self.pass_nonconformant_data:
                return acquisition
            raise ValueError(
                f"readout {acquisition.header['scan_counter']} has {channels} channels, the noise readouts had {len(whitener.matrix)}; "
                "acquire noise with the same coils, or set pass_nonconformant_data=true"
            )
        whitened = whitener.scaled(float(acquisition.header["sample_time_us"])) @ acquisition.data
        return acquisition.with_data(whitened, acquisition.trajectory)

    def _scale_only(self, context: Context) -> list[int]:
        labels = list(context.header.coil_labels.values())
        channels = []
        for name in filter(None, (part.strip() for part in self.scale_only_channels_by_name.split(","))):
            if name in labels:
                channels.append(labels.index(name))
            else:
                context.log.warning("%s: the header has no coil %r to scale only", self.name, name)
        return channels


class NoiseSummary(Gadget):
    """Tell a client whether the noise of a measurement is kept here, and how much noise that was.

    Nothing -> DependencyQuery, at the end of the input. Clients ask so before a scan whose header names a noise measurement.
    """

    stock = (("gadgetron_mricore", "NoiseSummaryGadget"),)

    noise_file: str = parameter("", help="measurement id, with or without GadgetronNoiseCovarianceMatrix_ before it")

    def __call__(self, items: Stream) -> Iterator[Item]:
        yield from items
        storage = items.context.storage
        noise = None if storage is None or not self.noise_file else NoiseStore(storage).load(self.noise_file)
        if noise is None:
            yield DependencyQuery({"status": "failed"})
            return
        sigma = np.sqrt(np.diagonal(noise.covariance).real)
        yield DependencyQuery(
            {
                "noise_dwell_time_us": f"{noise.dwell_us:.7g}",
                "min_sigma": f"{sigma.min():.7g}",
                "max_sigma": f"{sigma.max():.7g}",
                "mean_sigma": f"{sigma.mean():.7g}",
                "channels": str(len(sigma)),
                "status": "success",
            }
        )


_REMEDY = (
    "Remove the channels with a CoilReduction gadget in front (coil_mask), or set singular_noise=pass to go on without whitening, "
    "or perform_noise_adjust=false"
)


class _Noise:
    """Running sum of n n^H over the noise readouts."""

    def __init__(self) -> None:
        self.sum: np.ndarray | None = None
        self.samples = 0
        self.dwell_us = 0.0

    def add(self, acquisition: Acquisition) -> None:
        data = acquisition.data.astype(np.complex128)
        product = data @ data.conj().T
        if self.sum is None:
            self.sum = np.zeros_like(product)
        if self.sum.shape != product.shape:
            raise ValueError(
                f"noise readout {acquisition.header['scan_counter']} has {len(product)} channels, the ones before had {len(self.sum)}; "
                "acquire all noise readouts with the same coils"
            )
        self.sum += product
        self.samples += data.shape[1]
        self.dwell_us = self.dwell_us or float(acquisition.header["sample_time_us"])

    def covariance(self) -> np.ndarray:
        assert self.sum is not None
        return self.sum / max(self.samples - 1, 1)


class _Whitener:
    """The whitening matrix, scaled for a readout's dwell time (one cached matrix a dwell time)."""

    def __init__(self, matrix: np.ndarray | None, noise_dwell_us: float, bandwidth: float) -> None:
        self.matrix = matrix
        self._noise_dwell_us = noise_dwell_us
        self._bandwidth = bandwidth
        self._scaled: dict[float, np.ndarray] = {}

    def scaled(self, dwell_us: float) -> np.ndarray:
        if dwell_us not in self._scaled:
            assert self.matrix is not None
            known = dwell_us > 0 and self._noise_dwell_us > 0
            factor = math.sqrt(2 * dwell_us / self._noise_dwell_us * self._bandwidth) if known else 1.0
            self._scaled[dwell_us] = (factor * self.matrix).astype(np.complex64)
        return self._scaled[dwell_us]


def _coil_names(header: Header, channels: tuple[int, ...]) -> str:
    labels = list(header.coil_labels.values())
    names = [labels[channel] for channel in channels if channel < len(labels)]
    return f" (coils {', '.join(names)})" if names else ""
