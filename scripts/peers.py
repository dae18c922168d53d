"""The peers' NUFFT and CG-SENSE, for `bench_recon.py`: whichever of mri-nufft, mrpro, sigpy and BART are installed.

Each at the settings measured best for it: mri-nufft with all coils in one plan, mrpro with oversampling 1.25 (its accuracy is fixed)
and its Toeplitz normal operator, BART (a process and files per call, here in memory) with -r0 as plain conjugate gradients.
"""

from __future__ import annotations

import atexit
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Runs = dict[str, Callable[[], Any]]


def peers(trajectory: np.ndarray, maps: np.ndarray, kspace: np.ndarray, images: np.ndarray, tolerance: float, iterations: int) -> Runs:
    """Functions to time, named ``<task>_<peer>``; ``cg10_<peer>`` returns the image ``[y, x]`` up to scale.

    trajectory: ``[sample, 2]`` in rad/pixel; maps, images: ``[coil, y, x]``; kspace: ``[coil, sample]``, all of single precision.
    """
    runs: Runs = {}
    if importlib.util.find_spec("mrinufft"):
        runs |= mri_nufft(trajectory, maps, kspace, images, tolerance, iterations)
    if importlib.util.find_spec("mrpro"):
        runs |= mrpro(trajectory, maps, kspace, images, iterations)
    if importlib.util.find_spec("sigpy"):
        runs |= sigpy(trajectory, maps, kspace, images, iterations)
    if shutil.which("bart"):
        runs |= bart(trajectory, maps, kspace, iterations)
    return runs


def mri_nufft(trajectory: np.ndarray, maps: np.ndarray, kspace: np.ndarray, images: np.ndarray, tolerance: float, iterations: int) -> Runs:
    """mri-nufft on finufft."""
    import mrinufft

    def operator(smaps: np.ndarray | None) -> Any:
        coils = len(maps)
        make = mrinufft.get_operator("finufft")
        return make(trajectory.astype(np.float32), maps.shape[1:], n_coils=coils, n_trans=coils, smaps=smaps, eps=tolerance)

    plain, sense = operator(None), operator(maps)
    return {
        "type2_mri-nufft": lambda: plain.op(images),
        "type1_mri-nufft": lambda: plain.adj_op(kspace),
        "cg10_mri-nufft": lambda: np.squeeze(sense.pinv_solver(kspace, optim="lsqr", max_iter=iterations)),
    }


def mrpro(trajectory: np.ndarray, maps: np.ndarray, kspace: np.ndarray, images: np.ndarray, iterations: int) -> Runs:
    """mrpro on PyTorch."""
    import torch
    from mrpro.algorithms.optimizers import cg
    from mrpro.data import KTrajectory, SpatialDimension
    from mrpro.operators import NonUniformFastFourierOp, SensitivityOp

    rows, columns = maps.shape[1:]
    ky, kx = (torch.from_numpy(np.ascontiguousarray(k, np.float32))[None, None, None, None] for k in trajectory.T)
    # mrpro counts k-space in units of the encoding matrix' steps, from -n/2 to n/2.
    scaled = KTrajectory(torch.zeros(1, 1, 1, 1, 1), ky * rows / (2 * np.pi), kx * columns / (2 * np.pi))
    matrix = SpatialDimension(1, rows, columns)
    fourier = NonUniformFastFourierOp(("y", "x"), matrix, matrix, scaled, 1.25)
    coils = SensitivityOp(torch.from_numpy(maps)[None, :, None])
    image, samples = torch.from_numpy(images)[None, :, None], torch.from_numpy(kspace)[None, :, None, None]

    def solve() -> np.ndarray:
        (rhs,) = coils.adjoint(*fourier.adjoint(samples))
        normal = coils.H @ fourier.gram @ coils
        (solution,) = cg(normal, rhs, max_iterations=iterations, tolerance=0.0)
        return np.squeeze(solution.numpy())

    return {"type2_mrpro": lambda: fourier(image), "type1_mrpro": lambda: fourier.adjoint(samples), "cg10_mrpro": solve}


def sigpy(trajectory: np.ndarray, maps: np.ndarray, kspace: np.ndarray, images: np.ndarray, iterations: int) -> Runs:
    """sigpy on NumPy and numba."""
    from sigpy import nufft, nufft_adjoint
    from sigpy.mri.app import SenseRecon

    scaled = (trajectory * np.array(maps.shape[1:]) / (2 * np.pi)).astype(np.float32)
    return {
        "type2_sigpy": lambda: nufft(images, scaled),
        "type1_sigpy": lambda: nufft_adjoint(kspace, scaled, images.shape),
        "cg10_sigpy": lambda: SenseRecon(kspace, maps, lamda=0, coord=scaled, max_iter=iterations, show_pbar=False).run(),
    }


def bart(trajectory: np.ndarray, maps: np.ndarray, kspace: np.ndarray, iterations: int) -> Runs:
    """BART's pics."""
    rows, columns = maps.shape[1:]
    points = np.zeros((3, len(trajectory)), np.complex64)
    points[0], points[1] = trajectory[:, 1] * columns / (2 * np.pi), trajectory[:, 0] * rows / (2 * np.pi)
    inputs = [points, kspace.T[None, :, None, :], bart_order(maps)]
    run = bart_command(["pics", "-l2", "-r0", f"-i{iterations}", "-t"], inputs)
    return {"cg10_bart": lambda: run().reshape(rows, columns)}


def bart_order(images: np.ndarray) -> np.ndarray:
    """Coil images ``[coil, y, x]`` as BART has them: ``[x, y, z, coil]``."""
    return images.transpose(2, 1, 0)[:, :, None, :]


def bart_command(arguments: list[str], inputs: list[np.ndarray]) -> Callable[[], np.ndarray]:
    """A function that runs BART (a process, with files in memory) and returns the first output's numbers, first index fastest."""
    kept = tempfile.TemporaryDirectory(prefix="bart-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    atexit.register(kept.cleanup)
    folder = Path(kept.name)
    for n, array in enumerate(inputs):
        sizes = " ".join(map(str, array.shape + (1,) * (16 - array.ndim)))
        (folder / f"in{n}.hdr").write_text(f"# Dimensions\n{sizes}\n")
        array.astype(np.complex64).ravel(order="F").tofile(folder / f"in{n}.cfl")
    names = [str(folder / f"in{n}") for n in range(len(inputs))]

    def run() -> np.ndarray:
        output = folder / "out"
        subprocess.run(["bart", *arguments, *names, str(output)], check=True, stdout=subprocess.DEVNULL)
        return np.fromfile(output.with_suffix(".cfl"), np.complex64)

    return run
