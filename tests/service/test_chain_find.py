"""Finding configurations by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.chain import ConfigError, config_folders, find_config, list_configs, load


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two config folders; a secret beside them, and links to it in the first."""
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "sub").mkdir(parents=True)
    two.mkdir()
    (one / "radial.xml").write_bytes(b"radial of one")
    (one / "sub" / "deep.xml").write_bytes(b"deep")
    (one / "service.yaml").write_bytes(b"not a chain")
    (two / "radial.xml").write_bytes(b"radial of two")
    (two / "spiral.xml").write_bytes(b"spiral")
    (tmp_path / "secret.xml").write_bytes(b"secret")
    (tmp_path / "one-secret").mkdir()
    (tmp_path / "one-secret" / "a.xml").write_bytes(b"secret")
    (one / "link.xml").symlink_to(tmp_path / "secret.xml")
    (one / "out").symlink_to(tmp_path)
    return [one, two]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("radial", b"radial of one"),
        ("radial.xml", b"radial of one"),
        ("radial.xml\0\0\0rest", b"radial of one"),
        (" spiral ", b"spiral"),
        ("sub/deep", b"deep"),
        ("./radial", b"radial of one"),
    ],
)
def test_names(folders: list[Path], name: str, content: bytes) -> None:
    path, found = find_config(name, folders)
    assert found == content
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "name",
    [
        "",
        "\0radial",
        "../secret",
        "sub/../../secret",
        "/etc/passwd",
        "link",
        "out/secret",
        "..\\secret",
        "C:\\secret",
        "../one-secret/a",
        ".",
        "~/x",
        "service.yaml",
        "sub",
    ],
)
def test_nothing_outside_is_read(folders: list[Path], name: str) -> None:
    with pytest.raises(ConfigError):
        find_config(name, folders)


def test_absolute_path_of_a_config_is_no_name(folders: list[Path]) -> None:
    with pytest.raises(ConfigError, match="by its name"):
        find_config(str(folders[0] / "radial.xml"), folders)


@given(st.text(st.sampled_from("./\\abradil~:\0x")))
def test_no_name_leads_out(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.getbasetemp() / "find"
    folder = root / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "a.xml").write_bytes(b"outside")
    (folder / "b.xml").write_bytes(b"inside")
    try:
        _, content = find_config(name, [folder])
    except ConfigError:
        return
    assert content == b"inside"


def test_an_unknown_name_gets_the_nearest(folders: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"'radail'.*did you mean 'radial.xml'"):
        find_config("radail", folders)


def test_a_name_too_long_for_the_file_system(folders: list[Path]) -> None:
    with pytest.raises(ConfigError, match="no such configuration"):
        find_config("a" * 1020, folders)


def test_the_operators_folders_come_first(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECONSTREAM_CONFIGS", os.pathsep.join(map(str, folders)))
    assert config_folders()[:2] == folders
    assert list_configs(config_folders())["radial.xml"] == folders[0] / "radial.xml"


def test_packaged_configurations_load() -> None:
    packaged = list_configs(config_folders())
    for path in packaged.values():
        load(path.read_bytes(), source=path.name)
