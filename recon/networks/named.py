"""A network for a name of the catalogue or for a file, and what the catalogue says about feeding it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recon.networks.weights import Entry, Layout, WeightsError, catalogue, load, load_file

UNROLLED_INPUTS = 4
"""Start image, k-space, maps, mask."""


def named(weights: str, architecture: str, layout: Layout) -> tuple[str, Any, Entry]:
    """The network with its weights.

    Args:
        weights: name in the catalogue, or path of a file.
        architecture: name in the catalogue of what a file of weights alone belongs to; how to feed it is taken from there too.
        layout: of the input that the caller has.

    Returns:
        Name for the record, network, entry of the catalogue.

    Raises:
        WeightsError: see `recon.networks.weights`; or weights for another kind of input.
    """
    is_name = "/" not in weights and Path(weights).suffix == ""
    name = weights if is_name else architecture
    if name not in catalogue():
        load(name)  # says which names there are
    entry = catalogue()[name]
    if entry.layout != layout:
        raise WeightsError(f"the weights {name!r} are for another kind of input ({entry.layout}), not for {layout}")
    if is_name:
        return weights, load(weights), entry
    inputs = UNROLLED_INPUTS if layout == "unrolled" else 1
    return Path(weights).name, load_file(Path(weights), entry.network, entry.input_shape, inputs), entry


def frames_of(entry: Entry, network: Any, frames: int | None) -> int:
    """Frames of a clip: as asked for, else as the catalogue says.

    Raises:
        WeightsError: neither says, or a number that the network's scales cannot halve.
    """
    count = frames or entry.input_shape[1]
    if count is None:
        raise WeightsError("the catalogue does not say how many frames a clip has; set frames")
    if count % multiple(network):
        raise WeightsError(f"clips of {count} frames do not fit the network; their length must be a multiple of {multiple(network)}")
    return count


def multiple(network: Any) -> int:
    """Of which image sizes and clip lengths must be multiples: 1 for networks of one scale, or that say nothing of theirs."""
    filters = getattr(network, "settings", {}).get("filters")
    return int(2 ** (len(filters) - 1)) if isinstance(filters, (list, tuple)) else 1
