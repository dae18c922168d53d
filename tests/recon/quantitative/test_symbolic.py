"""Symbolic models: the built-in ones again as formulas, PyQMRI's files, names that clash, and files that mean harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.quantitative.catalogue import model_from
from recon.quantitative.model import ModelError
from recon.quantitative.models.diff import Diff
from recon.quantitative.models.exp_decay import ExpDecay
from recon.quantitative.models.ir import IR
from recon.quantitative.models.ivim import Ivim
from recon.quantitative.models.vfa import VFA
from recon.quantitative.pyqmri_models import read_ini
from recon.quantitative.symbolic import SymbolicModel, described
from tests.recon.conftest import relative_error

CONFIGS = Path(__file__).parents[3] / "configs" / "models"
FLIPS, TE, TI, B = [2, 4, 9, 15, 24], [10, 20, 40, 80, 160], [50, 300, 800, 1500, 3000], [0, 20, 60, 200, 500, 1000]
M0 = np.array([2, 1j, -0.5])


def model(signal: str, unknowns: dict[str, Any], parameters: dict[str, Any] | None = None, **more: Any) -> SymbolicModel:
    text = {"name": "test", "signal": signal, "unknowns": unknowns, "parameters": {"t": {"negative": True}}, **more}
    return SymbolicModel(described(text, "test"), {"t": [1.0, 2, 3, 5], **(parameters or {})})


def real(lower: float = 0, upper: float = 10, **more: Any) -> dict[str, Any]:
    return {"lower": lower, "upper": upper, **more}


@pytest.mark.parametrize(
    ("file", "parameters", "built_in", "rows"),
    [
        ("vfa.yaml", {"TR": 5, "FA": FLIPS}, VFA(5, FLIPS), [M0, [400, 900, 2000]]),
        ("monoexponential.yaml", {"TE": TE}, ExpDecay(TE), [M0, [5, 15, 50]]),
        ("ir.yaml", {"TI": TI}, IR(TI, fit_efficiency=True), [M0, [300, 900, 2000], [1, 0.9, 0.95]]),
        ("ivim.yaml", {"b_value": B}, Ivim(B), [M0, [0.5, 1, 2], [0.1, 0.2, 0.3], [10, 40, 90]]),
    ],
)
def test_shipped_files_equal_the_built_in_models(file: str, parameters: dict[str, Any], built_in: Any, rows: list[Any]) -> None:
    import tensorflow as tf

    symbolic = model_from(str(CONFIGS / file), parameters)
    truth = np.array(rows, complex)
    for values, wanted in zip(symbolic.jacobian(truth), built_in.jacobian(truth), strict=True):
        assert relative_error(values.numpy(), wanted.numpy()) < 1e-10
    graph = tf.function(symbolic.__call__, jit_compile=True)(truth)
    assert relative_error(graph.numpy(), built_in(truth).numpy()) < 1e-10
    shown, wanted_maps = symbolic.maps(truth), built_in.maps(truth)
    assert {name: part.unit for name, part in shown.items()} == {name: part.unit for name, part in wanted_maps.items()}
    for name, part in shown.items():
        assert relative_error(part.values, wanted_maps[name].values) < 1e-12
    start = symbolic.guess(built_in(truth).numpy())
    assert np.abs(start[1]) == pytest.approx(np.real(rows[1]), rel=0.6)


def test_pyqmri_models() -> None:
    path = CONFIGS / "pyqmri.ini"
    mono = model_from(f"{path}:MonoExp", {"TE": TE, "TR": 5})
    truth = np.array([M0, [0.005, 0.015, 0.05]])
    assert relative_error(mono(truth).numpy(), ExpDecay(TE)(truth * [[1], [1000]]).numpy()) < 1e-12
    assert mono.maps(truth)["A1"].values == pytest.approx(1 / truth[1].real)
    assert [unknown.amplitude for unknown in mono.unknowns] == [True, False]
    flips = model_from(f"{path}:VFA-E1", {"TR": 5.0, "fa": np.deg2rad(FLIPS)}, {"fa_corr": np.array([0.9, 1, 1.1])})
    E1 = np.exp(-5 / np.array([400.0, 900, 2000]))
    wanted = VFA(5, FLIPS, {"fa_corr": np.array([0.9, 1, 1.1])})(np.array([M0, [400, 900, 2000]])).numpy()
    found = np.array([M0, E1])
    assert relative_error(flips(found).numpy(), wanted) < 1e-9
    assert flips.maps(found)["E_1"].values == pytest.approx([400, 900, 2000])
    assert flips.unknowns[1].lower == 0.9048


def test_pyqmri_start_from_images_and_individual_phases(tmp_path: Path) -> None:
    path = tmp_path / "one.ini"
    path.write_text(
        "[Own]\nparameter = b\nunknowns = T, E\nsignal = T*exp(-b*E)\nbox_constraints_lower = 0,0\nbox_constraints_upper = 9,9\n"
        "real_value_constraints = False,True\nguess = image_1,0.5\nestimate_individual_phase = True\n"
    )
    own = model_from(str(path), {"b": [0.0, 1, 2]})
    truth = np.array([[2j, 1], [0.5, 1]])
    phase = np.array([[0, 0], [1, -2], [2, 0.5]])
    images = Diff([0, 1000, 2000])(truth).numpy() * np.exp(1j * phase)
    adapted = own.adapted(images)
    assert relative_error(adapted(truth).numpy(), images) < 1e-12
    start = adapted.guess(images)
    assert np.array_equal(start[0], images[1])
    assert start[1] == pytest.approx(0.5)
    assert read_ini(path, "Own") == read_ini(path)


def test_names_do_not_clash() -> None:
    """An unknown T beside TE, and unknowns that sympy has other ideas of."""
    found = SymbolicModel(
        described(
            {
                "name": "clash",
                "signal": "I*exp(-TE/T) * E + S*beta + gamma*zeta*Q",
                "unknowns": {name: real() for name in ("I", "T", "E", "S", "beta", "gamma", "zeta", "Q")},
                "parameters": {"TE": {}},
            },
            "clash",
        ),
        {"TE": [1, 2, 3, 4]},
    )
    values = np.arange(1, 9.0)[:, None].astype(complex)
    i, t, e, s, beta, gamma, zeta, q = values.real
    echo = np.array([1, 2, 3, 4.0])[:, None]
    assert found(values).numpy() == pytest.approx(i * np.exp(-echo / t) * e + s * beta + gamma * zeta * q)


@pytest.mark.parametrize(
    ("signal", "formula"),
    [
        ("a**3 - a^2/t + sqrt(a*t)", lambda a, t: a**3 - a**2 / t + np.sqrt(a * t)),
        ("where(t < 3, a*t, 3*a - t)", lambda a, t: np.where(t < 3, a * t, 3 * a - t)),
        ("max(a, t) + min(a, t)*abs(a - t) + erf(a/t)", lambda a, t: np.maximum(a, t) + np.minimum(a, t) * abs(a - t) + _erf(a / t)),
        ("a*exp(I*pi*t/4) + E", lambda a, t: a * np.exp(1j * np.pi * t / 4) + np.e),
        (
            "a**(-0.5) + a**t + tanh(a)*sinh(a)/cosh(a) + log(a) + atan(a)",
            lambda a, t: a**-0.5 + a**t + np.tanh(a) ** 2 + np.log(a) + np.arctan(a),
        ),
        ("a*(t > 2)", None),
    ],
)
def test_formulas(signal: str, formula: Any) -> None:
    if formula is None:
        with pytest.raises(ModelError):
            model(signal, {"a": real()})(np.array([[1.5]], complex))
        return
    found = model(signal, {"a": real()})
    a, t = np.array([0.7, 2.2]), np.array([1.0, 2, 3, 5])[:, None]
    assert found(a[None].astype(complex)).numpy() == pytest.approx(formula(a, t))
    step = 1e-6
    slope = (formula(a + step, t) - formula(a - step, t)) / (2 * step)
    assert found.jacobian(a[None].astype(complex))[1].numpy()[:, 0] == pytest.approx(slope, rel=1e-5, abs=1e-7)


def _erf(x: np.ndarray) -> Any:
    from scipy.special import erf

    return erf(x)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "a.__class__", "(lambda: a)()", "[a for a in t]", "open('x')", "a if t else a", "exec(a)",
        "a; a", "a[0]", "'a'", "exp(x=a)", "a**1000", "9**9**9", "(" * 300 + "a" + ")" * 300, "a = 1", "", "exp(a, a)", "b*a", "a @ t",
        "a" * 20000, "exp()", "where(a, a, a)", "1/0 + a*t",
    ],
)  # fmt: skip
def test_files_cannot_run_code(text: str) -> None:
    with pytest.raises(ModelError):
        model(text, {"a": real()})(np.array([[1.0]], complex))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signal": "a*t", "unknowns": {"a": real(), "b": real()}}, "does not depend on b"),
        ({"signal": "abs(a)*t", "unknowns": {"a": real(real=False)}}, "complex unknown a has no derivative"),
        ({"signal": "a*t", "unknowns": {"a": real(3, 1)}}, "above the upper bound"),
        ({"signal": "a*t", "unknowns": {"a": real(start=99)}}, "outside its bounds"),
        ({"signal": "a*t", "unknowns": {"t": real()}}, "declared twice"),
        ({"signal": "a*t", "unknowns": {"lambda": real()}}, "is no name"),
        ({"signal": "a*t", "unknowns": {"a": {"lower": 0}}}, "unknowns.a.upper"),
        ({"signal": "a*t", "unknowns": {"a": real()}, "colour": 3}, "colour"),
        ({"signal": "a*t", "unknowns": {}}, "unknowns"),
        (
            {"signal": "a*TR", "unknowns": {"a": real()}, "parameters": {"TR": {"per": "scan", "default": 5}}},
            "no parameter has one value for each",
        ),
    ],
)
def test_wrong_descriptions_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        SymbolicModel(described({"name": "test", "parameters": {"t": {}}, **change}, "test"), {"t": [1.0, 2]})


def test_wrong_parameters_are_named() -> None:
    with pytest.raises(ModelError, match=r"needs TE .*sequenceParameters/TE"):
        model_from(str(CONFIGS / "monoexponential.yaml"), {})
    with pytest.raises(ModelError, match=r"TE = 0\.08 looks like"):
        model_from(str(CONFIGS / "monoexponential.yaml"), {"TE": [0.01, 0.02, 0.08]})
    with pytest.raises(ModelError, match="numbers of contrasts differ: t has 4, u has 3"):
        SymbolicModel(
            described({"name": "x", "signal": "a*t*u", "unknowns": {"a": real()}, "parameters": {"t": {}, "u": {}}}, "x"),
            {"t": [1, 2, 3, 4], "u": [1, 2, 3]},
        )
    with pytest.raises(ModelError, match="2 contrasts are too few"):
        model_from(str(CONFIGS / "ivim.yaml"), {"b_value": [0, 500]})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        model_from(str(tmp_path / "none.yaml"), {})
    (tmp_path / "bad.yaml").write_text("[1, 2")
    with pytest.raises(ModelError, match="cannot be read"):
        model_from(str(tmp_path / "bad.yaml"), {})
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ModelError, match="must hold name, signal and unknowns"):
        model_from(str(tmp_path / "list.yaml"), {})
    with pytest.raises(ModelError, match="no section Nope; it has MonoExp, VFA-E1"):
        model_from(f"{CONFIGS / 'pyqmri.ini'}:Nope", {})
    (tmp_path / "part.ini").write_text("[A]\nunknowns = a\nsignal = a*TE\n")
    with pytest.raises(ModelError, match="lacks parameter, box_constraints_lower"):
        model_from(str(tmp_path / "part.ini"), {})
    (tmp_path / "short.ini").write_text(
        "[A]\nparameter = TE\nunknowns = a b\nsignal = a*TE+b\nbox_constraints_lower = 0\nbox_constraints_upper = 1,1\n"
        "real_value_constraints = True,True\nguess = 1,1\n"
    )
    with pytest.raises(ModelError, match="box_constraints_lower has 1 values for the 2 unknowns a, b"):
        model_from(str(tmp_path / "short.ini"), {})
