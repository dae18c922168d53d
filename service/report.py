"""What a replay did: counts, latencies, errors; as JSON and as an exit status."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gadgets.items import Acquisition, Image, Item
from gadgets.layout import Flag
from service.folders import writing

_ERROR = re.compile(r"\b(ERROR|CRITICAL)\b")
_HARMLESS_LEVEL = re.compile(r"\s*(DEBUG|INFO|WARNING|DBG|INF|WRN)\b")
COUNTERS = ("slice", "contrast", "phase", "repetition", "set")


def is_error(text: str) -> bool:
    """Whether a server's TEXT reports a failure.

    Gadgetron writes ``[place] ERROR: reason``, FIRE ``ERROR   reason``; lines that begin with a lower level (``INFO``) are not errors.
    """
    return any(_ERROR.search(line) and not _HARMLESS_LEVEL.match(line) for line in text.splitlines())


@dataclass
class Report:
    """Outcome of one replayed scan. Times in ms, sizes in bytes, rates per second.

    paced: sent at the pace of the scan; at full speed, readouts and images queue, and latencies are those of the queue.
    latency_ms: for each image, in the order received, from the moment the last readout it depends on was handed to the system (TCP;
    what the server makes it wait counts) or to the chain (local) until the image was decoded; None where that readout is not
    known (see `Departures`).
    """

    file: str
    config: str
    door: str
    paced: bool = False
    readouts: int = 0
    waveforms: int = 0
    input_images: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    images: int = 0
    expected_images: int | None = None
    series: dict[str, dict[str, Any]] = field(default_factory=dict)
    dicoms: list[str] = field(default_factory=list)
    latency_ms: list[float | None] = field(default_factory=list)
    image_times_ms: list[float] = field(default_factory=list)
    send_ms: float = 0.0
    total_ms: float = 0.0
    texts: list[str] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)
    returned: dict[str, int] = field(default_factory=dict)
    """Other items that came back, by kind."""
    errors: list[str] = field(default_factory=list)
    output: str | None = None

    @property
    def items(self) -> int:
        """Number of items sent."""
        return self.readouts + self.waveforms + self.input_images

    @property
    def ok(self) -> bool:
        """No error, and as many images as were to come: `expected_images`, or at least one image or DICOM file."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """Everything that makes the replay a failure, in words."""
        found = list(self.errors)
        if self.expected_images is not None and self.images != self.expected_images:
            found.append(f"{self.images} images came, {self.expected_images} were expected")
        elif self.expected_images is None and not self.images and not self.dicoms and not found:
            found.append("no image came; check that the chain fits the scan (--expect 0 if it makes none)")
        return found

    def add_image(self, image: Image) -> None:
        """Count an image into its series."""
        self.images += 1
        series = self.series.setdefault(str(int(image.image_series_index)), {"images": 0, "type": str(image.data.dtype), "shapes": []})
        series["images"] += 1
        if list(image.data.shape) not in series["shapes"]:
            series["shapes"].append(list(image.data.shape))

    def summary(self) -> dict[str, Any]:
        """Latency and throughput in figures: median, 99th percentile, worst; readouts/s while sending; images/s."""
        known = [value for value in self.latency_ms if value is not None]
        figures: dict[str, Any] = {
            "readouts_per_s": self.readouts / self.send_ms * 1e3 if self.send_ms else None,
            "images_per_s": self.images / self.total_ms * 1e3 if self.total_ms else None,
        }
        if known:
            median, late = np.percentile(known, [50, 99])
            figures["latency_ms"] = {"median": float(median), "p99": float(late), "max": max(known), "images": len(known)}
        return figures

    def line(self) -> str:
        """One line for people."""
        kinds = [
            f"series {number}: {one['images']} of {' and '.join(map(_size, one['shapes']))} {one['type']}"
            for number, one in sorted(self.series.items(), key=lambda entry: int(entry[0]))
        ]
        parts = [f"{self.file}: {self.readouts} readouts, {self.images} images" + (f" ({'; '.join(kinds)})" if kinds else "")]
        if self.dicoms:
            parts.append(f"{len(self.dicoms)} DICOM files")
        parts.append(f"{self.total_ms / 1e3:.2f} s")
        latency = self.summary().get("latency_ms")
        if latency:
            pace = "at the scan's pace" if self.paced else "at full speed"
            parts.append(f"last readout to image, {pace}: median {latency['median']:.0f} ms, p99 {latency['p99']:.0f} ms")
        if self.output:
            parts.append(f"written to {self.output}")
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "ok": self.ok, "problems": self.problems, **self.summary()}


def _size(shape: list[int]) -> str:
    """[channel, z, y, x] -> ``x x y``, and z and channels where there are several."""
    channels, z, y, x = shape
    return f"{x}x{y}" + (f"x{z}" if z > 1 else "") + (f", {channels} channels," if channels > 1 else "")


def write_reports(reports: list[Report], path: str | Path) -> None:
    """One JSON file: ``{"ok": ..., "scans": [...]}``."""
    content = {"ok": all(report.ok for report in reports), "scans": [report.as_dict() for report in reports]}
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")


class Departures:
    """When each readout left, to find how long each image took.

    An image waits for the last readout with its counters (slice, contrast, phase, repetition, set; averages are merged by every
    chain). Where the chain merges another counter or makes several images of one group (a sliding window), that readout is
    not known: if it left after the image had come, the latency is None; a merged counter makes the figure too high, never too low.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, ...], float] = {}

    def add(self, item: Item, seconds: float) -> None:
        """`item` left at `seconds` (`time.perf_counter`). Noise readouts and waveforms are not counted."""
        if isinstance(item, Acquisition):
            if not item.is_flag_set(Flag.IS_NOISE_MEASUREMENT):
                self._last[_key(item.header["idx"])] = seconds
        elif isinstance(item, Image):
            self._last[_key(item.header)] = seconds

    def latency_ms(self, header: np.void, seconds: float) -> float | None:
        """Latency of the image with this `IMAGE_HEADER` that came at `seconds`; call it when all readouts have left."""
        left = self._last.get(_key(header))
        return None if left is None or left > seconds else (seconds - left) * 1e3


def _key(counters: np.void) -> tuple[int, ...]:
    return tuple(int(counters[name]) for name in COUNTERS)
