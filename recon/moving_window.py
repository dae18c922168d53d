"""Images of a series reconstructed jointly, in a window that moves along with the scan.

Over the frames t in the window, each with an encoding E_t of its own,

    minimise over x   sum_t |E_t x_t - y_t|^2 / 2 + damping |x_t|^2 / 2 + R(x)

by accelerated proximal gradients. Each time they start from the images of the last time, so that few iterations suffice: a frame
gets more of them for as long as it stays in the window.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recon import device
from recon.arrays import Array
from recon.namespace import namespace, times
from recon.operators.batched_gram import BatchedGram, fast_gram
from recon.operators.encoding import Encoding
from recon.sense import _toeplitz_pays
from recon.series_priors import SeriesPrior
from recon.solvers.conjugate_gradient import conjugate_gradient
from recon.solvers.fista import fista
from recon.solvers.power_iteration import dominant, random_like

MARGIN = 1.05
"""Power iteration finds the largest eigenvalue from below; a step must not be too long."""
FIRST_MODE, MODE = 15, 2
"""Power iterations of the first frame, and of each later one from where they ended."""
FIRST_START, START = 10, 4
"""Conjugate gradients that make the start of the first frame from nothing, and of each later one from the image before it."""


class MovingWindow:
    """The last frames of a series and their images. Where a GPU is in use, they stay there.

    Args:
        prior: makes R from E^H y of the first frame that is not zero. It is kept from then on: weights that changed from window to
            window would make the images flicker.
        size: most frames; None keeps all, each with the memory of its data and of about ten images.
        damping: in units of the mean diagonal of E^H E without the maps.

    Raises:
        ValueError: a size below 1, or a negative damping.
    """

    def __init__(self, prior: Callable[[Array], SeriesPrior], size: int | None = None, damping: float = 0.0) -> None:
        if (size is not None and size < 1) or not damping >= 0:
            raise ValueError(f"a window needs a size of at least 1 and a damping of at least 0, not {size} and {damping}")
        self.size = size
        self.damping = damping
        self._make_prior = prior
        self._prior: SeriesPrior | None = None
        self._scaled = False
        self._frames: list[_Frame] = []
        self._series: Array = None
        self._mode: Array = None

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, kspace: np.ndarray, trajectory: np.ndarray, maps: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Take a frame; the oldest goes where there are too many.

        What a frame costs only once is done here: E^H y, the plan or the kernel, its largest eigenvalue, and a start by a few
        conjugate gradients.

        Args:
            kspace: complex `[coil, sample]`.
            trajectory: `[sample, axis]` in rad/pixel.
            maps: `[coil, *image]`; if not those of the frame before, all frames in the window go on with them.
            weights: density weights `[sample]`; None for ones.

        Raises:
            ValueError: shapes do not fit.
        """
        if self._frames and maps is not self._frames[-1].maps:
            self._use(maps)
        frame = _Frame(kspace, trajectory, maps, weights, self.damping)
        if not self._scaled:
            self._prior = self._make_prior(frame.rhs)
            self._scaled = bool((frame.rhs != 0).any())
        self._measure(frame)
        self._append(frame)
        self._frames.append(frame)
        if self.size is not None and len(self._frames) > self.size:
            del self._frames[0]
            self._series = self._series[:, 1:]

    def solve(self, iterations: int, tolerance: float = 0.0) -> np.ndarray:
        """Reconstruct the frames in the window.

        Args:
            iterations: at most so many.
            tolerance: stop when the relative change of the images falls below it.

        Returns:
            Images `[frame, *image]`, the newest last.

        Raises:
            ValueError: the window is empty.
        """
        if self._prior is None or not self._frames:
            raise ValueError("the window is empty: add a frame before it is solved")
        frames, prior, space = self._frames, self._prior, namespace(self._series)
        normal, rhs = self._together(), space.stack([frame.rhs for frame in frames], 0)

        def gradient(series: Array) -> Array:
            residual = normal(series.sum(0)) - rhs
            return residual[None] if prior.parts == 1 else space.stack([residual] * prior.parts, 0)

        # Of a sum of unknowns, each sees the whole gradient.
        bound = prior.parts * MARGIN * max(frame.largest for frame in frames)
        if bound > 0:
            self._series = fista(gradient, prior.prox, self._series, 1 / bound, iterations, tolerance)
        return device.get(self._series.sum(0))

    def _together(self) -> Callable[[Array], Array]:
        """(E_t^H E_t + damping) x_t of all frames: on a GPU, by convolution, all at once."""
        frames, space = self._frames, namespace(self._series)
        kernels = [frame.kernel for frame in frames]
        if space is np or any(kernel is None for kernel in kernels):
            return lambda images: space.stack([frame.normal(images[n]) for n, frame in enumerate(frames)], 0)
        gram = BatchedGram(frames[-1].resident_maps, space.stack(kernels, 0))
        damping = space.asarray([frame.damping for frame in frames], self._series.real.dtype)
        damping = damping.reshape(-1, *(1,) * (self._series.ndim - 2))
        return lambda images: gram(images) + damping * images

    def clear(self) -> None:
        """Forget all frames and images; the weights stay."""
        self._frames, self._series, self._mode = [], None, None

    def _append(self, frame: _Frame) -> None:
        """A start for a new frame; what tells it from the image before goes into the last part."""
        assert self._prior is not None
        space = namespace(frame.rhs)
        if self._series is None:
            start = conjugate_gradient(frame.normal, frame.rhs, FIRST_START)
            self._series = space.stack([*[space.zeros_like(start)] * (self._prior.parts - 1), start], 0)[:, None]
            return
        before = self._series[:, -1]
        image = before.sum(0)
        change = conjugate_gradient(frame.normal, frame.rhs, START, initial=image) - image
        new = space.stack([*before[:-1], before[-1] + change], 0)
        self._series = space.concatenate([self._series, new[:, None]], 1)

    def _use(self, maps: np.ndarray) -> None:
        """Go on with other maps; the images become those which best explain the same coil images."""
        old, new = (device.put(one) for one in (self._frames[-1].maps, maps))
        self._series = self._series * (new.conj() * old).sum(0)
        for frame in self._frames:
            frame.encode(maps)
            self._measure(frame)

    def _measure(self, frame: _Frame) -> None:
        """Find the largest eigenvalue of a frame."""
        first = self._mode is None
        start = random_like(namespace(frame.rhs).zeros_like(frame.rhs)) if first else self._mode
        frame.largest, mode = dominant(frame.normal, start, FIRST_MODE if first else MODE)
        self._mode = mode if frame.largest > 0 else None


class _Frame:
    """The normal equation of a frame."""

    def __init__(self, kspace: np.ndarray, trajectory: np.ndarray, maps: np.ndarray, weights: np.ndarray | None, damping: float) -> None:
        self.kspace, self.trajectory, self.weights = device.put(kspace), trajectory, weights
        self.relative_damping = damping
        self.largest = 0.0
        self.encode(maps)

    def encode(self, maps: np.ndarray) -> None:
        """E^H y and E^H E with these maps."""
        self.maps, self.resident_maps = maps, device.put(maps)
        toeplitz = _toeplitz_pays(self.trajectory, maps.shape[1:])
        encoding = Encoding(self.resident_maps, self.trajectory, weights=self.weights, toeplitz=toeplitz)
        self.damping = self.relative_damping * encoding.mean_diagonal
        self.rhs = encoding.adjoint(encoding.weigh(self.kspace))
        self.kernel = encoding.toeplitz.kernel_like(self.rhs) if encoding.toeplitz else None
        self._gram = encoding.gram if isinstance(self.rhs, np.ndarray) else fast_gram(encoding, self.rhs)

    def normal(self, image: Array) -> Array:
        """(E^H E + damping) x."""
        result = self._gram(image)
        return result + times(self.damping, image) if self.damping else result
