"""`reconstream fit`: its options, PyQMRI's among them, and what it prints. Heavy modules are imported when it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    import numpy as np

    from recon.quantitative.irgn import Step
    from recon.quantitative.lanes import Blocks
    from service.quantitative.fitting import Options, Result
    from service.quantitative.source import Source

_SEQUENCE, _PYQMRI = "Sequence parameters", "PyQMRI's options"
_stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def _sequence(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=_SEQUENCE, metavar="NUMBER,...")


def _pyqmri(name: str, text: str, *more: str) -> Any:
    names = [f"--{name}", *([f"--{name.replace('_', '-')}"] if "_" in name else []), *more]
    return typer.Option(*names, help=text, rich_help_panel=_PYQMRI)


def fit(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DATA", help="ISMRMRD raw data (HDF5 or stream), a PyQMRI HDF5 file, or NIfTI images of all contrasts"),
    ] = None,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="signal model: a name (VFA, LookLocker, EPG, R2Star, ...), or a file: x.yaml, x.ini:SECTION"),
    ] = "",
    reg: Annotated[
        str,
        typer.Option("--reg", "--reg_type", help="regularisation of the maps: TGV, TV, H1, wavelet, ICTV, ICTGV; none: each voxel alone"),
    ] = "TGV",
    output: Annotated[Path | None, typer.Option("--output", "--out", "-o", help="folder for the maps", file_okay=False)] = None,
    mask: Annotated[str, typer.Option(help="voxels to show: auto (not air), none (all), or a NIfTI file")] = "auto",
    field: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="per-voxel input of the model (NIfTI), such as fa_corr=b1.nii.gz; repeatable"),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="option of the model, such as fit_b1=true; repeatable")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="setting of the fit, such as gamma=1e-3 or max_gn_it=6; repeatable"),
    ] = None,
    coil_maps: Annotated[str, typer.Option(help="sensitivities from the data: espirit, image or nlinv")] = "espirit",
    in_group: Annotated[str, typer.Option("--in-group", "-g", help="group of ISMRMRD raw data")] = "dataset",
    png: Annotated[bool, typer.Option("--png/--no-png", help="pictures of the maps with colour bars")] = True,
    pyqmri_output: Annotated[bool, typer.Option("--pyqmri-output", help="also write PyQMRI's HDF5 layout")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="only errors")] = False,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-P",
            metavar="NAME=VALUE",
            rich_help_panel=_SEQUENCE,
            help="any sequence parameter: NAME=1,2,3, a text file of numbers, or where readouts hold it: TI=user_float[1]; repeatable",
        ),
    ] = None,
    te: Annotated[str | None, _sequence("echo times, ms")] = None,
    ti: Annotated[str | None, _sequence("inversion times, ms")] = None,
    tr: Annotated[str | None, _sequence("repetition time, ms")] = None,
    fa: Annotated[str | None, _sequence("flip angles, degrees")] = None,
    b: Annotated[str | None, _sequence("b-values, s/mm2")] = None,
    sidecar: Annotated[
        Path | None, typer.Option(help="BIDS sidecar of NIfTI images \\[default: NAME.json beside them]", rich_help_panel=_SEQUENCE)
    ] = None,
    readouts_per_frame: Annotated[
        int | None, typer.Option(min=1, help="readouts of a Look-Locker train in a frame", rich_help_panel=_SEQUENCE)
    ] = None,
    data: Annotated[Path | None, _pyqmri("data", "the same as DATA")] = None,
    modelfile: Annotated[str, _pyqmri("modelfile", "file of GeneralModel's formulas (.ini)")] = "",
    modelname: Annotated[str, _pyqmri("modelname", "section of that file")] = "VFA-E1",
    config: Annotated[str, _pyqmri("config", "settings of the fit (.ini)")] = "default",
    weights: Annotated[str, _pyqmri("weights", "of the unknowns' regularisation: 1,2; -1: the model's")] = "-1",
    initial_guess: Annotated[str, _pyqmri("initial_guess", "constants to start with: 1,1500; -1: from the data")] = "-1",
    slices: Annotated[int, _pyqmri("slices", "so many slices about the middle; -1: all")] = -1,
    trafo: Annotated[str, _pyqmri("trafo", "True: non-Cartesian, False: Cartesian; auto: as the file says")] = "auto",
    imagespace: Annotated[str, _pyqmri("imagespace", "True: fit to images instead of k-space")] = "False",
    is3d: Annotated[str, _pyqmri("is3Ddata", "True: k-space is encoded along z (PyQMRI files)")] = "False",
    usecg: Annotated[str, _pyqmri("useCGguess", "False: start from gridded instead of iterative-SENSE images")] = "True",
    double_precision: Annotated[str, _pyqmri("double_precision", "True: compute in double precision")] = "False",
    dz: Annotated[float, _pyqmri("dz", "pixel size over distance of slices; -1: as the file says")] = -1.0,
    use_gpu: Annotated[str, _pyqmri("use_GPU", "False: compute on the CPU")] = "True",
    sms: Annotated[str, _pyqmri("sms", "simultaneous slices: reconstruct them first, by cartesian_sms.xml")] = "False",
    recon_type: Annotated[str, _pyqmri("recon_type", "without effect")] = "",
    streamed: Annotated[str, _pyqmri("streamed", "True: volumes larger than the device's memory, in blocks of --par_slices")] = "False",
    par_slices: Annotated[int, _pyqmri("par_slices", "slices of a block")] = 1,
    devices: Annotated[str, _pyqmri("devices", "numbers of the GPUs that get blocks of --streamed in turn: 0,1; -1: all")] = "-1",
    coils_3d: Annotated[str, _pyqmri("estCoils3D", "without effect: maps of volumes are found in three dimensions")] = "",
) -> None:
    """Fit maps of tissue parameters (T1, T2, T2*, ...) to raw data or images of several contrasts.

    One NIfTI file a map, named by parameter and unit, its standard deviation beside it, and all of them in maps.h5.
    Example: reconstream fit scan.h5 --model VFA -o maps
    """
    _quiet_tensorflow(_truth("--use_GPU", use_gpu))
    from recon.quantitative.model import ModelError
    from service.quantitative.fitting import Options, fit_source
    from service.quantitative.outputs import prepare_folder, write_maps, write_pyqmri
    from service.quantitative.settings import build_settings, weights_of
    from service.quantitative.source import SourceError

    paths = [*(files or []), *([data] if data else [])]
    _check_usage(paths, model, output)
    assert output is not None
    if par_slices < 1:
        raise SourceError(f"--par_slices must be at least 1, not {par_slices}")
    for flag, text in (("--imagespace", imagespace), ("--is3Ddata", is3d), *((("--trafo", trafo),) if trafo != "auto" else ())):
        _truth(flag, text)
    if _truth("--sms", sms):
        raise SourceError("simultaneous slices are not fitted from their own k-space: reconstruct them first (cartesian_sms.xml)")
    if recon_type and not quiet:
        _stderr.print("--recon_type has no effect here", style="dim")
    prepare_folder(output, paths)
    name = _model_name(model, modelfile, modelname)
    direct = {"TE": te, "TI": ti, "TR": tr, "flip_angle": fa, "b_value": b}
    given = {**{key: value for key, value in direct.items() if value is not None}, **_pairs(parameter, "-P")}
    try:
        source = _read(paths, name, given, in_group, coil_maps, readouts_per_frame, sidecar, trafo, imagespace, is3d)
        if slices != -1:
            source = source.central(slices)
        _add_fields(source, _pairs(field, "--field"))
        if dz != -1:
            source.spacing = dz
        voxels = source.shape[1] * source.shape[2]
        settings, notes = build_settings(reg, config, _pairs(change, "--set"), voxels, source.spacing)
        options = Options(
            model=name,
            settings=settings,
            model_options={key: _value(value) for key, value in _pairs(option, "--option").items()},
            weights=_constants("--weights", weights) or weights_of(reg, config),
            initial_guess=_constants("--initial_guess", initial_guess),
            double=_truth("--double_precision", double_precision),
            imagespace=_truth("--imagespace", imagespace),
            cg_guess=_truth("--useCGguess", usecg),
            masked=mask != "none",
            blocks=_blocks(par_slices, devices) if _truth("--streamed", streamed) else None,
        )
        if not quiet:
            _print_notes([*source.notes, *notes])
        wanted = _mask(mask, source)
        with _Progress(paths[0].name, options, quiet) as progress:
            result = fit_source(source, options, wanted, progress)
    except ModelError as error:
        # Models know names of parameters; how they are given here is the command line's.
        raise ModelError(re.sub(r"or give it as (\S+)$", r"or give it by -P \1=...", str(error))) from error
    written = write_maps(output, result, source.affine, settings, source.parameters, paths, png)
    if pyqmri_output:
        written.append(write_pyqmri(output, result, settings, paths[0].name.split(".")[0], source.norm))
    if not quiet:
        _print_notes(result.notes)
        _print_result(result, written)


def _quiet_tensorflow(use_gpu: bool) -> None:
    import logging
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # It warns of the amplitudes of signals, which are complex with good reason.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from recon import device
    from recon.quiet import without_chatter

    if not use_gpu:
        device.configure(gpu=False)
    device.use_gpu()
    with without_chatter():
        import tensorflow

        tensorflow.config.list_physical_devices()


def _check_usage(paths: list[Path], model: str, output: Path | None) -> None:
    if not paths:
        raise typer.BadParameter("name the data to fit", param_hint="DATA")
    for path in paths:
        if not path.is_file():
            raise typer.BadParameter(f"{path}: no such file", param_hint="DATA")
    if not model:
        raise typer.BadParameter("name a signal model, such as VFA, LookLocker, EPG or R2Star", param_hint="--model")
    if output is None:
        raise typer.BadParameter("name a folder for the maps", param_hint="-o")


def _pairs(values: list[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for value in values or []:
        name, equals, content = value.partition("=")
        if not equals or not name or not content:
            raise typer.BadParameter(f"{value!r} is not of the form NAME=VALUE", param_hint=option)
        pairs[name] = content
    return pairs


def _truth(option: str, text: str) -> bool:
    from service.quantitative.settings import truth

    try:
        return truth(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r}: write True or False", param_hint=option) from None


def _value(text: str) -> Any:
    """A number, a list of numbers (commas or blanks; rows by semicolons), the numbers of a text file, True, False, or text."""
    import numpy as np

    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        rows = [[float(part) for part in re.split(r"[,\s]+", row.strip())] for row in text.split(";")]
    except ValueError:
        path = Path(text)
        if not path.is_file():
            return text
        try:
            numbers: np.ndarray = np.loadtxt(path)
        except ValueError as error:
            raise typer.BadParameter(f"{path}: holds more than numbers ({error})", param_hint="-P") from None
        # FSL's .bvec has a row an axis.
        return (numbers.T if numbers.ndim == 2 and len(numbers) == 3 != numbers.shape[1] else numbers).tolist()
    if len(rows) > 1:
        return rows
    return rows[0][0] if len(rows[0]) == 1 else rows[0]


def _constants(option: str, text: str) -> list[float] | None:
    values = _value(text.replace("[", "").replace("]", ""))
    numbers = values if isinstance(values, list) else [values]
    if not all(isinstance(value, float) for value in numbers):
        raise typer.BadParameter(f"{text!r}: write numbers with commas between them", param_hint=option)
    return None if numbers == [-1.0] else numbers


def _blocks(slices: int, devices: str) -> Blocks:
    from recon.quantitative.lanes import Blocks, numbered

    numbers = _constants("--devices", devices)
    try:
        return Blocks(slices, () if numbers is None else numbered([int(number) for number in numbers]))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--devices") from None


def _model_name(model: str, modelfile: str, modelname: str) -> str:
    """The model as the catalogue knows it: a name, or a file with its section."""
    from recon.quantitative.model import ModelError

    shipped = Path(__file__).resolve().parents[2] / "configs" / "models"
    if model.endswith(".py"):
        raise ModelError(f"{model}: models are not read from Python files; write the equation into a YAML file (docs/quantitative.md)")
    if model.lower() == "generalmodel" or modelfile:
        path = Path(modelfile) if modelfile else Path("models.ini")
        path = path if path.suffix else path.with_suffix(".ini")
        return f"{path if modelfile or path.exists() else shipped / 'pyqmri.ini'}:{modelname}"
    if model.endswith((".yaml", ".yml", ".ini")) and not Path(model).exists() and (shipped / model).exists():
        return str(shipped / model)
    return model


def _read(
    paths: list[Path],
    model: str,
    given: Mapping[str, str],
    group: str,
    coil_maps: str,
    per_frame: int | None,
    sidecar: Path | None,
    trafo: str,
    imagespace: str,
    is3d: str,
) -> Source:
    from recon.quantitative.catalogue import model_class, requirements
    from service.quantitative.ismrmrd_source import Reading, in_readouts, read_ismrmrd
    from service.quantitative.nifti import is_nifti, read_nifti
    from service.quantitative.pyqmri_source import is_pyqmri, read_pyqmri

    if coil_maps not in ("espirit", "image", "nlinv"):
        raise typer.BadParameter(f"{coil_maps!r}: there are espirit, image and nlinv", param_hint="--coil-maps")
    if len(paths) > 1 and not all(is_nifti(path) for path in paths):
        raise typer.BadParameter("several files are for NIfTI images only, one for each contrast", param_hint="DATA")
    parameters = {name: _value(value) for name, value in given.items()}
    _check_names(model, parameters)
    if is_nifti(paths[0]):
        source = read_nifti(paths, sidecar)
    elif is_pyqmri(paths[0]):
        follows = None if trafo == "auto" else _truth("--trafo", trafo)
        volume, images = _truth("--is3Ddata", is3d), _truth("--imagespace", imagespace)
        source = read_pyqmri(paths[0], follows, images, volume, coil_maps)  # type: ignore[arg-type]
        # Of what else is in the file, a model takes what it knows.
        known = {name.lower() for item in requirements(model)[1] for name in (item.name, *item.aliases)}
        source.fields = {name: values for name, values in source.fields.items() if name.lower() in known}
    else:
        built_in = "." not in Path(model).name
        reading = Reading(model_class(model).name if built_in else model, coil_maps, per_frame, parameters)  # type: ignore[arg-type]
        return read_ismrmrd(paths[0], group, reading)
    if any(in_readouts(value) for value in parameters.values()):
        raise typer.BadParameter("user_float[n] is for ISMRMRD raw data, whose readouts have such fields", param_hint="-P")
    source.parameters |= parameters
    return source


def _check_names(model: str, given: Mapping[str, Any]) -> None:
    """A parameter that the model does not know is a slip of the pen: the data's own would be taken instead."""
    import difflib

    from gadgets.sequence_parameters import TRAIN
    from recon.quantitative.catalogue import requirements
    from recon.quantitative.model import ModelError

    declared, _ = requirements(model)
    known = {name.lower(): one.name for one in declared for name in (one.name, *one.aliases)} | {name.lower(): name for name in TRAIN}
    for name in given:
        if name.lower() not in known:
            near = difflib.get_close_matches(name.lower(), known, 1)
            offer = ", ".join(one.name for one in declared) or "no parameters"
            hint = f"did you mean {known[near[0]]}?" if near else f"it has {offer}"
            raise ModelError(f"{model} has no parameter {name}: {hint}")


def _add_fields(source: Source, given: Mapping[str, str]) -> None:
    from service.quantitative.nifti import read_volume

    source.fields |= {name: read_volume(Path(path), source) for name, path in given.items()}


def _mask(text: str, source: Source) -> np.ndarray | None:
    from service.quantitative.nifti import read_volume

    if text in ("auto", "none"):
        return None
    values = read_volume(Path(text), source)
    if values.ndim != 3:
        raise typer.BadParameter(f"{text}: {len(values)} volumes; a mask is one", param_hint="--mask")
    return values > 0


def _print_notes(notes: list[str]) -> None:
    for note in notes:
        _stderr.print(note, style="dim", markup=False)


def _print_result(result: Result, written: list[Path]) -> None:
    """A line for each map: median and quartiles within the mask, and the median standard deviation."""
    import numpy as np

    for name, one in result.maps.items():
        if name.endswith("_sd"):
            continue
        values = np.abs(one.values) if np.iscomplexobj(one.values) else one.values
        low, middle, high = np.percentile(values[result.mask], (25, 50, 75)) if result.mask.any() else (0, 0, 0)
        spread = result.maps.get(f"{name}_sd")
        known = np.empty(0) if spread is None else spread.values[result.mask & np.isfinite(spread.values)]
        deviation = f", standard deviation {np.median(known):.4g}" if known.size else ""
        typer.echo(f"{name}{f' [{one.unit}]' if one.unit else ''}: median {middle:.4g}, quartiles {low:.4g} to {high:.4g}{deviation}")
    typer.echo(f"{len(written)} files in {written[0].parent}")


class _Progress:
    """A bar with the cost of each Gauss-Newton step on a terminal, a line a step elsewhere. Entering gives the callback, or None."""

    def __init__(self, name: str, options: Options, quiet: bool) -> None:
        self._name, self._options, self._quiet = name, options, quiet
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Any:
        if self._quiet or self._options.settings.reg_type == "none":
            return None
        if _stderr.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[cost]}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), console=_stderr)
            self._task = self._bar.add_task(self._name, total=None, cost="")
            self._bar.start()
        return self._step

    def _step(self, part: int, parts: int, step: Step) -> None:
        cost = f"cost {step.cost:.6g} (data {step.data_cost:.6g}, regularisation {step.regularisation_cost:.6g})"
        if self._bar is not None:
            self._bar.update(self._task, completed=part * step.total + step.number, total=parts * step.total, cost=cost)
        elif step.number:
            where = f"slice {part + 1} of {parts}, " if parts > 1 else ""
            _stderr.print(f"{where}step {step.number} of {step.total}: {cost}, {step.iterations} iterations, {step.seconds:.1f} s")

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
