"""Models by name, and what they say when something is missing or in the wrong unit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon.quantitative.catalogue import MODELS, model_class, model_from, requirements
from recon.quantitative.magnitude import Magnitude
from recon.quantitative.model import ModelError
from recon.quantitative.models.dce import population_aif
from recon.quantitative.models.ir import IR
from recon.quantitative.models.r2star import R2Star

ONES = np.ones((2, 2))
GIVEN: dict[str, dict[str, Any]] = {
    "VFA": {"TR": 5, "flip_angle": [2, 8, 15]},
    "IR": {"TI": [50, 500, 2000]},
    "LookLocker": {"TI": [12, 57, 102], "TR": 4.5, "flip_angle": 6},
    "ExpDecay": {"TE": [10, 20]},
    "EPG": {"TE": [10, 20, 30]},
    "R2Star": {"TE": [2, 5, 9]},
    "Diff": {"b_value": [0, 500]},
    "ASL": {"t": [2000, 3000], "tau": 1500},
}


def test_every_name_and_alias_finds_its_model() -> None:
    seen: set[str] = set()
    for model in MODELS.values():
        for name in (model.name, *model.aliases):
            assert name.lower() not in seen
            seen.add(name.lower())
            assert model_class(name.upper()) is model


def test_parameters_and_fields_go_by_aliases_and_the_rest_is_left_alone() -> None:
    found = model_from("despot1", {"tr": [5.0, 5, 5], "flip_angle(s)": [2, 8, 15], "TE": 2, "nonsense": "x"}, {"b1": ONES})
    assert found.name == "VFA"
    assert found.contrasts == 3
    assert list(found.fields) == ["fa_corr"]
    assert [parameter.name for parameter in requirements("T1_VFA")[0]] == ["TR", "flip_angle"]


def test_options_and_magnitudes() -> None:
    assert [unknown.name for unknown in model_from("IR", {"TI": [50, 400, 3000]}, fit_efficiency=True).unknowns] == [
        "M0",
        "T1",
        "efficiency",
    ]
    found = model_from("IR", {"TI": [50, 400, 1000, 3000]}, magnitudes=True)
    assert isinstance(found, Magnitude)
    assert found.unknowns[0].real
    with pytest.raises(ModelError, match="VFA has no option fit_b1; it has none"):
        model_from("VFA", GIVEN["VFA"], fit_b1=True)


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if any(p.required for p in model.parameters)])
def test_a_missing_parameter_is_named_with_its_place(name: str) -> None:
    parameter = next(p for p in MODELS[name].parameters if p.required)
    with pytest.raises(ModelError) as caught:
        model_from(name, {})
    assert f"needs {parameter.name}" in str(caught.value)
    assert parameter.where in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("VFA", {"TR": 0.012}, r"TR = 0\.012 looks like seconds; it must be in ms"),
        ("VFA", {"flip_angle": [0.03, 0.1, 0.3]}, "looks like radians"),
        ("VFA", {"flip_angle": [5, 5, 5]}, "flip_angle has 1 different values; at least 2"),
        ("VFA", {"flip_angle": [5]}, "flip_angle has 1 different values"),
        ("VFA", {"TR": [5, 6, 7]}, "TR must be one number, not 3"),
        ("VFA", {"TR": np.nan}, "TR has values that are not finite"),
        ("VFA", {"TR": "fast"}, "TR must be numbers in ms"),
        ("VFA", {"TR": -5}, "TR must not be negative"),
        ("IR", {"TI": [0.05, 0.5, 2]}, "looks like seconds"),
        ("IR", {"TI": [100]}, "TI has 1 different values; at least 2"),
        ("ExpDecay", {"TE": [0.01, 0.1]}, "looks like seconds"),
        ("ExpDecay", {"TE": [10000, 20000]}, "above 5000 ms: check its unit"),
        ("EPG", {"TE": [10, 20, 35]}, "multiples 1, 2, 3"),
        ("EPG", {"refocusing_angle": [180, 120]}, "2 refocusing angles for 3 echoes"),
        ("Diff", {"b_value": [0, 1]}, "looks like ms/um2"),
        ("Diff", {"b_value": [0, 1e9]}, r"above 20000 s/mm2"),
        ("ASL", {"t": [2.0, 3.0]}, "looks like seconds"),
        ("ASL", {}, "needs the map M0"),
        ("LookLocker", {"flip_angle": 95}, "below 90 degrees"),
        ("LookLocker", {"TI_first": 30}, "lies before the first readout"),
        ("NoSuch", {}, "no signal model is called NoSuch"),
        ("VVFA", {}, "did you mean VFA"),
    ],
)
def test_wrong_parameters_are_named(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        model_from(name, {**GIVEN.get(name, {}), **change})


def test_lengths_and_directions_that_do_not_fit() -> None:
    b, g = [0, 1000, 1000, 1000, 1000, 1000, 1000], np.vstack([np.zeros(3), np.eye(3), np.eye(3)])
    with pytest.raises(ModelError, match="b_value has 7, DWI_dir has 6"):
        model_from("DTI", {"b_value": b, "bvecs": g[1:]})
    with pytest.raises(ModelError, match="do not determine M0 and a tensor"):
        model_from("DTI", {"b_value": b, "bvecs": g})
    with pytest.raises(ModelError, match="have no direction"):
        model_from("DTI", {"b_value": [500, *b[1:]], "bvecs": g})
    with pytest.raises(ModelError, match="no unit vectors"):
        model_from("DTI", {"b_value": b, "bvecs": 2 * g})
    with pytest.raises(ModelError, match="three numbers for each contrast"):
        model_from("DTI", {"b_value": b, "bvecs": g[:, :2]})
    with pytest.raises(ModelError, match="do not fit into"):
        model_from("IRLL", {"time_per_slice": 500, "tau": 5, "gradient_delay": 7, "flip_angle": 6, "frames": 12, "spokes": 10})
    signs = {"bss_sign": [1, 1, 1, 1, -1, -1, -1], "even_odd_sign": [1, -1, 1, -1, 1, -1, 1], "same_sign": [0, 0, 1, 0, 0, 1, 0]}
    offsets = {"pos_offset": [1, 1, 1, 1, 0, 0, 0], "neg_offset": [0, 0, 0, 0, 1, 1, 1]}
    with pytest.raises(ModelError, match="do not tell apart the six phases"):
        model_from("B1_comp", {"TE": [10, 12, 14, 16, 18, 20, 22], "kbs": 7.4e9, **signs, **offsets})
    with pytest.raises(ModelError, match="must increase"):
        model_from("DCE", {"t": [0, 20, 10, 30], "aif": [0, 1, 1, 1], "TR": 4, "flip_angle": 15})
    with pytest.raises(ModelError, match="aif is 0"):
        model_from("DCE", {"t": [0, 10, 20, 30], "aif": [0, 0, 0, 0], "TR": 4, "flip_angle": 15})
    with pytest.raises(ModelError, match="no whole number of images"):
        model_from("FFC", {"t": [10, 50, 100, 200, 300, 400, 500], "b": [0.2, 0.02]})
    with pytest.raises(ModelError, match="DESPOT2 needs T1"):
        model_from("DESPOT2", {"TR": 5, "flip_angle": [10, 40]})


def test_maps_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="VFA has no input T1; it takes fa_corr"):
        model_from("VFA", GIVEN["VFA"], {"T1": ONES})
    with pytest.raises(ModelError, match="fa_corr has values that are not finite"):
        model_from("VFA", GIVEN["VFA"], {"fa_corr": ONES * np.nan})
    with pytest.raises(ModelError, match="fa_corr must be real"):
        model_from("VFA", GIVEN["VFA"], {"fa_corr": ONES * 1j})


def test_off_resonance_starts_beyond_the_wrap_of_long_spacings() -> None:
    model = R2Star([2.0, 3.0, 9.0, 16.0])
    truth = np.array([[1, 1j, -1, 0.5], [20, 30, 60, 90], [-400, -90, 210, 450]], complex)
    assert model.guess(model(truth).numpy())[2].real == pytest.approx(truth[2].real, abs=1)


def test_inversion_recovery_from_magnitudes_finds_the_sign() -> None:
    inner = IR([50, 150, 400, 800, 1500, 3000])
    truth = np.array([[1, 1, 1], [200, 900, 2500]], complex)
    start = Magnitude(inner).guess(np.abs(inner(truth).numpy()).astype(complex))
    assert start[1].real == pytest.approx(truth[1].real, rel=0.1)
    assert Magnitude(inner).maps(truth)["M0"].values.dtype.kind == "f"


def test_phases_come_from_the_images_unless_given() -> None:
    model = model_from("Diff", GIVEN["Diff"])
    images = np.exp(1j * np.array([[0.5, 1], [2, -1]]))
    assert model.adapted(images).fields["phase"] == pytest.approx(np.array([[0, 0], [1.5, -2]]))
    given = model_from("Diff", GIVEN["Diff"], {"phase": np.zeros((2, 2))})
    assert given.adapted(images) is given


def test_the_scale_of_the_data_reaches_the_map_of_m0() -> None:
    model = model_from("ASL", GIVEN["ASL"], {"M0": ONES})
    truth = np.array([[[50, 60], [70, 80]], [[800, 900], [1000, 1500]]], complex)
    assert model.scaled(3)(truth).numpy() == pytest.approx(3 * model(truth).numpy())
    assert model.fields["M0"] is not model.scaled(3).fields["M0"]


def test_population_aif_is_parkers() -> None:
    """Peak of about 6 mM in blood some 10 s after arrival, about 1 mM at one minute (their figure 2)."""
    t = np.arange(0, 300, 0.5)
    blood = population_aif(t, 30) * (1 - 0.42)
    assert (blood[t <= 30] == 0).all()
    assert blood.max() == pytest.approx(6, abs=0.3)
    assert t[np.argmax(blood)] - 30 == pytest.approx(10, abs=2)
    assert blood[t == 90.0][0] == pytest.approx(0.95, abs=0.15)
