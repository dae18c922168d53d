"""What images say about the network that made them, or failed to."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from gadgets.base import Context
from gadgets.items import Meta
from gadgets.meta import put

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_RAISED = re.compile(r"\w*(?:Error|Exception): ")


class NetworkMarks:
    """Attributes of a gadget's images, and a count and one warning of those that its network did not make.

    Args:
        gadget: its name.
        otherwise: how such images go out, in words.
        context: of the measurement.
    """

    def __init__(self, gadget: str, otherwise: str, context: Context) -> None:
        self.gadget, self.otherwise, self.context = gadget, otherwise, context
        self._told = False

    def made(self, meta: Meta, weights: str) -> None:
        """The network with these weights made the image."""
        kept = meta.get("ImageProcessingHistory", [])
        put(meta, "history", [*([kept] if isinstance(kept, str) else kept), "network"])
        put(meta, "NetworkWeights", weights)

    def failed(self, meta: Meta, why: str) -> None:
        """It did not."""
        put(meta, "NetworkFailed", why)
        self.context.count("images not made by the network")
        if not self._told:
            self._told = True
            self.context.log.warning("%s: %s; such images go out %s, marked NetworkFailed", self.gadget, why, self.otherwise)

    def warmed(self, warm: Callable[[], None]) -> None:
        """Call what prepares a network; where that fails, the images will find out, one by one, and go out all the same."""
        try:
            warm()
        except Exception as error:  # whatever a network's runtime raises
            self.context.log.warning("%s: preparing the network: %s", self.gadget, reason(error))


def attempt(network: Callable[[], np.ndarray], shape: tuple[int, ...]) -> tuple[np.ndarray, str]:
    """Images of this shape, and why the network failed, if it did (the images are of no use then)."""
    try:
        images = network()
    except Exception as error:  # whatever a network's runtime raises, the images must go out
        return np.empty(shape), reason(error)
    if images.shape != shape:
        return np.empty(shape), f"the network gave an image of {images.shape} instead of {shape}"
    return images, ""


def reason(error: Exception) -> str:
    """Why a network failed, in one line."""
    return f"the network failed: {type(error).__name__}: {_cause(str(error))}"


def _cause(message: str) -> str:
    """The line of an error's message that says what is wrong: TensorFlow and Keras put tracebacks and headings before it."""
    lines = [line.strip() for line in _COLOURS.sub("", message).splitlines() if line.strip()]
    if lines[:1] == ["in user code:"]:
        raised = [n for n, line in enumerate(lines) if _RAISED.match(line)]
        lines = lines[raised[-1] :] if raised else lines[1:]
        lines = [_RAISED.sub("", lines[0], count=1), *lines[1:]] if lines else []
    if lines and lines[0].startswith("Exception encountered when calling "):
        lines = lines[1:]
    return lines[0] if lines else ""
