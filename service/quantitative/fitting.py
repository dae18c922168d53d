"""From data to maps: the model, the start values, the fit of each slice or of the whole volume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from recon.quantitative.aliasing import with_aliasing
from recon.quantitative.catalogue import model_from
from recon.quantitative.data_term import DataTerm, from_images
from recon.quantitative.irgn import Step, fit, start_values
from recon.quantitative.lanes import Blocks
from recon.quantitative.measured import Measured, stacked
from recon.quantitative.model import Map, SignalModel
from recon.quantitative.pixelwise import fit_pixelwise
from recon.quantitative.settings import Settings, checked_weights
from recon.quantitative.slices import SliceData
from recon.quantitative.slices import stacked as stacked_slices
from recon.quantitative.start import project
from recon.quantitative.subspace import subspace, subspace_images, widened
from service.quantitative.source import Source, SourceError

SHOWN = 0.05
"""Voxels whose root mean square over the contrasts is below this fraction of the bright ones' are air."""
_CERTAIN = 3.0
"""So are those whose amplitudes are fewer standard deviations."""
_BRIGHT = 98
"""Percentile of the voxels that are bright."""

Progress = Callable[[int, int, Step], None]
"""Called with the number of the slice (from 0), the number of slices that are fitted one by one, and the step."""


@dataclass(frozen=True)
class Options:
    """How to fit.

    Attributes:
        model: name of a built-in model, or a model file.
        settings: regularisation and schedule; ``reg_type`` none fits every voxel on its own.
        model_options: of the model's constructor.
        weights: of the unknowns' regularisation; None for the model's.
        initial_guess: constants for the unknowns, in the order of the model; None for values from the data.
        double: compute in double precision.
        imagespace: fit to images instead of k-space.
        cg_guess: start from iterative-SENSE images, not from gridded ones.
        masked: leave out air.
        blocks: of a volume that a device holds at a time, and the devices; None for all of it.
    """

    model: str
    settings: Settings
    model_options: Mapping[str, Any] = field(default_factory=dict)
    weights: Sequence[float] | None = None
    initial_guess: Sequence[float] | None = None
    double: bool = False
    imagespace: bool = False
    cg_guess: bool = True
    masked: bool = True
    blocks: Blocks | None = None


@dataclass(eq=False)
class Result:
    """Maps of a fit.

    Attributes:
        model: that was fitted.
        maps: by name, each `[z, y, x]`, standard deviations as ``<name>_sd``; 0 outside `mask`, deviations NaN where the data do not
            determine them.
        images: that the fit started from, complex `[contrast, z, y, x]`.
        mask: bool `[z, y, x]`.
        steps: Gauss-Newton steps by slice, or of the volume; empty for fits of every voxel on its own.
        unknowns: as fitted, after each step, complex `[unknown, z, y, x]`; the last entry is the result.
        signals: of the number of an entry of `unknowns`, what the model makes of it, complex `[contrast, z, y, x]`.
        notes: for the user.
    """

    model: SignalModel
    maps: dict[str, Map]
    images: np.ndarray
    mask: np.ndarray
    steps: list[tuple[Step, ...]]
    unknowns: list[np.ndarray]
    signals: Callable[[int], np.ndarray]
    notes: list[str] = field(default_factory=list)


@dataclass(eq=False)
class _Part:
    """What is fitted at once: one slice or all of them. Arrays `[..., z, y, x]`."""

    maps: dict[str, Map]
    images: np.ndarray
    visible: np.ndarray
    steps: tuple[Step, ...]
    unknowns: list[np.ndarray]
    signals: Callable[[int], np.ndarray]
    model: SignalModel


def fit_source(source: Source, options: Options, mask: np.ndarray | None = None, progress: Progress | None = None) -> Result:
    """Fit maps to data.

    Slices are fitted together when they are regularised, so that edges are found in three dimensions; else one by one.

    Args:
        source: the data.
        options: how.
        mask: voxels that are wanted, bool `[z, y, x]`; None finds them.
        progress: called after each Gauss-Newton step.

    Raises:
        ModelError, SourceError: the data do not fit the model; the text names the parameter, its unit and where it belongs.
    """
    if mask is not None and not mask.any():
        raise SourceError("the mask is empty: no voxel to fit")
    _check_contrasts(source, options)
    together = len(source.slices) > 1 and options.settings.reg_type != "none"
    groups = [source.slices] if together else [[one] for one in source.slices]
    parts = []
    for number, group in enumerate(groups):
        report = None if progress is None else (lambda step, number=number: progress(number, len(groups), step))  # type: ignore[misc]
        chosen = slice(None) if together or len(source.slices) == 1 else slice(number, number + 1)
        fields = {name: values[..., chosen, :, :] for name, values in source.fields.items()}
        parts.append(_fit_group(group, fields, source, options, report))
    images = np.concatenate([part.images for part in parts], 1)
    maps = {name: Map(np.concatenate([part.maps[name].values for part in parts]), one.unit) for name, one in parts[0].maps.items()}
    if mask is None:
        mask = np.concatenate([part.visible for part in parts]) if options.masked else np.ones(images.shape[1:], bool)
    if not mask.any():
        raise SourceError(
            f"no voxel has a signal of {options.model} above its noise, the mask is empty: check the sequence parameters and the order of "
            "the contrasts, or see all voxels by --mask none"
        )
    maps, notes = _determined(maps, mask)
    steps = [part.steps for part in parts if part.steps]
    rounds = max(len(part.unknowns) for part in parts)
    unknowns = [np.concatenate([part.unknowns[min(n, len(part.unknowns) - 1)] for part in parts], 1) for n in range(rounds)]

    def signals(n: int) -> np.ndarray:
        return np.concatenate([part.signals(min(n, len(part.unknowns) - 1)) for part in parts], 1)

    return Result(parts[0].model, maps, images, mask, steps, unknowns, signals, notes)


def shown(model: SignalModel, unknowns: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Voxels `[*voxels]` that are not air, from fitted unknowns and their standard deviations `[unknown, *voxels]`."""
    size = np.sqrt((np.abs(np.nan_to_num(np.asarray(model(unknowns)))) ** 2).mean(0))
    bright = float(np.percentile(size[size > 0], _BRIGHT)) if (size > 0).any() else 0.0
    visible: np.ndarray = size > SHOWN * bright
    amplitudes = [n for n, unknown in enumerate(model.unknowns) if unknown.amplitude]
    if amplitudes and np.isfinite(deviation[amplitudes]).any():
        visible &= (np.abs(unknowns[amplitudes]) > _CERTAIN * deviation[amplitudes]).any(0)
    return visible


def _check_contrasts(source: Source, options: Options) -> None:
    model = _model(source, source.fields, options)
    if model.contrasts != source.contrasts:
        lists = [f"{name} has {len(value)}" for name, value in source.parameters.items() if isinstance(value, (list, tuple, np.ndarray))]
        raise SourceError(
            f"the data have {source.contrasts} contrasts, but the sequence parameters of {options.model} describe {model.contrasts}"
            f"{' (' + ', '.join(lists) + ')' if lists else ''}: correct them by -P NAME=VALUE,VALUE,..., or leave contrasts out"
        )
    for name, values in source.fields.items():
        if values.shape[-3:] != source.shape:
            raise SourceError(f"the map {name} {values.shape} does not fit the data, whose voxels are {source.shape} (slice, y, x)")
    signals = np.any([[np.any(contrast) for contrast in one.data] for one in source.slices], 0)
    if signals.any() and not signals.all():
        raise SourceError(f"contrast {int(np.argmin(signals))} (counted from 0) holds nothing but zeros: leave it out")


def _model(source: Source, fields: Mapping[str, np.ndarray], options: Options) -> SignalModel:
    parameters = {"contrasts": source.contrasts, **source.parameters}
    return model_from(options.model, parameters, fields, source.magnitudes, **options.model_options)


def _fit_group(
    group: Sequence[Measured], fields: Mapping[str, np.ndarray], source: Source, options: Options, report: Callable[[Step], None] | None
) -> _Part:
    dtype = np.dtype(np.complex128 if options.double else np.complex64)
    flat = len(group) == 1 and len(group[0].grid) == 2
    terms = [one.term(dtype) for one in group]
    term = terms[0] if len(terms) == 1 else stacked(terms)
    model = _model(source, {name: _on_grid(group, values, flat) for name, values in fields.items()}, options)
    images = _images(model, term, group, options)
    steps: tuple[Step, ...] = ()
    pixelwise = options.settings.reg_type == "none"
    if options.imagespace and not pixelwise:
        term = from_images(images.astype(dtype))
    start = _start(model, images, options)
    if pixelwise:
        everywhere = np.ones(images.shape[1:], bool)
        found = fit_pixelwise(model, images, everywhere, start=start)
        basis = _basis(model, term, options)
        found = found if basis is None else widened(found, basis.shape[1])
        if options.settings.replicas and not term.pointwise:
            found = with_aliasing(found, _again(model, group, dtype, options))
        maps, rounds, fitted, deviation = found.maps(), [found.parameters], found.model, found.deviation
    else:
        names = [unknown.name for unknown in model.unknowns]
        weights = None if options.weights is None else checked_weights(options.weights, names)
        data: DataTerm | SliceData = term
        if options.blocks is not None and not term.pointwise and len(terms) > 1:
            data = stacked_slices(terms)  # slices of one term can only be cut where it needs no transform
        blocks = None if flat else options.blocks
        result = fit(model, data, options.settings, weights, start, report, blocks)
        maps, rounds, fitted, deviation = result.maps(), [step.parameters for step in result.steps[1:]], result.model, result.deviation
        steps = result.steps

    def wanted(values: np.ndarray) -> np.ndarray:
        cut = group[0].cut(values)
        return np.expand_dims(cut, -3) if flat else cut

    def signals(n: int) -> np.ndarray:
        return wanted(np.asarray(fitted(rounds[n])))

    shown_maps = {name: Map(wanted(one.values), one.unit) for name, one in maps.items()}
    visible = wanted(shown(fitted, rounds[-1], deviation))
    return _Part(shown_maps, wanted(images), visible, steps, [wanted(one) for one in rounds], signals, fitted)


def _again(model: SignalModel, group: Sequence[Measured], dtype: np.dtype, options: Options) -> Callable[[np.ndarray], np.ndarray]:
    """What images `[contrast, *voxels]` become that are sampled elsewhere and reconstructed as the data were."""
    others = [one.elsewhere() for one in group]
    if not options.cg_guess:
        return lambda signal: _gridded(
            [replace(one, data=one.encoded(part)) for one, part in zip(others, _slices(signal.astype(dtype), others), strict=True)], dtype
        )
    terms = [one.term(dtype) for one in others]
    term = terms[0] if len(terms) == 1 else stacked(terms)
    return lambda signal: _images(model, term.of(signal), others, options)


def _slices(images: np.ndarray, group: Sequence[Measured]) -> Sequence[np.ndarray]:
    return [images] if len(group) == 1 else list(np.moveaxis(images, 1, 0))


def _gridded(group: Sequence[Measured], dtype: np.dtype) -> np.ndarray:
    images = [one.gridded().astype(dtype) for one in group]
    return images[0] if len(images) == 1 else np.stack(images, 1)


def _on_grid(group: Sequence[Measured], values: np.ndarray, flat: bool) -> np.ndarray:
    """A per-voxel input `[..., z, y, x]` on the grid that is fitted."""
    return group[0].padded(values[..., 0, :, :] if flat else values)


def _images(model: SignalModel, term: DataTerm, group: Sequence[Measured], options: Options) -> np.ndarray:
    """Images to start with: in the span of the model's signals where contrasts are undersampled."""
    if not options.cg_guess:
        return _gridded(group, term.rhs.dtype.as_numpy_dtype)
    basis = _basis(model, term, options)
    images: np.ndarray = term.images().numpy() if basis is None else subspace_images(term, basis)
    return images


def _basis(model: SignalModel, term: DataTerm, options: Options) -> np.ndarray | None:
    return subspace(model) if options.cg_guess and not term.pointwise else None


def _start(model: SignalModel, images: np.ndarray, options: Options) -> np.ndarray | None:
    """Start values: constants where the user gave some, else a fit of the images; None for the pixel-wise fit's own."""
    if options.initial_guess is None:
        return None if options.settings.reg_type == "none" else start_values(model.adapted(images), images)
    names = [unknown.name for unknown in model.unknowns]
    if len(options.initial_guess) != len(names):
        raise SourceError(f"--initial_guess has {len(options.initial_guess)} values for the {len(names)} unknowns {', '.join(names)}")
    for unknown, value in zip(model.unknowns, options.initial_guess, strict=True):
        if not np.isfinite(value) or (unknown.real and not unknown.lower <= value <= unknown.upper):
            unit = f" {unknown.unit}" if unknown.unit else ""
            raise SourceError(f"--initial_guess: {unknown.name} = {value:g} is not within {unknown.lower:g} to {unknown.upper:g}{unit}")
    constants = np.reshape(options.initial_guess, (-1, *[1] * (images.ndim - 1)))
    start = np.broadcast_to(constants, (len(names), *images.shape[1:])).astype(images.dtype)
    amplitudes = [n for n, unknown in enumerate(model.unknowns) if unknown.amplitude]
    if len(amplitudes) == 1:
        scale = float(np.abs(images).max()) or 1.0
        start = project(model.adapted(images).scaled(1 / scale), images / scale, start)
        start[amplitudes] *= scale
    return start


def _determined(maps: dict[str, Map], mask: np.ndarray) -> tuple[dict[str, Map], list[str]]:
    """Maps with 0 outside the mask, without deviations that the data do not tell anywhere; NaN where they do not tell one."""
    kept: dict[str, Map] = {}
    notes = []
    for name, one in maps.items():
        if name.endswith("_sd"):
            continue
        spread = maps.get(f"{name}_sd")
        if spread is not None and not np.isfinite(spread.values[mask]).any():
            notes.append(f"the data do not tell how certain {name} is")
            spread = None
        kept[name] = Map(np.where(mask & np.isfinite(one.values), one.values, 0), one.unit)
        if spread is not None:
            kept[f"{name}_sd"] = Map(np.where(mask, np.where(np.isfinite(spread.values), spread.values, np.nan), 0), spread.unit)
    return kept, notes
