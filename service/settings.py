"""Settings of the service: defaults, then ``configs/service.yaml``, then a file of one's own, then the environment, then the command line.

Each setting has one name everywhere: ``send_seconds: 60`` in YAML, ``RECONSTREAM_SEND_SECONDS=60`` in the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

PREFIX = "RECONSTREAM_"
NOT_SETTINGS = ("CONFIGS", "SETTINGS")
"""Environment variables with the prefix that mean something else: further config folders; the settings file."""

SERVICE_LINK = re.compile(PREFIX + r"SERVICE_(HOST|PORT)\w*|" + PREFIX + r"PORT_\d+_\w+")
"""Variables (besides ``RECONSTREAM_PORT=tcp://…``) that Kubernetes gives every container beside a service called reconstream."""


class SettingsError(ValueError):
    """A settings file cannot be read, or a setting has an unknown name or an impossible value."""


class Settings(BaseModel):
    """What an operator can set. Sizes are in MiB, times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("localhost", description="address to listen on; localhost = this machine only, * = every address")
    port: int = Field(9002, ge=0, le=65535, description="port to listen on; 0 = any free one")
    workers: int = Field(2, ge=1, description="measurements reconstructed at the same time, each in a process of its own")
    waiting: int = Field(16, ge=0, description="clients that may wait for a worker; further ones are turned away with the reason")
    warm_up: bool = Field(True, description="workers import TensorFlow and make a first NUFFT plan before they take a client")
    rehearse: dict[str, Path] = Field(
        default_factory=dict,
        description="chains that each worker runs before it takes a client, each with a raw file of the protocol (config: file), so that "
        "plans are made and networks compiled before the first scan",
    )
    allow_external: bool = Field(False, description="let configs sent by clients start external programs (<external>)")

    threads: int | None = Field(None, ge=1, description="CPU threads of each worker; empty = all of the machine")
    gpu_memory_mib: int | None = Field(None, ge=1, description="GPU memory of each worker; empty = as needed")
    worker_measurements: int = Field(1000, ge=1, description="measurements after which a worker process is replaced")
    worker_memory_mib: int = Field(16384, ge=1, description="resident memory after a measurement above which a worker process is replaced")

    input_mib: int = Field(64, ge=1, description="received data that may wait for the chain; then the sender has to wait")
    output_mib: int = Field(256, ge=1, description="images that may wait for a client that reads slowly; then the chain has to wait")
    send_seconds: float = Field(60, gt=0, description="a client that takes no image for so long is given up")
    silence_seconds: float = Field(3600, gt=0, description="a client that sends nothing for so long is given up")
    gone_seconds: float = Field(
        30, gt=0, description="a worker that goes on computing for so long after its client has gone is ended and replaced"
    )
    drain_seconds: float = Field(
        600, gt=0, description="how long the rest of a failed measurement is read, so that its sender sees no reset"
    )
    drain_mib: int = Field(65536, ge=1, description="how much of the rest of a failed measurement is read")
    drain_silence_seconds: float = Field(5, gt=0, description="a failed measurement whose sender is silent for so long has ended")
    grace_seconds: float = Field(30, ge=0, description="on SIGTERM: time for running measurements to finish")

    spool: Path | None = Field(None, description="folder that keeps each measurement's raw stream; empty = none is kept")
    spool_mib: int = Field(20480, ge=1, description="size of that folder; the oldest measurements go first")

    storage: Path | None = Field(None, description="folder for noise covariances that later scans depend on; empty = none are kept")

    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="DEBUG, INFO, WARNING or ERROR")

    @field_validator("rehearse", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        """``config=file,config=file`` of the environment, or a list of such from the command line."""
        if value is None:
            return {}
        if not isinstance(value, (str, list, tuple)):
            return value
        texts = value.split(",") if isinstance(value, str) else list(value)
        pairs = [text.strip().partition("=") for text in texts]
        if not all(config and file for config, _, file in pairs):
            raise ValueError("expected CONFIG=FILE")
        return {config: file for config, _, file in pairs}

    @classmethod
    def load(cls, file: Path | str | None = None, **given: Any) -> Settings:
        """Read the settings.

        Args:
            file: a YAML file of one's own; None: the one that ``RECONSTREAM_SETTINGS`` names, if any.
            given: settings of the command line; None values count as not given.

        Raises:
            SettingsError: naming the file or variable and the setting.
        """
        own = file or os.environ.get(PREFIX + "SETTINGS")
        values = _read(files("configs").joinpath("service.yaml").read_bytes(), "configs/service.yaml")
        if own:
            try:
                values |= _read(Path(own).read_bytes(), str(own))
            except OSError as error:
                raise SettingsError(f"{own}: cannot read the settings ({error.strerror})") from error
        values |= _environment(os.environ)
        values |= {name: value for name, value in given.items() if value is not None}
        try:
            return cls(**values)
        except ValidationError as error:
            raise SettingsError(_explain(error)) from None


def _read(text: bytes, place: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise SettingsError(f"{place}{line}: not YAML ({getattr(error, 'problem', None) or ' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{place}: expected lines 'name: value', got {type(values).__name__}")
    unknown = [str(name) for name in values if name not in Settings.model_fields]
    if unknown:
        raise SettingsError(f"{place}: {_unknown(unknown)}")
    return values


def _environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Settings from ``RECONSTREAM_*``; an empty value stands for none."""
    names = {
        key.removeprefix(PREFIX): value
        for key, value in environment.items()
        if key.startswith(PREFIX) and not (SERVICE_LINK.fullmatch(key) or "://" in value)
    }
    values = {key.lower(): value or None for key, value in names.items() if key not in NOT_SETTINGS}
    unknown = [name for name in values if name not in Settings.model_fields]
    if unknown:
        raise SettingsError(f"environment variable {PREFIX}{unknown[0].upper()}: {_unknown(unknown)}")
    return values


def _unknown(names: list[str]) -> str:
    return f"no setting {', '.join(map(repr, names))} (there are: {', '.join(Settings.model_fields)})"


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            problems.append(f"no setting {name!r} (there are: {', '.join(Settings.model_fields)})")
        else:
            problems.append(f"{name}: {problem['msg']}, got {problem['input']!r}")
    return "settings: " + "; ".join(problems)
