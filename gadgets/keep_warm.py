"""On a GPU, the work of a frame once more shortly before the next one is due.

What lay idle for the length of a frame (caches, the GPU's driver) makes the next image late: beside an H200, gridding and a denoising
network took 5.0 ms at the pace of a scan, and 3.8 ms when they had just run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise

from gadgets.frames import Frame
from gadgets.items import Image

FIRST_COST_S = 0.01
"""What a frame is taken to cost before one has been timed."""
MARGIN = 1.6
"""The time before a frame is due at which its predecessor is computed again, in units of what that costs."""


class KeepWarm:
    """Tells when a frame is about to be complete, and computes the last one again.

    Args:
        compute: a frame's image; its result is thrown away.
        rehearsals: what gadgets further down do with an image, for nothing.
    """

    def __init__(self, compute: Callable[[Frame], Image], rehearsals: list[Callable[[Image], None]]) -> None:
        self._compute, self._rehearsals = compute, rehearsals
        self._frame: Frame | None = None
        self._expected = self._since = 0
        self._gap_s = 0.0
        self._cost_s = FIRST_COST_S

    def complete(self, frame: Frame) -> None:
        """A frame has been imaged; the next one is taken to be like it."""
        times = [readout.received for readout in frame.readouts[-frame.fresh :]]
        gaps = sorted(later - earlier for earlier, later in pairwise(times))
        self._frame, self._expected, self._since = frame, frame.fresh, 0
        self._gap_s = gaps[len(gaps) // 2] if gaps else 0.0

    def due(self) -> bool:
        """Count a readout; whether the frame before should be computed again now. Never where readouts come too fast for it."""
        self._since += 1
        if self._frame is None or self._gap_s <= 0:
            return False
        lead = math.ceil(MARGIN * self._cost_s / self._gap_s)
        return lead < self._expected and self._since == self._expected - lead

    def run(self) -> None:
        """Compute the last frame again."""
        if self._frame is not None:
            start = time.perf_counter()
            image = self._compute(self._frame)
            for rehearse in self._rehearsals:
                rehearse(image)
            if not self._rehearsals:
                assert image.data.size  # fetched from the GPU, as it would be at the end of the chain
            self._cost_s = time.perf_counter() - start
