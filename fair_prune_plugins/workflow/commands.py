"""The commands of ``fair-prune``.

Errors that this package raises are printed as one clear message, with exit code 2; ``--debug`` shows the whole
traceback.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.padding import Padding

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.workflow import audit_commands
from fair_prune_plugins.workflow.command_line import Debug, clear_errors, standard_output

if TYPE_CHECKING:
    from fair_prune_plugins.workflow.config import RunConfig

EXIT_CRASHED = 1
"""Exit code of a sweep in which trials crashed; the report is over the others."""

EXIT_NOT_PRUNABLE = 1
"""Exit code of the doctor where nothing of the model can be pruned."""

app = typer.Typer(
    name="fair-prune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Prune networks so that no group of people pays for it, and choose by measured latency and per-group "
    "accuracy.",
)

OUTPUT_OPTION = typer.Option("--output", "-o", help="Run folder. Finished stages in it are not repeated.")
Output = Annotated[Path | None, OUTPUT_OPTION]
OutputWithDefault = Annotated[Path, OUTPUT_OPTION]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Replace a key of the configuration, e.g. --set seed=1. Repeatable."
    ),
]
RunFolderArgument = Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="Folder that a run wrote.")]


@app.command()
def quickstart(
    output: OutputWithDefault = Path("runs/quickstart"), overrides: Overrides = None, debug: Debug = False
) -> None:
    """Compare plain and fairness-aware criteria on real handwritten digits, in under three minutes."""
    with clear_errors(debug):
        from fair_prune_plugins.workflow import config

        text = files("fair_prune_plugins.workflow").joinpath("configs/quickstart.yaml").read_text(encoding="utf-8")
        settings = config.parse(text, origin="quickstart.yaml", overrides=overrides or ())
        _run(settings, Path.cwd(), output)


@app.command()
def run(
    configuration: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="What to do; see `fair-prune explain`.")],
    output: Output = None,
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Carry out a configuration: data, dense network, pruning, fine-tuning, ONNX, timing, report."""
    with clear_errors(debug):
        from fair_prune_plugins.workflow import config

        settings = config.read(configuration, overrides or ())
        folder = output or (Path(settings.output) if settings.output else Path("runs") / configuration.stem)
        _run(settings, configuration.resolve().parent, folder)


@app.command()
def sweep(
    configuration: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="A run, and what to vary under `sweep`.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Sweep folder. Finished trials in it are not repeated.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1024, max=65534, help="Port of NNI's portal; a free one is found without.")
    ] = None,
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Run every criterion, amount and loss of a configuration over seeds, or a tuner's search, as an NNI experiment.

    Exit code 0: all trials finished; 1: some crashed, and the report is over the others; 2: nothing to report.
    """
    with clear_errors(debug):
        from fair_prune_plugins.workflow.sweep.host import require_nni

        require_nni()
        from fair_prune_plugins.workflow import config
        from fair_prune_plugins.workflow.sweep.report import REPORT_FOLDER, print_summary, write_report
        from fair_prune_plugins.workflow.sweep.running import run_sweep

        settings = config.read(configuration, overrides or ())
        folder = output or (Path(settings.output) if settings.output else Path("runs") / configuration.stem)
        base, console = configuration.resolve().parent, standard_output()
        space, course = run_sweep(settings, base=base, output=folder, console=console, port=port)
        print_summary(write_report(space, folder, base, course, console), console)
        console.print(f"\nReport: {folder / REPORT_FOLDER / 'report.html'}", highlight=False, soft_wrap=True)
        if course.crashed:
            raise typer.Exit(EXIT_CRASHED)


@app.command()
def explain(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="A key such as prune.ratios; all keys without.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Explain every key of the configuration: default, what is allowed, what it means."""
    with clear_errors(debug):
        from fair_prune_plugins.workflow.explain import keys

        out = standard_output()
        for one in keys(key):
            where = f"  [dim]with {escape(one.applies)}[/]" if one.applies else ""
            out.print(f"[bold]{escape(one.name)}[/]{where}", highlight=False)
            out.print(Padding(escape(f"{one.meaning}\n{one.allowed}; default: {one.default}"), (0, 0, 0, 4)))


@app.command()
def export(
    folder: RunFolderArgument,
    model: Annotated[str, typer.Option("--model", "-m", help='Name in the report, e.g. "fairgrape 50 %".')],
    output: Annotated[Path, typer.Option("--output", "-o", help="ONNX file to write.")],
    opset: Annotated[int | None, typer.Option(help="ONNX opset, instead of the run's.")] = None,
    debug: Debug = False,
) -> None:
    """Export one model of a run to ONNX, proven on the run's test people."""
    with clear_errors(debug):
        from fair_prune_plugins.workflow.job import export_model

        written = export_model(folder, model, output, opset=opset)["report"]
        parity = written["parity"]
        standard_output().print(
            f"{output}: {written['size'] / 1e6:.2f} MB, opset {written['opset']}; ONNX Runtime equals torch to "
            f"{parity['relative']:.1e} of the outputs' scale on {parity['samples']} test people",
            highlight=False,
        )


@app.command()
def benchmark(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL.onnx ...", help="The first is the one to compare with.")
    ],
    threads: Annotated[int, typer.Option(help="Threads of ONNX Runtime.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Samples per call.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds in which all models are timed in turn.")] = 10,
    seconds: Annotated[float, typer.Option(help="Timed seconds of each model, at least.")] = 1.0,
    json: Annotated[Path | None, typer.Option(help="Write everything measured to this file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a row per model to this file.")] = None,
    debug: Debug = False,
) -> None:
    """Time ONNX models against each other in ONNX Runtime."""
    with clear_errors(debug):
        from fair_prune_plugins import latency

        timed = latency.benchmark(
            _names(models), threads=threads, batch_size=batch_size, rounds=rounds, min_seconds=seconds
        )
        if json is not None:
            timed.write_json(json)
        if csv is not None:
            timed.write_csv(csv)
        standard_output().print(escape(timed.statement()), highlight=False)


@app.command()
def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="Function that returns the network (or the network and its example inputs), e.g. my_models:build; "
            "modules in this folder are found. Without it: versions and known defects of the hosts.",
        ),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--input-shape",
            metavar="C,H,W",
            help="Shape of one input, without the batch; 3,224,224 by default. Repeat it for several inputs.",
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Classes that the network tells apart; its outputs are checked for it.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--options", metavar="KEY=VALUE", help="Argument of the function, e.g. width=32. Repeatable."),
    ] = None,
    ignored: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="LAYER", help="Layer that is to keep its width, e.g. layer1.0. Repeatable."),
    ] = None,
    ratio: Annotated[float, typer.Option(help="Pruning ratio that you have in mind, 0 to 1.")] = 0.5,
    export: Annotated[bool, typer.Option("--export", help="Also try the export to ONNX, with proof.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print everything that was found as JSON instead.")] = False,
    debug: Debug = False,
) -> None:
    """Say what of a network can be pruned, what cannot and why, and which defects of the hosts touch it.

    Exit code 0: something can be pruned; 1: nothing can; 2: the network could not be examined.
    """
    with clear_errors(debug):
        from json import dumps

        from fair_prune_plugins.workflow.doctor import examine, examine_host
        from fair_prune_plugins.workflow.doctor.printing import print_diagnosis
        from fair_prune_plugins.workflow.doctor.request import check_classes, read_request

        if model is None:
            found = examine_host()
        else:
            asked = read_request(
                model,
                shapes=shapes or (),
                classes=classes,
                options=options or (),
                ignored=ignored or (),
                beside=Path.cwd(),
            )
            found = examine(
                asked.model, asked.example_inputs, ratio=ratio, ignored_layers=asked.ignored_layers, export=export
            )
        if found.model is not None and classes is not None:
            check_classes(found.model, classes)
        if json:
            typer.echo(dumps(found.as_dict(), indent=1, allow_nan=False))
        else:
            print_diagnosis(found, standard_output())
        if found.model is not None and not found.can_be_pruned:
            raise typer.Exit(EXIT_NOT_PRUNABLE)


@app.command()
def report(folder: RunFolderArgument, debug: Debug = False) -> None:
    """Write the report of a finished run again, and print its closing table."""
    with clear_errors(debug):
        from fair_prune_plugins.workflow.closing import print_closing
        from fair_prune_plugins.workflow.job import rewrite_report
        from fair_prune_plugins.workflow.results import RunResults

        written = rewrite_report(folder)
        print_closing(RunResults.read_json(written.json), standard_output())
        standard_output().print(f"\nReport: {written.html}", highlight=False, soft_wrap=True)


app.command("audit")(audit_commands.audit)
app.command("check")(audit_commands.check)


def _run(settings: RunConfig, base: Path, folder: Path) -> None:
    from fair_prune_plugins.workflow import job
    from fair_prune_plugins.workflow.closing import print_closing

    console = standard_output()
    results = job.run(settings, base=base, output=folder, console=console)
    print_closing(results, console)
    place = folder / job.REPORT_FOLDER
    console.print(
        f"\nReport: {place / 'report.html'}   Numbers: {place / 'results.json'}", highlight=False, soft_wrap=True
    )


def _names(paths: list[Path]) -> dict[str, Path]:
    """Models by file name, or by whole path where file names repeat."""
    stems = [p.stem for p in paths]
    names = stems if len(set(stems)) == len(stems) else [str(p) for p in paths]
    if len(set(names)) != len(names):
        raise InputError(f"the same file is given twice: {sorted({n for n in names if names.count(n) > 1})}")
    return dict(zip(names, paths, strict=True))
