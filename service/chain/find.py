"""Finding a configuration by the name a client sends, without ever leaving the folders meant for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from service.chain.errors import ConfigError, Problem, nearest


def config_folders() -> list[Path]:
    """Folders searched by default: those of $RECONSTREAM_CONFIGS, then the packaged ones."""
    import configs

    packaged = Path(configs.__file__).resolve().parent
    own = [Path(part) for part in os.environ.get("RECONSTREAM_CONFIGS", "").split(os.pathsep) if part]
    return [*own, packaged, packaged / "stock"]


def list_configs(folders: Sequence[Path]) -> dict[str, Path]:
    """Every configuration by file name; of two with one name the earlier folder's."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.xml")):
            found.setdefault(path.name, path)
    return found


def config_file(config: str) -> Path | None:
    """The file that `config` is the path of; None where it is the name of a configuration.

    Raises `ConfigError` for what can only be a path (it begins with ``/``, ``./`` or ``../``) and leads to no file.
    """
    path = Path(config)
    if path.is_file():
        return path
    if path.is_absolute() or config.startswith(("./", "../")):
        raise ConfigError(config, [Problem(0, "", "it is a folder, not a configuration" if path.is_dir() else "there is no such file")])
    return None


def find_config(name: str, folders: Sequence[Path]) -> tuple[Path, bytes]:
    """Path and content of the configuration `name`, with or without ``.xml``; anything from a NUL on is ignored.

    Raises `ConfigError` for a name that leads out of the folders, and for an unknown one naming the nearest.
    """
    wanted = name.split("\0")[0].strip()
    parts = PurePosixPath(wanted.replace("\\", "/"))
    if not parts.name or parts.is_absolute() or ".." in parts.parts or ":" in wanted:
        raise ConfigError(
            repr(wanted), [Problem(0, "", "a configuration is asked for by its name in the config folder, without '..' or a leading '/'")]
        )
    file = parts if parts.suffix == ".xml" else parts.with_name(parts.name + ".xml")
    for folder in folders:
        try:
            path = (folder / file).resolve()
            if path.is_relative_to(folder.resolve()) and path.is_file():
                return path, path.read_bytes()
        except (OSError, RuntimeError):  # a name the file system cannot have, a link in a circle
            continue
    known = list_configs(folders)
    raise ConfigError(repr(wanted), [Problem(0, "", f"there is no such configuration{nearest(str(file), known)}")])
