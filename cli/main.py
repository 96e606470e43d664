"""The command `nas`: one verb a file, each importing what it needs when it runs, so that `--help` is instant."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from cli import (
    adapt,
    check,
    demo,
    demo_moe,
    errors,
    evaluation,
    experts,
    export,
    fit,
    front,
    measure,
    predict,
    search,
    space,
    study,
    tune,
)
from cli.errors import ExitCode
from cli.options import spread
from cli.output import quiet_libraries

app = typer.Typer(
    name="nas",
    help="Sub-networks of a pre-trained transformer that really are smaller and faster on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("fit")(spread(fit.fit, quiet_libraries))
app.command("check")(spread(check.check, quiet_libraries))
app.command("tune")(spread(tune.tune, quiet_libraries))
app.command("space")(spread(space.space, quiet_libraries))
app.command("measure")(spread(measure.measure, quiet_libraries))
app.command("predict")(spread(predict.predict, quiet_libraries))
app.command("search")(spread(search.search, quiet_libraries))
app.command("front")(front.front)
app.command("export")(spread(export.export, quiet_libraries))
app.command("adapt")(spread(adapt.adapt, quiet_libraries))
app.command("eval")(spread(evaluation.evaluate, quiet_libraries))
app.add_typer(study.app, name="study")
app.add_typer(experts.app, name="experts")
app.command("demo")(spread(demo.demo, quiet_libraries))
app.command("demo-moe")(spread(demo_moe.demo_moe, quiet_libraries))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"supernas {version('supernas')}")
        raise typer.Exit


@app.callback()
def _nas(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Sub-networks of a pre-trained transformer that really are smaller and faster on this machine."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code; nothing is raised."""
    try:
        if problem := errors.foreign_kernels():
            raise ValueError(problem)
        code = app(list(sys.argv[1:] if arguments is None else arguments), prog_name="nas", standalone_mode=False)
        if code == ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else ExitCode.OK
    except (Exception, KeyboardInterrupt) as error:
        return errors.report(error)


def main() -> NoReturn:
    """Entry point of the installed command."""
    sys.exit(run())


if __name__ == "__main__":
    main()
