"""Every signal model with three voxels of truth and its formula written out once more, in NumPy and by simulation where it can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from recon.quantitative.magnitude import Magnitude
from recon.quantitative.model import SignalModel
from recon.quantitative.models.asl import ASL
from recon.quantitative.models.b1_comp import B1_comp
from recon.quantitative.models.bi_exp_decay import BiExpDecay
from recon.quantitative.models.cest import CEST
from recon.quantitative.models.cest_3pool import CEST_3Pool
from recon.quantitative.models.dce import DCE, population_aif
from recon.quantitative.models.despot2 import DESPOT2
from recon.quantitative.models.diff import Diff
from recon.quantitative.models.diffdir_ll import DiffdirLL
from recon.quantitative.models.epg import EPG
from recon.quantitative.models.exp_decay import ExpDecay
from recon.quantitative.models.ffc import FFC
from recon.quantitative.models.ffc_abs import FFC_abs
from recon.quantitative.models.ffc_phasefit import FFC_phasefit
from recon.quantitative.models.ffc_sat import FFCsat, FFCsat_abs
from recon.quantitative.models.image_reco import ImageReco
from recon.quantitative.models.ir import IR
from recon.quantitative.models.ir_bssfp import IRbSSFP
from recon.quantitative.models.irll import IRLL
from recon.quantitative.models.ivim import Ivim
from recon.quantitative.models.ivim_dti import IvimDTI
from recon.quantitative.models.look_locker import LookLocker
from recon.quantitative.models.molli import MOLLI
from recon.quantitative.models.pasl import PASL
from recon.quantitative.models.r2star import R2Star
from recon.quantitative.models.sasha import SASHA
from recon.quantitative.models.vfa import VFA

Signal = Callable[..., Any]
"""Unknowns of one voxel (numbers) and the voxel's index to its signal ``[contrast]``."""


@dataclass(frozen=True)
class Case:
    """A model, the truth `[unknown, voxel]` and the signal of one voxel; `guess` is the factor within which start values must lie."""

    model: SignalModel
    truth: np.ndarray
    signal: Signal
    guess: float = 1.6


M0 = np.array([0.9, 0.4 * np.exp(0.7j), 1.1 * np.exp(-2.1j)])
B1 = np.array([0.85, 1.0, 1.12])
GAUSS = np.polynomial.legendre.leggauss(60)


def case(model: SignalModel, rows: list[Any], signal: Signal, guess: float = 1.6) -> Case:
    return Case(model, np.array(rows, np.complex128), signal, guess)


def integral(function: Callable[[np.ndarray], np.ndarray], begin: float, end: float) -> Any:
    nodes, weights = GAUSS
    half = (end - begin) / 2
    return 0 if end <= begin else half * (weights * function(begin + half * (nodes + 1))).sum()


def cases() -> dict[str, Case]:
    found = {**steady(), **recoveries(), **decays(), **diffusion(), **perfusion(), **exchange(), **cycling()}
    found["ImageReco"] = case(ImageReco(3), [M0, 0.3 * M0, -2j * M0], lambda *x, voxel: np.array(x))
    return found


def steady() -> dict[str, Case]:
    flips, TR = np.array([2.0, 4, 9, 15, 24]), 6.0

    def vfa(m0: complex, T1: float, voxel: int) -> np.ndarray:
        a, E1 = np.deg2rad(flips) * B1[voxel], np.exp(-TR / T1)
        return m0 * np.sin(a) * (1 - E1) / (1 - E1 * np.cos(a))

    T1 = np.array([400.0, 1000, 2600])

    def balanced(m0: complex, T2: float, voxel: int) -> np.ndarray:
        """Steady state of rotations with alternating sign, relaxation in between: solved as a linear system."""
        echoes = []
        for flip in np.deg2rad([5.0, 15, 30, 50, 70]):
            a = flip * B1[voxel]
            turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
            relax, rest = np.diag([-np.exp(-TR / T2), np.exp(-TR / T1[voxel])]), np.array([0, 1 - np.exp(-TR / T1[voxel])])
            echoes.append(np.linalg.solve(np.eye(2) - turn @ relax, turn @ rest)[0] * np.exp(-TR / 2 / T2))
        return m0 * np.array(echoes)

    def transient(m0: complex, T1: float, T2: float, voxel: int) -> np.ndarray:
        """Bloch: inversion, delay, half pulse, then pulses with alternating phase; the echo rotated back."""
        a, m = np.deg2rad(40.0) * B1[voxel], np.array([0.0, 0, 1])

        def turn(m: np.ndarray, angle: float) -> np.ndarray:
            c, s = np.cos(angle), np.sin(angle)
            return np.array([[1, 0, 0], [0, c, s], [0, -s, c]]) @ m

        def relax(m: np.ndarray, time: float) -> np.ndarray:
            E1, E2 = np.exp(-time / T1), np.exp(-time / T2)
            return np.array([m[0] * E2, m[1] * E2, 1 - (1 - m[2]) * E1])

        m = relax(turn(relax(turn(m, np.pi), 8.0), -a / 2), 2.0)
        readouts = []
        for n in range(240):
            sign = (-1) ** n
            m = relax(turn(m, sign * a), 2.0)
            readouts.append(sign * m[1])
            m = relax(m, 2.0)
        return m0 * np.array(readouts).reshape(60, 4).mean(1)[:, None].reshape(60)

    return {
        "VFA": case(VFA(TR, flips, {"fa_corr": B1}), [10 * M0, [350, 1200, 3800]], vfa, 1.02),
        "DESPOT2": case(DESPOT2(TR, [5, 15, 30, 50, 70], fields={"T1": T1, "fa_corr": B1}), [5 * M0, [40, 90, 700]], balanced),
        "IRbSSFP": case(IRbSSFP(4.0, 40.0, 60, 4, 8.0, fields={"fa_corr": B1}), [5 * M0, [500, 1100, 2800], [40, 90, 700]], transient, 1.7),
    }


def recoveries() -> dict[str, Case]:
    TI = np.array([50.0, 150, 400, 800, 1500, 3000])
    T1 = [250, 900, 2400]
    TS = np.array([100.0, 300, 600, 900, 1500, 30000])

    def train(m0: complex, T1: float, factor: float, cycles: int, begin: float, tau: float, count: int, rest: float) -> np.ndarray:
        """Longitudinal magnetisation through inversions and readouts, step by step."""
        a, m, readouts = np.deg2rad(6.0) * factor, 1.0, []
        for _ in range(cycles):
            m = 1 - (1 + m) * np.exp(-begin / T1)
            readouts = []
            for n in range(count):
                readouts.append(m * np.sin(a))
                m = 1 - (1 - m * np.cos(a)) * np.exp(-(tau if n < count - 1 else rest) / T1)
        return m0 * np.array(readouts)

    def irll(m0: complex, T1: float, voxel: int) -> np.ndarray:
        signal = train(m0, T1, B1[voxel], 60, 7.0, 5.0, 96, 2000 - 7.0 - 95 * 5.0)
        return signal.reshape(12, 8).mean(1)

    def single(m0: complex, T1: float, b1: float, voxel: int) -> np.ndarray:
        return train(m0, T1, b1, 1, 12.0, 4.5, 600, 0).reshape(40, 15).mean(1)

    def inversion(m: complex, T1: float, k: float, voxel: int) -> np.ndarray:
        return m * (1 - 2 * k * np.exp(-TI / T1) + np.exp(-5000 / T1))

    return {
        "IR": case(IR(TI, 5000, True), [M0, T1, [0.9, 1, 0.95]], inversion),
        "IR_magnitude": case(Magnitude(IR(TI)), [abs(M0), T1], lambda m, T1, voxel: abs(m * (1 - 2 * np.exp(-TI / T1)))),
        "MOLLI": case(
            MOLLI([120, 200, 1100, 1200, 2100, 3100, 4000]), [M0, T1, [1.8, 1.9, 2]],
            lambda m, T1, c, voxel: m * (1 - c * np.exp(-np.array([120, 200, 1100, 1200, 2100, 3100, 4000]) * (c - 1) / T1)),
        ),
        "SASHA": case(
            SASHA(TS), [M0, T1, [0.9, 1, 0.95]], lambda m, T1, k, voxel: m * (1 - k * np.where(TS > 20000, 0, np.exp(-TS / T1)))
        ),
        "IRLL": case(IRLL(2000, 5, 7, 6, 12, 8, fields={"fa_corr": B1}), [20 * M0, T1], irll),
        "LookLocker": case(
            LookLocker(12 + 4.5 * 15 * np.arange(40), 4.5, 6, 15, fit_b1=True), [20 * M0, T1, B1], single, 2.5
        ),
    }  # fmt: skip


def decays() -> dict[str, Case]:
    TE = np.array([10.0, 25, 50, 80, 130, 200, 350, 600])
    echoes = np.array([2.0, 4.5, 7, 12, 20, 31])

    def phases(m0: complex, rate: float, B0: float, voxel: int) -> np.ndarray:
        return m0 * np.exp(-echoes / 1000 * (rate + 2j * np.pi * B0))

    def isochromats(m0: complex, R2: float, b1: float, voxel: int) -> np.ndarray:
        """Bloch: 64 spins whose phases are spread over a turn in each half spacing, with recovery to equilibrium."""
        spread = 2 * np.pi * np.arange(64) / 64
        spins = np.zeros((3, 64))
        spins[2] = 1

        def turn(spins: np.ndarray, axis: int, angle: float) -> np.ndarray:
            c, s = np.cos(angle), np.sin(angle)
            matrix = np.array([[1, 0, 0], [0, c, -s], [0, s, c]] if axis == 0 else [[c, 0, s], [0, 1, 0], [-s, 0, c]])
            return matrix @ spins

        def rest(spins: np.ndarray) -> np.ndarray:
            E1, E2 = np.exp(-5 / 800), np.exp(-5e-3 * R2)
            c, s = np.cos(spread), np.sin(spread)
            return np.array([E2 * (c * spins[0] - s * spins[1]), E2 * (s * spins[0] + c * spins[1]), 1 - (1 - spins[2]) * E1])

        spins = turn(spins, 1, np.pi / 2 * b1)
        found = []
        for flip in FLIPS:
            spins = rest(turn(rest(spins), 0, np.deg2rad(flip) * b1))
            found.append(spins[0].mean())
        return m0 * np.array(found)

    def two(m: complex, f: float, short: float, long: float, voxel: int) -> np.ndarray:
        return m * (f * np.exp(-TE / 1000 * short) + (1 - f) * np.exp(-TE / 1000 * long))

    return {
        "ExpDecay": case(ExpDecay(TE), [M0, [3, 12, 40]], lambda m, R2, voxel: m * np.exp(-TE / 1000 * R2), 1.01),
        "BiExpDecay": case(BiExpDecay(TE), [M0, [0.3, 0.5, 0.7], [25, 50, 80], [2, 3, 1.2]], two, 2),
        "EPG": case(EPG(10.0 * np.arange(1, 11), FLIPS, T1=800, fit_b1=True), [M0, [5, 12, 30], [0.7, 0.85, 0.97]], isochromats, 1.7),
        "R2Star": case(R2Star(echoes), [M0, [10, 40, 90], [-150, 35, 180]], phases, 1.05),
    }


FLIPS = np.array([170.0, 150, 120, 120, 140, 160, 170, 180, 120, 90])


def diffusion() -> dict[str, Case]:
    b = np.array([0.0, 10, 20, 40, 80, 150, 300, 500, 800, 1000])
    phase = np.random.default_rng(3).uniform(-3, 3, (10, 3))
    shells = np.random.default_rng(4).normal(size=(14, 3))
    shells /= np.linalg.norm(shells, axis=1, keepdims=True)
    many = np.array([0.0, 0, 15, 40, 90, 300, 300, 400, 600, 700, 800, 900, 1000, 1000])
    factors = [[1, 0.9, 1.3], [0.1, -0.2, 0.3], [0.8, 1, 1.1], [0, 0.2, -0.3], [0.2, -0.1, 0.1], [0.6, 0.9, 0.8]]

    def slow(entries: Any) -> np.ndarray:
        L = np.zeros((3, 3))
        L[np.tril_indices(3)] = np.real([entries[0], entries[1], entries[2], entries[3], entries[4], entries[5]])
        return np.exp(-many / 1000 * np.array([v @ (L @ L.T) @ v for v in shells]))

    def ivim(m: complex, ADC: float, f: float, fast: float, voxel: int) -> np.ndarray:
        return m * (f * np.exp(-b / 1000 * fast) + (1 - f) * np.exp(-b / 1000 * ADC)) * np.exp(1j * phase[:, voxel])

    return {
        "Diff": case(
            Diff(b, {"phase": phase}), [M0, [0.3, 1, 2.5]],
            lambda m, D, voxel: m * np.exp(-b / 1000 * D) * np.exp(1j * phase[:, voxel]), 1.01,
        ),
        "DiffdirLL": case(DiffdirLL(many, shells), [M0, *factors], lambda m, *L, voxel: m * slow(L), np.inf),
        "Ivim": case(Ivim(b, {"phase": phase}), [M0, [0.7, 1.1, 2], [0.1, 0.2, 0.35], [20, 45, 90]], ivim, 3),
        "IvimDTI": case(
            IvimDTI(many, shells), [M0, *factors, [0.1, 0.2, 0.35], [20, 45, 90]],
            lambda m, *x, voxel: m * (x[6] * np.exp(-many / 1000 * x[7]) + (1 - x[6]) * slow(x[:6])), np.inf,
        ),
    }  # fmt: skip


def perfusion() -> dict[str, Case]:
    t = np.array([700.0, 1200, 1700, 2200, 2700, 3300, 4000])
    calibration = np.array([1.0, 0.8j, 1.3 * np.exp(0.4j)])
    T1 = np.array([1100.0, 1330, 1650])

    def label(CBF: float, ATT: float, voxel: int, tau: float, alpha: float, pulsed: bool) -> np.ndarray:
        """Buxton's convolution of delivery, residue and relaxation, by quadrature."""
        f = CBF / 6e6
        rate = 1 / T1[voxel] + f / 0.9

        def at(time: float) -> Any:
            def delivered(s: np.ndarray) -> np.ndarray:
                return alpha * np.exp(-(s if pulsed else ATT) / 1650) * np.exp(-(time - s) * rate)

            return integral(delivered, ATT, min(time, ATT + tau))

        return 2 * calibration[voxel] / 0.9 * f * np.array([at(time) for time in t])

    seconds = np.arange(0, 240, 10.0)
    aif = population_aif(seconds, 20)
    T10 = np.array([1000.0, 1400, 1800])

    def tofts(m0: complex, K: float, ve: float, vp: float, voxel: int) -> np.ndarray:
        K = np.real(K) / 60
        tissue = []
        for n, time in enumerate(seconds):
            parts = [
                integral(lambda s, time=time: np.interp(s, seconds, aif) * np.exp(-K / ve * (time - s)), seconds[j], seconds[j + 1])
                for j in range(n)
            ]
            tissue.append(vp * aif[n] + K * sum(parts))
        E1, a = np.exp(-4.0 * (1 / T10[voxel] + 4.5e-3 * np.array(tissue))), np.deg2rad(15.0)
        return m0 * np.sin(a) * (1 - E1) / (1 - E1 * np.cos(a))

    return {
        "ASL": case(
            ASL(t, 1500, fields={"M0": calibration, "T1": T1}), [[20, 60, 110], [500, 1150, 1900]],
            lambda f, ATT, voxel: label(f, ATT, voxel, 1500, 0.85, False),
        ),
        "PASL": case(
            PASL(t, 900, fields={"M0": calibration, "T1": T1}), [[20, 60, 110], [450, 900, 1450]],
            lambda f, ATT, voxel: label(f, ATT, voxel, 900, 0.98, True),
        ),
        "DCE": case(
            DCE(seconds, aif, 4.0, 15.0, fields={"T10": T10}), [10 * M0, [0.05, 0.2, 0.8], [0.15, 0.3, 0.5], [0.02, 0.05, 0.1]], tofts, 6
        ),
    }  # fmt: skip


def exchange() -> dict[str, Case]:
    omega = np.concatenate([[-150], np.linspace(-10, 10, 61), [150]])

    def pools(m: complex, *x: float, voxel: int) -> np.ndarray:
        return m * (1 - sum(a * (G / 2) ** 2 / ((G / 2) ** 2 + (w - omega) ** 2) for a, G, w in zip(x[::3], x[1::3], x[2::3], strict=True)))

    few = [[0.85, 0.9, 0.8], [1.1, 0.9, 1.4], [0.05, -0.1, 0], [0.08, 0.05, 0.1], [1, 1.3, 0.8], [3.4, 3.5, 3.6], [0.06, 0.1, 0.05],
           [1.2, 0.9, 1], [1.85, 1.9, 1.95]]  # fmt: skip
    many = [[0.8, 0.85, 0.7], [1.6, 1.3, 2], [0.1, -0.2, 0], [0.08, 0.06, 0.1], [1.6, 2, 1.2], [3.4, 3.5, 3.6], [0.1, 0.07, 0.15],
            [3, 2.6, 3.5], [-3.4, -3.5, -3.2], [0.12, 0.1, 0.08], [30, 25, 40], [-2, -1.5, -2.5], [0.05, 0.08, 0.1], [0.9, 1.2, 0.8],
            [2.1, 2.2, 2.0]]  # fmt: skip
    signs = {"bss_sign": [1, 1, -1, -1, 1, 1, -1, -1], "even_odd_sign": [1, -1] * 4, "pos_offset": [1, 1, 1, 1, 0, 0, 0, 0],
             "neg_offset": [0, 0, 0, 0, 1, 1, 1, 1], "same_sign": [0, 0, 1, 0, 0, 1, 0, 0]}  # fmt: skip
    TE = np.array([12.0, 12, 14, 16, 12, 13, 14, 16])
    turns = {name: np.array(values) for name, values in signs.items()}

    def siegert(*x: float, voxel: int) -> np.ndarray:
        images, (shift, B0, odd, pos, neg, same) = np.array(x[:8]), x[8:]
        angle = 2 * np.pi * B0 * TE / 1000 - turns["bss_sign"] * shift + turns["even_odd_sign"] * odd + turns["pos_offset"] * pos
        return images * np.exp(1j * (2 * np.pi + angle + turns["neg_offset"] * neg + turns["same_sign"] * same))

    magnitudes = [[0.9 + 0.01 * n, 0.5, 1.2] for n in range(8)]
    phases = [[0.4, 0.7, 1.1], [10, -5, 2], [0.1, -0.1, 0.05], [0.3, 0.1, -0.2], [0.2, -0.3, 0.1], [0.05, 0.1, -0.1]]
    return {
        "CEST_3Pool": case(CEST_3Pool(omega), [M0, *few], pools, np.inf),
        "CEST": case(CEST(omega), [M0, *many], pools, np.inf),
        "B1_comp": case(B1_comp(TE, **signs, kbs=7.4e9), [*magnitudes, *phases], siegert, np.inf),
    }


def cycling() -> dict[str, Case]:
    t = np.array([[10.0, 40, 90, 200, 400], [10, 30, 80, 150, 300]])
    b = np.array([0.2, 0.02])
    T1 = [[150, 220, 90], [100, 120, 60]]
    C = [4 * M0, 4.5 * M0 * np.exp(0.3j)]

    def single(amplitudes: Any, alpha: float, times: Any, sign: float, b0: float = 0.2) -> np.ndarray:
        parts = [amplitudes[j] * (sign * b0 * alpha * np.exp(-t[j] / times[j]) + (1 - np.exp(-t[j] / times[j])) * b[j]) for j in range(2)]
        return np.concatenate(parts)

    own = np.random.default_rng(5).uniform(-3, 3, (10, 3))
    turned = np.exp(1j * own)
    sizes = [np.abs(row) for row in C]
    alpha = [0.9, 1, 1.1]
    return {
        "FFC": case(FFC(t, b), [*C, alpha, *T1], lambda *x, voxel: single(x[:2], x[2], x[3:], -1)),
        "FFC_abs": case(
            FFC_abs(t, b, fields={"phase": own}), [*sizes, alpha, *T1],
            lambda *x, voxel: abs(single(x[:2], x[2], x[3:], -1)) * turned[:, voxel],
        ),
        "FFC_phasefit": case(
            FFC_phasefit(t, b), [sizes[0], [0, 0.7, -2.1], [0.3, 1, -1.8], alpha, *T1],
            lambda *x, voxel: single(x[0] * np.exp(1j * np.array(x[1:3])), x[3], x[4:], -1),
        ),
        "FFCsat": case(FFCsat(t, b, 0.5), [*C, alpha, *T1], lambda *x, voxel: single(x[:2], x[2], x[3:], 1, 0.5), 3),
        "FFCsat_abs": case(
            FFCsat_abs(t, b, 0.5, {"phase": own}), [*sizes, alpha, *T1],
            lambda *x, voxel: abs(single(x[:2], x[2], x[3:], 1, 0.5)) * turned[:, voxel], 3,
        ),
    }  # fmt: skip
