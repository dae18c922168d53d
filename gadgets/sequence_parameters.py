"""What a header says of the sequence, by the names that signal models ask for: times in ms, angles in degrees, b-values in s/mm2."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gadgets.header import Header, HeaderError

_ELEMENTS = {"TR": "TR", "TE": "TE", "TI": "TI", "flip_angle": "flipAngle_deg", "echo_spacing": "echo_spacing"}
"""Our name -> element of sequenceParameters."""
_NUMBERED = re.compile(r"^(?P<name>.*?)_?(?P<number>\d+)(?P<unit>_(?:ms|deg|hz|ppm|s|us))?$", re.IGNORECASE)
_UNIT = re.compile(r"_(?:ms|deg)$", re.IGNORECASE)
_FLIPS = ("flipangle", "fa", "flips", "flipangles")


def sequence_parameters(header: Header) -> dict[str, Any]:
    """Sequence parameters by name: a number, or a list where there are several.

    From sequenceParameters: TR, TE, TI, flip_angle, echo_spacing, b_value and DWI_dir (diffusion). From userParameters: all under
    their own names; ``FlipAngle_0_deg, FlipAngle_1_deg, ...`` also as the list FlipAngle, and names that end in _ms or _deg also
    without that. sequenceParameters win, but for lists that only userParameters have. Two flip angles of a spin echo are
    excitation_angle and refocusing_angle.

    Raises:
        HeaderError: a value is no number.
    """
    found: dict[str, Any] = dict(header.user_parameters)
    for name, values in _lists(header.user_parameters).items():
        found.setdefault(name, values)
        if name.replace("_", "").lower() in _FLIPS:
            found["flip_angle"] = values
    for name, value in list(found.items()):
        found.setdefault(_UNIT.sub("", name), value)
    for name, element in _ELEMENTS.items():
        values = header.sequence(element)
        if values and len(values) >= np.size(found.get(name, ())):
            found[name] = values[0] if len(values) == 1 else values
    flips = header.sequence("flipAngle_deg")
    if len(flips) == 2 and "spinecho" in (header.text("sequenceParameters", "sequence_type") or "").lower():
        found.setdefault("excitation_angle", flips[0])
        found.setdefault("refocusing_angle", flips[1])
    found.update(_diffusion(header))
    return found


def _lists(parameters: dict[str, Any]) -> dict[str, list[float]]:
    """Numbered parameters as lists, in the order of their numbers; only those without gaps."""
    numbered: dict[str, dict[int, float]] = {}
    for name, value in parameters.items():
        match = _NUMBERED.match(name)
        if match and match["name"] and isinstance(value, (int, float)):
            numbered.setdefault(match["name"], {})[int(match["number"])] = float(value)
    lists = {}
    for name, values in numbered.items():
        order = sorted(values)
        if len(order) > 1 and order == list(range(order[0], order[0] + len(order))):
            lists[name] = [values[number] for number in order]
    return lists


def _diffusion(header: Header) -> dict[str, Any]:
    values = [float(value) for value in header.texts("sequenceParameters", "diffusion", "bvalue")]
    if not values:
        return {}
    axes = [header.texts("sequenceParameters", "diffusion", "gradientDirection", axis) for axis in ("rl", "ap", "fh")]
    found: dict[str, Any] = {"b_value": values}
    if all(len(axis) == len(values) for axis in axes):
        found["DWI_dir"] = np.array(axes, float).T.tolist()
    return found


def per_contrast(parameters: dict[str, Any], contrasts: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Lists with one value for each value of one counter, spread over contrasts that several counters tell apart.

    Args:
        parameters: as from `sequence_parameters`.
        contrasts: the counters of each contrast. Lists of another length are left as they are.
    """
    columns = [np.unique(column, return_inverse=True) for column in np.array(contrasts).T] if contrasts else []
    spread = {}
    for name, value in parameters.items():
        spread[name] = value
        if not isinstance(value, (list, tuple)) or len(value) == len(contrasts) or len(value) < 2:
            continue
        for values, index in columns:
            if len(values) == len(value):
                spread[name] = [value[i] for i in index]
                break
    return spread


TRAIN = ("TI", "TI_first", "TI_increment", "TR", "echo_spacing", "tau", "gradient_delay")
"""What is read of a readout train after an inversion; see `readout_train`."""


def readout_train(parameters: dict[str, Any], order: Sequence[int], readouts: int) -> dict[str, Any]:
    """What models of a readout train after an inversion need of its frames, times in ms.

    Args:
        parameters: as from `sequence_parameters`; TI_first (or TI) and TI_increment (or TR, echo_spacing) are used.
        order: number in the train of the first readout of each frame.
        readouts: in a frame.

    Raises:
        HeaderError: the header lacks one of the two.
    """
    given = {name.lower(): value for name, value in parameters.items()}

    def single(*names: str) -> float | None:
        found = [given[name.lower()] for name in names if given.get(name.lower()) is not None]
        return float(np.ravel(found[0])[0]) if found else None

    first, step = single("TI_first", "TI"), single("TI_increment", "TR", "echo_spacing")
    if first is None or step is None:
        missing = (
            ("TI", "TI_first_ms", "from the inversion to the first readout") if first is None else ("TR", "TI_increment_ms", "spacing")
        )
        raise HeaderError(
            f"the train of readouts needs {missing[0]} ({missing[2]} of the readouts, ms): put it into sequenceParameters/{missing[0]} of "
            f"the header, or into userParameters as userParameterDouble {missing[1]}"
        )
    return {
        "TI": [first + step * number for number in order],
        "TI_first": first,
        "TR": step,
        "readouts": readouts,
        "spokes": readouts,
        "frames": len(order),
        "tau": single("tau") or step,
        "gradient_delay": single("gradient_delay") or first,
    }
