"""Gadgets that tests put into chains: quick images, and everything that can go wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gadgets.base import Gadget, Stream, parameter
from gadgets.items import Acquisition, AcquisitionBucket, Image, ImageArray, Item, ReconData, Text
from gadgets.layout import IMAGE_HEADER


class ToImage(Gadget):
    """Each readout -> one image of its samples' magnitude, `repeat` times as high."""

    repeat: int = parameter(1, ge=1, help="rows of the image are repeated so often")
    send_scale: float = parameter(1.0, help="factor")

    def __call__(self, items: Stream) -> Iterator[Item]:
        for acquisition in items.of(Acquisition):
            pixels = np.tile(np.abs(acquisition.data)[None, None], (1, 1, self.repeat, 1)).astype(np.float32)
            yield Image(None, pixels * np.float32(self.send_scale))


class Fail(Gadget):
    """Raises at readout number `at`."""

    at: int = parameter(0, help="number of the readout, from 0")

    def __call__(self, items: Stream) -> Iterator[Item]:
        for number, acquisition in enumerate(items.of(Acquisition)):
            if number == self.at:
                raise ArithmeticError("the matrix is singular")
            yield acquisition


class Crash(Gadget):
    """Kills its process at readout number `at`, as a fault in native code would."""

    at: int = parameter(0, help="number of the readout, from 0")

    def __call__(self, items: Stream) -> Iterator[Item]:
        for number, acquisition in enumerate(items.of(Acquisition)):
            if number == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield acquisition


class Hold(Gadget):
    """Writes `<file>.reached` and waits for `file` at readout number `at`; writes `<file>.closed` when the chain is given up."""

    file: str = parameter(help="path")
    at: int = parameter(0, help="number of the readout, from 0")

    def __call__(self, items: Stream) -> Iterator[Item]:
        try:
            for number, acquisition in enumerate(items.of(Acquisition)):
                if number == self.at:
                    Path(self.file + ".reached").write_text(str(os.getpid()))
                    deadline = time.monotonic() + 60
                    while not Path(self.file).exists() and time.monotonic() < deadline:
                        time.sleep(0.005)
                yield acquisition
        finally:
            Path(self.file + ".closed").write_text("")


class Emit(Gadget):
    """Each readout -> an item of the kind asked for."""

    kind: str = parameter(help="array, recon, bucket or text")

    def __call__(self, items: Stream) -> Iterator[Item]:
        for acquisition in items.of(Acquisition):
            if self.kind == "array":
                yield ImageArray(np.ones((1, 1, 2, 1, 1, 4, 4), np.complex64), np.zeros((1, 1, 2), IMAGE_HEADER))
            elif self.kind == "recon":
                yield ReconData([])
            elif self.kind == "bucket":
                yield AcquisitionBucket([acquisition])
            else:
                yield Text(f"readout {acquisition.scan_counter}")
