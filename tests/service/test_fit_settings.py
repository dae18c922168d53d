"""Settings of a fit from PyQMRI's files and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from recon.quantitative.settings import Settings
from service.quantitative.command import _value
from service.quantitative.outputs import file_stem
from service.quantitative.settings import build_settings, truth, weights_of
from service.quantitative.source import SourceError

_FILE = """[TGV]
max_iters = 1000
start_iters = 10
max_gn_it = 7
lambd = 1e0
gamma = 1e-3
delta_max = 1e500
beta = 15
display_iterations = 0
alpha_ratio = 2

[TV]
gamma = 5e-4
"""


def test_a_pyqmri_file(tmp_path: Path) -> None:
    (tmp_path / "mine.ini").write_text(_FILE)
    settings, notes = build_settings("TGV", str(tmp_path / "mine"), {}, 128**2, 0.5)
    assert (settings.max_iters, settings.max_gn_it, settings.dz, settings.alpha_ratio) == (1000, 7, 0.5, 2)
    # PyQMRI scales slices of any size to the same energy: the weight of a slice of 128 x 128 is four times ours.
    assert settings.gamma == pytest.approx(4e-3)
    assert settings.delta_max == float("inf")
    assert "beta, display_iterations" in notes[0]
    assert build_settings("tv", str(tmp_path / "mine.ini"))[0].gamma == 5e-4


def test_weights_of_a_pyqmri_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.ini"
    path.write_text("[TGV]\nweights = 1, 0.5\n[TV]\nmax_iters = 5\n")
    assert weights_of("TGV", str(path)) == [1, 0.5]
    assert weights_of("tv", str(path)) is None
    assert weights_of("TGV", "default") is None
    assert build_settings("TGV", str(path))[1] == []
    path.write_text("[TGV]\nweights = one\n")
    with pytest.raises(SourceError, match="numbers with commas"):
        weights_of("TGV", str(path))


def test_changes_win_and_default_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert build_settings("TGV", "default") == (Settings("TGV"), [])
    Path("default.ini").write_text(_FILE)
    assert build_settings("TGV", "default", {"gamma": "2e-3", "MAX_GN_IT": "3"})[0].gamma == 2e-3
    assert build_settings("NoReg", "default")[0].reg_type == "none"


@pytest.mark.parametrize(
    ("reg", "text", "changes", "words"),
    [
        ("TVV", "", {}, "TGV, TV"),
        ("ICTV", _FILE, {}, "no section"),
        ("TGV", "[TGV]\ngama = 1", {}, "did you mean gamma"),
        ("TGV", "[TGV]\nmax_gn_it = many", {}, "is no number"),
        ("TGV", "gamma = 1", {}, "cannot be read"),
        ("TGV", _FILE, {"max_gn_it": "0"}, "at least 1"),
        ("TGV", _FILE, {"precond": "maybe"}, "True or False"),
    ],
)
def test_faults(tmp_path: Path, reg: str, text: str, changes: dict[str, str], words: str) -> None:
    (tmp_path / "x.ini").write_text(text)
    with pytest.raises(SourceError, match=words):
        build_settings(reg, str(tmp_path / "x"), changes)


def test_values_of_the_command_line(tmp_path: Path) -> None:
    assert _value("1,2.5, 3") == [1, 2.5, 3]
    assert _value("12") == 12
    assert _value("1 0 0;0 1 0") == [[1, 0, 0], [0, 1, 0]]
    assert _value("true") is True
    assert _value("user_float[1]") == "user_float[1]"
    (tmp_path / "a.bval").write_text("0 500 1000 1500\n")
    assert _value(str(tmp_path / "a.bval")) == [0, 500, 1000, 1500]
    (tmp_path / "a.bvec").write_text("1 0 0 1\n0 1 0 1\n0 0 1 1\n")
    assert _value(str(tmp_path / "a.bvec")) == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
    assert truth("Yes")
    with pytest.raises(ValueError, match="neither"):
        truth("perhaps")


def test_files_are_named_by_parameter_and_unit() -> None:
    names = [file_stem(*pair) for pair in (("T1", "ms"), ("T1_sd", "ms"), ("M0", ""), ("M0_sd", ""), ("ADC", "1e-3 mm2/s"), ("R", "1/s"))]
    assert names == ["T1_ms", "T1_ms_sd", "M0", "M0_sd", "ADC_1e-3mm2_per_s", "R_per_s"]
