"""`scripts/gpu_check.py` runs to its end and says what failed, so that no time of a GPU is lost; the GPU is a stand-in."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recon import device, gpu_plans
from tests.recon import strict_cupy

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import gpu_check

    return gpu_check


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    modules: dict[str, Any] = strict_cupy.modules()
    modules["cupy"].cuda.Device = lambda: types.SimpleNamespace(synchronize=lambda: None)
    modules["cupy"].cuda.runtime = types.SimpleNamespace(getDeviceProperties=lambda _: {"name": b"stand-in"})
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(device, "_gpu", True)
    monkeypatch.setattr(device, "configure", lambda: None)
    monkeypatch.setattr(device, "warm_up", lambda: None)
    yield
    gpu_plans.clear_pool()


@pytest.mark.usefixtures("gpu")
def test_reconstructions(check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.gpu_reconstructions, "PATIENCE_S", 0)
    file = tmp_path / "result.json"
    status = check.main(["--only", "reconstructions", "--tiny", "--json", str(file)])
    result = json.loads(file.read_text())
    assert result["failed"] == []
    assert status == 0
    found = result["reconstructions"]
    assert len(found) == 20
    for value in found.values():
        assert value["worst"] < value["bound"]
        assert value["floor_bytes_ms"] > 0
        assert value["numpy"]["ms"] > 0
    assert found["l1_wavelet_50"]["resident"]["difference"] < 1e-3
    assert len(check.gpu_reconstructions.table(found).splitlines()) == 22


def test_tensors(check: Any) -> None:
    found = {name: item() for name, item in check.tensors()}
    assert len(found) == 15
    assert all(value["worst"] < value["bound"] for value in found.values()), found


def test_difference(check: Any) -> None:
    found = {name: item() for name, item in check.compare(check.Case(16, coils=3, size=32))}
    assert len(found) == 21
    assert check.failures({"difference": found}) == []


def test_a_failure_is_named_and_does_not_keep_the_rest_from_running(check: Any, tmp_path: Path) -> None:
    report = check.Report(tmp_path / "result.json", None)
    report.run("difference", lambda: [("right", 1e-3), ("wrong", lambda: 0.5), ("broken", lambda: 1 // 0), ("last", lambda: 0.0)])
    report.run("stress", lambda: 1 // 0)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["difference"]["last"] == 0.0
    assert "ZeroDivisionError" in written["difference"]["broken"]["error"]
    assert written["failed"][:2] == ["wrong", "broken"]
    assert written["failed"][2].startswith("stress")


def test_a_run_that_is_cut_keeps_what_was_done(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    program = (
        f"import sys, time; sys.path.insert(0, {str(SCRIPTS)!r}); import gpu_check; from pathlib import Path\n"
        f"report = gpu_check.Report(Path({str(file)!r}), 2)\n"
        "report.run('difference', lambda: [('done', 1e-3), ('endless', lambda: time.sleep(1000))])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 1
    assert "endless" in ended.stderr
    written = json.loads(file.read_text())
    assert written["difference"] == {"done": 1e-3}
    assert written["failed"] == ["difference: not done after 2 s: endless"]
