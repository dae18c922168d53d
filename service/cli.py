"""The command line. Every command imports its own module when it runs, so that help is instant and `serve` listens at once."""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer
from rich.console import Console

from service.quantitative.command import fit

if TYPE_CHECKING:
    from service.report import Report

WORKER_PORT = 18000
"""The port of Gadgetron's own examples of `<connect>`."""

F = TypeVar("F", bound=Callable[..., None])

app = typer.Typer(
    name="reconstream",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Streaming MRI reconstruction: a scanner's readouts in (ISMRMRD), images out while the scan is running.\n\n"
    "Exit status: 0 done, 1 failed (the last line on stderr says why), 2 wrong usage.",
)
_state = {"debug": False}
_stderr = Console(stderr=True, highlight=False, soft_wrap=True)


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="show where an error was raised")] = False) -> None:
    _state["debug"] = debug


def _reported(command: F) -> F:
    """End a failed command with one line that says why, and status 1."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            _stderr.print("interrupted", style="bold red")
            raise typer.Exit(130) from None
        except Exception as error:
            if _state["debug"]:
                traceback.print_exc()
            _fail(_describe(error))

    return cast("F", wrapper)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    known = type(error).__module__.split(".")[0] in ("service", "gadgets", "recon") or type(error) is ValueError
    return str(error) if known and str(error) else f"{type(error).__name__}: {error} (--debug shows where)"


def _fail(message: str) -> None:
    _stderr.print("[bold red]error:[/] ", end="")
    _stderr.print(message, markup=False)
    raise typer.Exit(1)


def _pairs(values: list[str] | None) -> dict[str, str]:
    pairs = {}
    for value in values or []:
        name, equals, content = value.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{value!r} is not of the form name=value", param_hint="--parameter")
        pairs[name] = content
    return pairs


Host = Annotated[str | None, typer.Option(help="address to listen on \\[default: this machine only]; 0.0.0.0 = every network")]
Port = Annotated[int | None, typer.Option("--port", "-p", help="port to listen on", min=0, max=65535)]
SettingsFile = Annotated[Path | None, typer.Option("--settings", help="service settings (YAML); see configs/service.yaml", dir_okay=False)]
LogLevel = Annotated[str | None, typer.Option(help="DEBUG, INFO, WARNING or ERROR")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of each worker", min=1)]
GpuMemory = Annotated[int | None, typer.Option(help="GPU memory of each worker in MiB", min=1)]
Workers = Annotated[int | None, typer.Option(help="measurements reconstructed at the same time", min=1)]
AllowExternal = Annotated[bool | None, typer.Option("--allow-external", help="let configs that clients send start external programs")]
Rehearse = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CONFIG=FILE", help="run this chain in every worker before the first client, with a raw file of the protocol; repeatable"
    ),
]
Parameter = Annotated[
    list[str] | None,
    typer.Option(
        "--parameter", "-P", metavar="NAME=VALUE", help="set a property of the config: name=value or name@gadget=value; repeatable"
    ),
]


@app.command()
@_reported
def serve(
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    spool: Annotated[Path | None, typer.Option(help="keep each measurement's raw stream in this folder, to replay it")] = None,
    spool_mib: Annotated[int | None, typer.Option(help="size of that folder in MiB; the oldest go first", min=1)] = None,
    storage: Annotated[Path | None, typer.Option(help="keep noise covariances in this folder, for later scans")] = None,
    threads: Threads = None,
    gpu_memory_mib: GpuMemory = None,
    rehearse: Rehearse = None,
    allow_external: AllowExternal = None,
    settings: SettingsFile = None,
    log_level: LogLevel = None,
) -> None:
    """Reconstruct for scanners and Gadgetron clients (port 9002).

    Listens at once; clients wait in a queue until a worker process has warmed up. SIGTERM lets running measurements finish.
    """
    from service.server import serve as run
    from service.settings import Settings

    chosen = Settings.load(
        settings,
        host=host,
        port=port,
        workers=workers,
        spool=spool,
        spool_mib=spool_mib,
        storage=storage,
        threads=threads,
        gpu_memory_mib=gpu_memory_mib,
        rehearse=rehearse or None,
        allow_external=allow_external,
        log_level=log_level,
    )
    run(chosen)


@app.command()
@_reported
def worker(
    host: Host = None,
    port: Port = WORKER_PORT,
    workers: Workers = None,
    threads: Threads = None,
    gpu_memory_mib: GpuMemory = None,
    rehearse: Rehearse = None,
    allow_external: AllowExternal = None,
    settings: SettingsFile = None,
    log_level: LogLevel = None,
) -> None:
    """Reconstruct for a real Gadgetron, as the warm end of its `<connect>`.

    The chain is named in the `<configuration>` of the Gadgetron's `<external>` node.
    Takes many measurements, one after another and at once.
    """
    from service.settings import Settings
    from service.worker import serve_worker

    chosen = Settings.load(
        settings,
        host=host,
        port=port,
        workers=workers,
        threads=threads,
        gpu_memory_mib=gpu_memory_mib,
        rehearse=rehearse or None,
        allow_external=allow_external,
        log_level=log_level,
    )
    serve_worker(chosen)


@app.command()
@_reported
def replay(
    files: Annotated[
        list[Path], typer.Argument(help="ISMRMRD HDF5 files, or raw streams kept by `serve --spool`", exists=True, dir_okay=False)
    ],
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="config: a file of yours, or a name \\[default: what a raw stream asked for]")
    ] = None,
    host: Annotated[str, typer.Option("--host", "-a", help="server to send to")] = "localhost",
    port: Annotated[int, typer.Option("--port", "-p", help="its port", min=1, max=65535)] = 9002,
    local: Annotated[bool, typer.Option("--local", help="reconstruct in this process, without a server")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="ISMRMRD HDF5 file for the images")] = None,
    out_group: Annotated[str | None, typer.Option("--out-group", "-G", help="group in it \\[default: date and time]")] = None,
    in_group: Annotated[str, typer.Option("--in-group", "-g", help="group of the raw data")] = "dataset",
    png: Annotated[Path | None, typer.Option(help="folder for pictures of the images")] = None,
    gif: Annotated[bool, typer.Option("--gif", help="with --png: also an animation of each series")] = False,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="send at the pace of the scan (time stamps), not as fast as possible")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="JSON file for counts, latencies, errors")] = None,
    parameter: Parameter = None,
    expect: Annotated[int | None, typer.Option(help="images that must come of each file \\[default: at least one]", min=0)] = None,
    wait: Annotated[float, typer.Option(help="how long to wait for a server that starts, in s", min=0)] = 10.0,
    timeout: Annotated[float, typer.Option(help="silence after which the server is given up, in s", min=0)] = 900.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="only errors")] = False,
) -> None:
    """Send recorded raw data through a reconstruction and keep the images.

    Fails (status 1) when the server reports an error, ends without CLOSE, or sends fewer images than must come.
    """
    from service.outputs import check_outputs
    from service.report import write_reports

    check_outputs(None, report=report)
    parameters = _pairs(parameter)
    reports: list[Report] = []
    for file in files:
        group = out_group
        if len(files) > 1:
            group = f"{out_group} {file.stem}" if out_group else file.stem
        common: dict[str, Any] = {
            "output": output,
            "out_group": group,
            "in_group": in_group,
            "pictures": png / file.stem if png is not None and len(files) > 1 else png,
            "animate": gif,
            "realtime": realtime,
            "parameters": parameters,
            "expect": expect,
        }
        with _progress(file, in_group, quiet) as progress:
            if local:
                from service.local import replay_local

                _quiet_log()

                reports.append(replay_local(file, config, progress=progress, **common))
            else:
                from service.client import replay as send

                reports.append(send(file, config, host, port, wait_s=wait, timeout_s=timeout, progress=progress, **common))
        _print(reports[-1], quiet)
    if report is not None:
        write_reports(reports, report)
    if not all(one.ok for one in reports):
        raise typer.Exit(1)


@app.command()
@_reported
def stream(
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="config: a file of yours, or a name; needed unless the input brings one")
    ] = None,
    input: Annotated[str, typer.Option("--input", "-i", help="ISMRMRD stream (file or named pipe), ISMRMRD HDF5, or - for stdin")] = "-",
    output: Annotated[
        str, typer.Option("--output", "-o", help="ISMRMRD stream (file or named pipe), *.h5 for HDF5, or - for stdout")
    ] = "-",
    parameter: Parameter = None,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR")] = "INFO",
) -> None:
    """Reconstruct a stream from a pipe into a pipe (Tyger, shell pipelines).

    The input begins with HEADER, as `ismrmrd_hdf5_to_stream` writes it, or with CONFIG; the output repeats HEADER, then come the images,
    then CLOSE. Logs go to stderr.
    """
    from service.logs import set_up
    from service.pipes import stream as run

    set_up(log_level)
    run(config, input, output, parameters=_pairs(parameter))


app.command()(_reported(fit))


@app.command()
@_reported
def check(
    config: Annotated[str, typer.Argument(help="config: a file of yours, or a name")],
    parameter: Parameter = None,
) -> None:
    """Check a config without running it: print its chain, or every fault with its line and remedy."""
    from service.chain import Policy, load
    from service.local import read_config

    name, xml = read_config(config)
    typer.echo(load(xml, source=name, overrides=_pairs(parameter), policy=Policy(allow_external=True)).describe())


@app.command("list")
@_reported
def list_(
    name: Annotated[str | None, typer.Argument(help="show only gadgets and configs whose name contains this")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """List the gadgets with their parameters, the Gadgetron names they answer to, and the configs."""
    from service.catalogue import catalogue, print_catalogue

    found = catalogue(name or "")
    if not found["gadgets"] and not found["configs"]:
        _fail(f"no gadget or config is called {name!r}")
    if as_json:
        typer.echo(json.dumps(found, indent=1, default=str))
    else:
        print_catalogue(found, Console(highlight=False))


@app.command()
@_reported
def health(
    host: Annotated[str, typer.Option("--host", "-a", help="server to ask")] = "localhost",
    port: Annotated[int, typer.Option("--port", "-p", help="its port", min=1, max=65535)] = 9002,
    connect_only: Annotated[
        bool, typer.Option("--connect-only", help="only connect: for `reconstream worker`, which takes no queries")
    ] = False,
    timeout: Annotated[float, typer.Option(help="how long to wait for the answer, in s", min=0.1)] = 5.0,
) -> None:
    """Ask a server whether it answers (for container health checks)."""
    from service.client import ask, connect

    if connect_only:
        connect(host, port, 0).close()
    else:
        typer.echo(ask(host, port, timeout_s=timeout).strip())


def main() -> None:
    """Entry point of ``reconstream``."""
    app()


class _progress:
    """A progress bar on a terminal, nothing elsewhere. Entering gives the callback for `replay`, or None."""

    def __init__(self, file: Path, group: str, quiet: bool) -> None:
        self._bar: Any = None
        self._file, self._group, self._quiet = file, group, quiet

    def __enter__(self) -> Callable[[int, int], None] | None:
        if self._quiet or not _stderr.is_terminal:
            return None
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from service.files import read_measurement

        total = read_measurement(self._file, self._group).count
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[images]} images"))
        self._bar = Progress(*columns, TimeElapsedColumn(), console=_stderr, transient=True)
        task = self._bar.add_task(self._file.name, total=total, images=0)
        self._bar.start()
        return lambda sent, images: self._bar.update(task, completed=sent, images=images)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _quiet_log() -> None:
    """What the session has to say is in the report; its log, with tracebacks, is for --debug."""
    import logging

    from service.logs import set_up

    set_up("INFO")
    if not _state["debug"]:
        logging.getLogger("reconstream").setLevel(logging.CRITICAL)


def _print(report: Report, quiet: bool) -> None:
    if not quiet:
        for text in (text for text in report.texts if text.strip() not in report.errors):
            _stderr.print(f"server: {text.strip()}", style="dim", markup=False)
        typer.echo(report.line())
    for problem in report.problems:
        _stderr.print(f"{report.file}: {problem}", style="red", markup=False)


if __name__ == "__main__":
    main()
