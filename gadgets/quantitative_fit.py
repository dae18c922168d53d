"""From gathered readouts or images to maps: the model, the data, the pixel-wise and the regularised fit of one slice or volume."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy.ndimage import uniform_filter
from scipy.stats import chi2

from gadgets.base import Context
from gadgets.contrast_gathering import Due
from gadgets.contrasts import CoilMaps, contrast_series
from gadgets.flip_angles import FlipAngles, measured_angles
from gadgets.header import Header
from gadgets.items import Acquisition, Image
from gadgets.meta import number
from gadgets.parameter_maps import Place
from gadgets.sequence_parameters import readout_train, sequence_parameters
from gadgets.simultaneous_contrasts import simultaneous_contrasts
from gadgets.sms import multiband_factor
from recon.quantitative.aliasing import with_aliasing
from recon.quantitative.catalogue import model_from, requirements
from recon.quantitative.data_term import DataTerm, from_images
from recon.quantitative.irgn import Step, fit, settled
from recon.quantitative.measured import Measured, stacked
from recon.quantitative.model import Map, ModelError, SignalModel
from recon.quantitative.pixelwise import PixelwiseFit, fit_pixelwise, with_fields
from recon.quantitative.sequence import FA_CORR
from recon.quantitative.settings import Settings, checked_weights
from recon.quantitative.subspace import freedom, subspace, subspace_images, widened

_BRIGHT = 98.0
"""Percentile of the voxels that are bright."""
_NOISES = 2.5
"""Signal of voxels that are shown, in standard deviations of the noise."""
_NEIGHBOURS = 0.25
"""Share of a voxel and its neighbours that must have signal for it to be shown."""
_SPARSE = 0.35
"""Samples of a contrast by voxels below which its image alone is too poor a start."""
_APART = 1e-3
"""Pixel size by distance of slices that have nothing to do with each other."""
_EMPTY = "there is no signal anywhere, the mask is empty: check the receiver, the coils and the noise scan"
_PRECISION = np.dtype(np.complex64)


class FitError(ValueError):
    """Maps of a slice cannot be made; the text says of which one, why, and what to do."""


class Recipe(Protocol):
    """How to fit: see the parameters of `gadgets.quantitative.QuantitativeFit`."""

    signal_model: str
    sequence: str
    bounds: str
    weights: list[float] | None
    coil_maps: CoilMaps
    readouts_per_frame: int
    magnitude: bool
    mask_threshold: float
    deviations: bool
    multiband: int | None
    caipi_shift: float | None


@dataclass(frozen=True, eq=False)
class Data:
    """One slice or volume, or several slices, ready to be fitted.

    measured: its data; places: where it lies, or each slice along the first axis; model: of its contrasts; term: the data for solvers;
    start: unknowns to start with, `[unknown, *grid]`; mask: where there is signal, bool `[*voxels]`; maps: of a pixel-wise fit,
    `[*voxels]`; spacing: pixel size by distance along the first of three axes.
    """

    measured: Measured
    places: tuple[Place, ...]
    model: SignalModel
    term: DataTerm
    start: np.ndarray
    mask: np.ndarray
    maps: dict[str, Map]
    spacing: float = 1.0

    def parts(self, maps: dict[str, Map]) -> list[tuple[Place, dict[str, Map], np.ndarray]]:
        """Place, maps and mask of each image."""
        if len(self.places) == 1 and len(self.measured.grid) == self.mask.ndim:
            return [(self.places[0], maps, self.mask)]
        return [
            (place, {name: Map(one.values[n], one.unit) for name, one in maps.items()}, self.mask[n]) for n, place in enumerate(self.places)
        ]


def together(parts: Sequence[Data]) -> Data:
    """Slices as one volume, in the order of their counters.

    Raises:
        ValueError: slices differ in shape.
    """
    parts = sorted(parts, key=lambda part: part.places[0].slice)
    model = parts[0].model
    fields = {name: np.stack([part.model.fields[name] for part in parts]) for name in model.fields}
    places = tuple(part.places[0] for part in parts)
    return Data(
        parts[0].measured,
        places,
        with_fields(model, fields),
        stacked([part.term for part in parts]),
        np.stack([part.start for part in parts], 1),
        np.stack([part.mask for part in parts]),
        {},
        _spacing(places, parts[0].measured.shape),
    )


class Fits:
    """The fits of one measurement.

    Raises:
        ModelError, HeaderError, FitError: the header lacks what the model needs, or has it in the wrong unit.
    """

    def __init__(self, recipe: Recipe, header: Header) -> None:
        self.recipe, self.header = recipe, header
        self.name = model_path(recipe.signal_model)
        self.declared, _ = requirements(self.name)
        self.parameters = sequence_parameters(header) | assignments(recipe.sequence, "sequence")
        told = header.number("encoding", "parallelImaging", "multiband", "multiband_factor")
        self.bands = 1 if told is None and recipe.multiband is None else multiband_factor(header, recipe.multiband)
        if self.train:
            frame = recipe.readouts_per_frame
            model = self.model(readout_train(self.parameters, range(0, 10 * frame, frame), frame))
            self.contrasts = 1
        else:
            self._require()
            model = self.model(self.parameters | {"contrasts": self._counted()})
            self.contrasts = model.contrasts
        self.least = len(model.unknowns)
        self.names = list(model.maps(np.ones((len(model.unknowns), 1), np.complex64)))

    @property
    def train(self) -> bool:
        """Whether a train of readouts is cut into frames."""
        return self.recipe.readouts_per_frame > 0

    # -- the model ---------------------------------------------------------------------------------------------------

    def model(self, parameters: Mapping[str, Any], magnitudes: bool = False, fields: Mapping[str, np.ndarray] | None = None) -> SignalModel:
        """The model with these parameters of the sequence and inputs of the voxels, and the bounds that were asked for."""
        model = model_from(self.name, {**self.parameters, **parameters}, fields, magnitudes)
        limits = assignments(self.recipe.bounds, "bounds", separator=":")
        known = {unknown.name: unknown for unknown in model.unknowns}
        for name, pair in limits.items():
            if name not in known:
                offer = ", ".join(f"{one.name} [{one.unit or 'no unit'}]" for one in model.unknowns)
                raise FitError(f"bounds are given for {name}, but the unknowns of {model.name} are {offer}")
            low, high = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
            if low is None or high is None or not low < high:
                raise FitError(f"bounds of {name} must be two numbers, the lower one first, as in {name}=10:4000")
            known[name] = replace(known[name], lower=low, upper=high, start=min(max(known[name].start, low), high))
        model.unknowns = tuple(known.values())
        return model

    def _require(self) -> None:
        given = {name.lower() for name, value in self.parameters.items() if value is not None}
        for one in self.declared:
            if one.required and one.name != "contrasts" and given.isdisjoint(name.lower() for name in (one.name, *one.aliases)):
                unit = f"_{one.unit}" if one.unit in ("ms", "deg") else ""
                many = "" if one.per == "scan" else f"; {one.name}_0{unit}, {one.name}_1{unit}, ... for the contrasts"
                raise FitError(
                    f"{self.recipe.signal_model} needs {one.name} ({one.text}, {one.unit or 'no unit'}), which the header does not have: "
                    f"put it into {one.where}, or into userParameters (userParameterDouble of the name {one.name}{unit}{many}), or set "
                    f"the property sequence to {one.name}=..."
                )

    def _counted(self) -> int:
        limits = [encoding.limit("contrast") for encoding in self.header.encodings]
        return max((limit.maximum - limit.minimum + 1 for limit in limits if limit is not None), default=1)

    def _of(self, contrasts: Sequence[int]) -> dict[str, Any]:
        """The sequence parameters of some of the contrasts."""
        chosen: dict[str, Any] = {"contrasts": len(contrasts)}
        names = {name.lower() for one in self.declared if one.per != "scan" for name in (one.name, *one.aliases)}
        for name, value in self.parameters.items():
            if name.lower() in names and isinstance(value, (list, tuple)) and len(value) == self.contrasts:
                chosen[name] = [value[n] for n in contrasts]
        return chosen

    # -- data --------------------------------------------------------------------------------------------------------

    def prepare(self, due: Due, context: Context, angles: FlipAngles | None = None) -> Data:
        """Data, images and the pixel-wise fit.

        Args:
            due: what has come.
            context: of the measurement.
            angles: actual flip angles; None for the nominal ones.

        Raises:
            ValueError: contrasts are missing or do not fit together, values that are not finite, no signal, no flip angles.
        """
        self._check(due)
        magnitudes = self.recipe.magnitude
        measured, places, parameters = self._measured(due, context)
        magnitudes |= not np.iscomplexobj(measured.data)
        fields = {} if angles is None else {FA_CORR.name: measured.padded(_relative(angles, places, measured.shape))}
        term, model = measured.term(_PRECISION), self.model(parameters, fields=fields)
        basis = subspace(model) if self._sparse(measured) else None
        images = _images(term, basis)
        if magnitudes:
            images, model = np.abs(images).astype(_PRECISION), self.model(parameters, magnitudes, fields)
            term = from_images(images)
        size = self._size(images)
        found = fit_pixelwise(model, images, np.ones(images.shape[1:], bool))
        rank = len(images) if basis is None else basis.shape[1]
        mask = measured.cut(self._mask(size, found, rank, len(places) > 1))
        start = settled(found.model, images, found.parameters.copy(), found.deviation)
        # Slices that were excited together lie far apart: they are regularised each in its plane.
        spacing = _APART if len(places) > 1 else _spacing(places, measured.shape)
        shown = widened(found, rank)
        if self.recipe.deviations and not term.pointwise:
            other = measured.elsewhere().term(_PRECISION)
            shown = with_aliasing(shown, lambda signal: _images(other.of(signal), basis))
        return Data(measured, places, model, term, start, mask, _cut(shown.maps(), measured), spacing)

    def pair(self, due: Due, context: Context, nominal_deg: float, smoothing_mm: float) -> FlipAngles:
        """Flip angles from a double-angle pair.

        Raises:
            ValueError: an image is missing, no signal, angles that cannot be.
        """
        if due.missing:
            raise FitError(f"the double-angle pair lacks contrast {', '.join(map(str, due.missing))} of its set (0 and 1 are needed)")
        if due.group.key.source == "images":
            measured, place = self._images(due)
        else:
            series = contrast_series(self._sorted(due), context, self.recipe.coil_maps)
            found = series.slices[0]
            measured, place = found.measured, Place(found.header, series.encoding.recon.field_of_view)
        return measured_angles(measured.cut(measured.term(_PRECISION).images().numpy()), place, nominal_deg, smoothing_mm)

    def regularised(self, data: Data, settings: Settings, callback: Callable[[Step], None]) -> dict[str, Map]:
        """Maps `[*voxels]` of a regularised fit, started from the pixel-wise one."""
        # Weights are by the voxels that are fitted: those outside the image would weaken them.
        more = math.prod(data.measured.grid) / math.prod(data.measured.shape)
        settings = replace(settings, dz=data.spacing, gamma=settings.gamma * more, gamma_min=settings.gamma_min * more)
        names = [unknown.name for unknown in data.model.unknowns]
        weights = None if self.recipe.weights is None else checked_weights(self.recipe.weights, names)
        found = fit(data.model, data.term, settings, weights, data.start, callback)
        return _cut(found.maps(), data.measured)

    def _check(self, due: Due) -> None:
        surplus = any(not 0 <= n < self.contrasts for n in due.group.contrasts)
        text = self.lacking(due)
        if text and (surplus or self.train or len(due.contrasts) < self.least):
            raise FitError(text)

    def lacking(self, due: Due) -> str:
        """What is wrong with the contrasts that came; "" if nothing is. Maps can still be made from `least` complete ones."""
        surplus = [n for n in due.group.contrasts if not 0 <= n < self.contrasts]
        parts = [f"contrast {surplus[0]} came"] if surplus else []
        parts += [f"contrast {', '.join(map(str, due.missing))} never came"] if due.missing else []
        parts += [f"contrast {n} ended after {count} of {usual} readouts" for n, (count, usual) in due.short.items()]
        if not parts:
            return ""
        lists = ", ".join(f"{name} {len(value)}" for name, value in self._listed().items())
        spaces = "" if len(self.header.encodings) < 2 else "; contrasts in several encoding spaces are not fitted together"
        values = f" (values of {lists})" if lists else ""
        return (
            f"{' and '.join(parts)} (counted from 0), but the sequence has {self.contrasts} contrasts{values}: "
            f"did the scan end early, or do header and readouts not agree{spaces}?"
        )

    def _listed(self) -> dict[str, Any]:
        names = {name.lower() for one in self.declared for name in (one.name, *one.aliases)}
        return {name: v for name, v in self.parameters.items() if name.lower() in names and isinstance(v, (list, tuple))}

    def _images(self, due: Due) -> tuple[Measured, Place]:
        images = [due.group.contrasts[n][0] for n in due.contrasts]
        arrays = [_values(one) for one in images if isinstance(one, Image)]
        shapes = {n: array.shape for n, array in zip(due.contrasts, arrays, strict=True)}
        if len(set(shapes.values())) > 1:
            raise FitError(f"contrasts differ in matrix: {', '.join(f'{n} has {shape}' for n, shape in shapes.items())} ([y, x])")
        head = images[0].header
        return Measured(np.stack(arrays)), Place(head, tuple(float(v) for v in head["field_of_view"]))  # type: ignore[arg-type]

    def _measured(self, due: Due, context: Context) -> tuple[Measured, tuple[Place, ...], dict[str, Any]]:
        """Data, places and the sequence parameters of the contrasts."""
        if due.group.key.source == "images":
            measured, place = self._images(due)
            return measured, (place,), self._of(due.contrasts)
        if self.bands > 1:
            return self._simultaneous(due, context)
        series = contrast_series(self._sorted(due), context, self.recipe.coil_maps, self.recipe.readouts_per_frame)
        found = series.slices[0]
        train = self.recipe.readouts_per_frame
        parameters = readout_train(self.parameters, series.order, train) if train else self._of(due.contrasts)
        return found.measured, (Place(found.header, series.encoding.recon.field_of_view),), parameters

    def _simultaneous(self, due: Due, context: Context) -> tuple[Measured, tuple[Place, ...], dict[str, Any]]:
        if self.train:
            raise FitError("a train of simultaneous slices cannot be cut into frames: give its readouts a contrast counter")
        recipe = self.recipe
        found = simultaneous_contrasts(
            self._sorted(due, calibration=False), due.group.calibration, self.bands, recipe.caipi_shift, context, recipe.coil_maps
        )
        places = tuple(Place(head, found.encoding.recon.field_of_view) for head in found.headers)
        return found.measured, places, self._of(due.contrasts)

    def _sorted(self, due: Due, calibration: bool = True) -> list[Acquisition]:
        """The readouts in the order of time. Raises `FitError` where all samples are 0."""
        readouts = [one for n in due.contrasts for one in due.group.contrasts[n] if isinstance(one, Acquisition)]
        readouts += due.group.calibration if calibration else []
        readouts.sort(key=lambda one: int(one.header["scan_counter"]))
        if not any(one.data.any() for one in readouts):
            raise FitError(_EMPTY)
        return readouts

    def _sparse(self, measured: Measured) -> bool:
        """Whether single contrasts have so few samples that their images need those of the others."""
        if measured.trajectory is None:
            return False
        samples = measured.trajectory.shape[1] if measured.weights is None else float(np.median((measured.weights > 0).sum(1)))
        return samples < _SPARSE * math.prod(measured.grid)

    def _size(self, images: np.ndarray) -> np.ndarray:
        """Root mean square over the contrasts `[*grid]`. Raises `FitError` where there is nothing to fit."""
        size: np.ndarray = np.sqrt((np.abs(images) ** 2).mean(0))
        if not np.isfinite(size).all():
            bad = np.flatnonzero(~np.isfinite(images.reshape(len(images), -1)).all(1))
            raise FitError(f"contrast {bad[0]} (counted from 0) holds values that are not finite (NaN, Inf)")
        if not size.any():
            raise FitError(_EMPTY)
        return size

    def _mask(self, size: np.ndarray, found: PixelwiseFit, rank: int, apart: bool) -> np.ndarray:
        """Where the signal is above the threshold and the noise, without single voxels; `apart`: slices of the first axis are no
        neighbours."""
        bright = float(np.percentile(size[size > 0], _BRIGHT))
        mask: np.ndarray = size > max(self.recipe.mask_threshold * bright, _NOISES * _noise(size, found, rank))
        mask &= uniform_filter(mask.astype(np.float32), (1, 3, 3) if apart else 3) > _NEIGHBOURS
        if not mask.any():
            raise FitError("no voxel is above the noise, the mask is empty: check the coils and the order of the contrasts")
        return mask


def _relative(angles: FlipAngles, places: Sequence[Place], shape: tuple[int, ...]) -> np.ndarray:
    """Relative flip angles `[*shape]`, of one place or slice by slice."""
    if len(places) == 1:
        return angles.relative(places[0], shape)
    return np.stack([angles.relative(place, shape[1:]) for place in places])


def _spacing(places: Sequence[Place], shape: tuple[int, ...]) -> float:
    """Pixel size along x by the distance of slices, or of partitions of a volume `[z, y, x]`; 1 where the header does not tell."""
    pixel = places[0].field_of_view[0] / shape[-1]
    if len(places) > 1:
        moved = places[-1].head["position"].astype(float) - places[0].head["position"].astype(float)
        distance = float(np.linalg.norm(moved)) / (len(places) - 1)
    else:
        distance = places[0].field_of_view[2] / shape[0] if len(shape) == 3 else 0.0
    return pixel / distance if pixel > 0 and distance > 0 else 1.0


def _noise(size: np.ndarray, found: PixelwiseFit, rank: int) -> float:
    """Standard deviation of the images' noise, from the residual of most voxels; 0 where that says nothing."""
    left = freedom(found.model, rank)
    return math.sqrt(2 * rank * float(np.median(found.residual[size > 0]) ** 2) / float(chi2.median(left))) if left > 0 else 0.0


def _images(term: DataTerm, basis: np.ndarray | None) -> np.ndarray:
    """Least-squares images `[contrast, *grid]`, in the span of a basis if there is one."""
    images: np.ndarray = term.images().numpy() if basis is None else subspace_images(term, basis)
    return images


def _cut(maps: dict[str, Map], measured: Measured) -> dict[str, Map]:
    return {name: Map(measured.cut(one.values), one.unit) for name, one in maps.items()}


def _values(image: Image) -> np.ndarray:
    """Pixels `[y, x]` or `[z, y, x]` in the units in which all contrasts agree: scaling on the way is undone."""
    if image.data.shape[0] != 1:
        raise FitError(f"an image has {image.data.shape[0]} channels; combine the coils first")
    ratio, offset = number(image.meta, "GADGETRON_ScaleRatio", 1.0), number(image.meta, "GADGETRON_ScaleOffset", 0.0)
    pixels: np.ndarray = image.data[0] if (ratio, offset) == (1.0, 0.0) else (image.data[0] - offset) / ratio
    return pixels[0] if len(pixels) == 1 else pixels


def assignments(text: str, name: str, separator: str = ",") -> dict[str, Any]:
    """``TR=12; TI=50,100,400`` as numbers and lists of them by name. `name` is that of the property, for errors.

    Raises:
        FitError: the text is not of this form.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (one.strip() for one in text.split(";"))):
        key, sign, values = part.partition("=")
        try:
            numbers = [float(one) for one in re.split(rf"[{separator}\s]+", values.strip())]
        except ValueError:
            numbers = []
        if not sign or not numbers:
            raise FitError(f"property {name}: {part!r} is not of the form NAME=number{separator}number; separate several by semicolons")
        found[key.strip()] = numbers[0] if len(numbers) == 1 else numbers
    return found


def model_path(name: str) -> str:
    """A built-in model's name as it is; a file's (``t1.yaml``, ``models.ini:SECTION``) with the path of the folder of models.

    Raises:
        ModelError: the file is not there, or lies elsewhere.
    """
    file, section = (name.partition(":")[0], name.partition(":")[2]) if ".ini" in name else (name, "")
    if not file.endswith((".yaml", ".yml", ".ini")):
        return name
    import configs

    folder = Path(configs.__file__).parent / "models"
    known = sorted(path.name for path in folder.iterdir() if path.suffix in (".yaml", ".yml", ".ini"))
    if file not in known:
        raise ModelError(f"there is no model file {file!r} in configs/models: there are {', '.join(known)}")
    return str(folder / file) + (f":{section}" if section else "")
