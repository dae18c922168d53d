"""The spiral of sodium images of the calf: 80 pixels, 180 mm, 20 arms of 510 samples.

The protocol of the repository mrphys/sodium_MRI_DnCNN, with the Larmor constant of sodium.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from recon.spiral import spiral_trajectory

LARMOR_23NA = 11.261972
"""MHz/T."""
ARMS = 20


@lru_cache(maxsize=4)
def sodium_spiral(base_resolution: int = 80, field_of_view: float = 180.0) -> np.ndarray:
    """``[arm, sample, 2]`` in rad/pixel, for so many pixels and a field of view in mm. Raises ValueError as `spiral_trajectory`."""
    arms = spiral_trajectory(
        base_resolution,
        ARMS,
        field_of_view,
        max_grad_ampl=24.0,
        min_rise_time=8.125,
        dwell_time=14.8,
        views=ARMS,
        readout_os=2.0,
        gradient_delay=-4.0,
        larmor_const=LARMOR_23NA,
    )
    arms.setflags(write=False)
    return arms
