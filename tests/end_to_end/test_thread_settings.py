"""The machine's setting of BLAS's threads does not change an image: GRAPPA and ESPIRiT, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from recon.blas import _aside, _controller, one_blas_thread

PROGRAM = """
import hashlib
import sys
import numpy
from gadgets.items import Acquisition
from gadgets.layout import Flag
from scripts import simulate
from service.local import reconstruct

scan = simulate.cartesian((96, 96), 12, 1, noise=0.03, slices=1)
def lines(kept):
    return [one for one in scan.items if not isinstance(one, Acquisition) or one.is_flag_set(Flag.IS_NOISE_MEASUREMENT)
            or kept(int(one.header["idx"]["kspace_encode_step_1"]))]
for config, kept, settings in (
    ("cartesian_grappa.xml", lambda n: True, {}),
    ("cartesian_compressed_sensing.xml", lambda n: n % 3 == 0 or 36 <= n < 60, {"iterations": 5, "coil_maps": "espirit"}),
):
    images = reconstruct(lines(kept), config, header=scan.header, **settings)
    assert images and all(numpy.abs(image.data).max() > 0 for image in images)
    print(hashlib.sha256(b"".join(image.data.tobytes() for image in images)).hexdigest())
"""


def digests(threads: int) -> list[str]:
    """Of the images of both chains."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": str(threads)}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_images_are_the_same_bits_with_one_thread_and_with_many() -> None:
    one, many = digests(1), digests(4)
    assert len(one) == 2
    assert one == many


def test_one_thread_for_as_long_as_anyone_wants_it() -> None:
    """The one who leaves last need not be the one who came first."""
    usual = _aside(lambda: _controller().limit(limits=2, user_api="blas"))
    before = numbers()
    first, second, leave = threading.Event(), threading.Event(), threading.Event()

    def other(here: threading.Event) -> None:
        with one_blas_thread():
            here.set()
            leave.wait(60)

    threads = [threading.Thread(target=other, args=(here,)) for here in (first, second)]
    with one_blas_thread():
        for thread, here in zip(threads, (first, second), strict=True):
            thread.start()
            assert here.wait(60)
        assert numbers() == {1}
    assert numbers() == {1}
    leave.set()
    for thread in threads:
        thread.join(60)
    assert numbers() == before
    _aside(usual.restore_original_limits)


def numbers() -> set[int]:
    """Threads of the BLAS libraries."""
    return {library["num_threads"] for library in _controller().info() if library["user_api"] == "blas"}
