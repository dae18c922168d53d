"""Reconstruct a file or a list of items in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from gadgets.items import Image, Item
from service.chain import config_file, config_folders, find_config
from service.client import chosen_config, opening, paced, tick_ms
from service.collect import Collector
from service.files import read_measurement
from service.inside import run_inside
from service.outputs import check_outputs
from service.report import Report
from service.wire import Close, Message


class ReconstructionError(RuntimeError):
    """A chain could not be built or failed; the text is what a client would have been told."""


def reconstruct(
    source: str | Path | Iterable[Item],
    config: str | Path | bytes,
    *,
    header: bytes = b"",
    parameters: Mapping[str, str] | None = None,
    **overrides: object,
) -> list[Image]:
    """Reconstruct a scan.

    Args:
        source: an ISMRMRD HDF5 file (group ``dataset``), or items in the order of time; these need `header`.
        config: path of a config, the name of one (``reconstream list``), or its XML as bytes.
        header: ISMRMRD header XML of the items.
        parameters: property values; ``"property@gadget"`` names one gadget.
        overrides: property values of all gadgets that have the property.

    Returns:
        All images, in order.

    Raises:
        ReconstructionError: with the reason.
        OSError, ValueError: the file cannot be read.
    """
    images: list[Image] = []
    report = Report(file="", config="", door="local", expected_images=None)
    collector = Collector(report, on_image=images.append)
    chosen = {**(parameters or {}), **{name: str(value) for name, value in overrides.items()}}
    items: Iterable[Item]
    if isinstance(source, (str, Path)):
        measurement = read_measurement(source)
        header, items = measurement.header_xml, measurement.items()
    else:
        items = source
    _run(opening(header, read_config(config)[1], chosen), items, collector, None)
    if report.errors:
        raise ReconstructionError("\n".join(report.errors))
    return images


def replay_local(
    file: str | Path,
    config: str | bytes | None,
    *,
    output: Path | None = None,
    out_group: str | None = None,
    in_group: str = "dataset",
    pictures: Path | None = None,
    animate: bool = False,
    realtime: bool = False,
    parameters: Mapping[str, str] | None = None,
    expect: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """As `service.client.replay`, in this process. Raises `service.chain.ConfigError` for a config that is not found."""
    measurement = read_measurement(file, in_group)
    name, xml = read_config(chosen_config(measurement, config))
    check_outputs(measurement.path, output, pictures)
    report = Report(file=str(file), config=name, door="local", expected_images=expect, paced=realtime)
    collector = Collector(report, output=output, group=out_group, pictures=pictures, animate=animate)
    items: Iterable[Item] = measurement.items()
    if realtime:
        items = paced(items, tick_ms(measurement.header_xml), threading.Event().wait)
    _run(opening(measurement.header_xml, xml, parameters or {}), items, collector, progress)
    collector.finish()
    return report


def read_config(config: str | Path | bytes) -> tuple[str, bytes]:
    """Name and XML of a config: a path, the name of one in the config folders, or XML. Raises `service.chain.ConfigError`."""
    if isinstance(config, bytes):
        return "config", config
    path = config_file(str(config))
    if path is None:
        path, xml = find_config(str(config), config_folders())
        return str(path), xml
    return str(path), path.read_bytes()


def _run(opening: Iterable[Message], items: Iterable[Item], collector: Collector, progress: Callable[[int, int], None] | None) -> None:
    def messages() -> Iterator[Message]:
        yield from opening
        for item in items:
            item.received = time.perf_counter()
            collector.sent(item, item.received)
            yield item
        yield Close()

    def take(message: Message) -> None:
        if isinstance(message, Item):
            collector.take(message)
        if progress is not None:
            progress(collector.report.items, collector.report.images)

    # The config is the user's own, as is the machine, so it may start programs.
    outcome = run_inside(messages(), take, allow_external=True, hear_out=False)
    if outcome.error and not collector.report.errors:
        collector.report.errors.append(outcome.error)
