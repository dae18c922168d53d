"""What a client does with what comes back: count it, time it, write images, pictures and DICOM files."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gadgets.items import Acquisition, Dicom, Image, Item, Text, Waveform
from gadgets.layout import clone
from service.files import ImageWriter
from service.folders import writing
from service.pictures import save_pictures
from service.report import Departures, Report, is_error


class Collector:
    """Takes the items that come back from one scan and fills in its `Report`.

    Args:
        report: is filled in.
        output: ISMRMRD HDF5 file for the images (an existing file gets a further group); None writes none.
        group: its group; None: date and time, as `gadgetron_ismrmrd_client` names it.
        pictures: folder for PNG files (see `service.pictures`); pixels are kept in memory only if it is given.
        animate: also make a GIF of each series.
        on_image: called after each image.
    """

    def __init__(
        self,
        report: Report,
        *,
        output: Path | None = None,
        group: str | None = None,
        pictures: Path | None = None,
        animate: bool = False,
        on_image: Callable[[Image], None] | None = None,
    ) -> None:
        self.report = report
        self.departures = Departures()
        self._output = output
        self._group = group
        self._writer: ImageWriter | None = None
        self._pictures = pictures
        self._animate = animate
        self._on_image = on_image
        self._shown: list[Image] = []
        self._arrivals: list[tuple[np.void, float]] = []
        self.start = time.perf_counter()

    def sent(self, item: Item, seconds: float) -> None:
        """Count an item that left at `seconds` (`time.perf_counter`)."""
        self.departures.add(item, seconds)
        if isinstance(item, Acquisition):
            self.report.readouts += 1
        elif isinstance(item, Waveform):
            self.report.waveforms += 1
        elif isinstance(item, Image):
            self.report.input_images += 1

    def take(self, item: Item) -> None:
        """Take an item that came back. Raises OSError or ValueError when it cannot be written."""
        now = time.perf_counter()
        report = self.report
        if isinstance(item, Image):
            report.add_image(item)
            report.image_times_ms.append((now - self.start) * 1e3)
            self._arrivals.append((clone(item.header), now))
            self._keep(item)
        elif isinstance(item, Text):
            report.texts.append(item.text)
            if is_error(item.text):
                report.errors.append(item.text.strip())
        elif isinstance(item, Dicom):
            report.dicoms.append(self._save(item))
        else:
            kind = type(item).__name__
            report.returned[kind] = report.returned.get(kind, 0) + 1

    def finish(self) -> None:
        """Close the output, write the pictures, work out the latencies. Call it once, when nothing more comes."""
        self.report.total_ms = (time.perf_counter() - self.start) * 1e3
        self.report.latency_ms = [self.departures.latency_ms(header, when) for header, when in self._arrivals]
        if self._writer is not None:
            self._writer.close()
            self.report.output = str(self._output)
        if self._pictures is not None and self._shown:
            with writing(self._pictures):
                save_pictures(self._shown, self._pictures, animate=self._animate)

    def _keep(self, image: Image) -> None:
        if self._output is not None:
            if self._writer is None:  # no image, no file
                self._writer = ImageWriter(self._output, self._group)
            self._writer.append(image)
        if self._pictures is not None:
            self._shown.append(image)
        if self._on_image is not None:
            self._on_image(image)

    def _save(self, dicom: Dicom) -> str:
        """Write a DICOM file beside the other outputs; only the last part of the sender's name is used."""
        folder = self._pictures or (self._output.parent if self._output is not None else None)
        name = re.sub(r"[^\w.-]", "_", re.split(r"[/\\]", dicom.name)[-1]) or f"image_{len(self.report.dicoms) + 1:04d}"
        if folder is None:
            return name
        path = folder / (name if name.lower().endswith(".dcm") else f"{name}.dcm")
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom.content)
        return str(path)
