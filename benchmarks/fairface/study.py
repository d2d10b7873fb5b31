"""Criterion x loss x MACs on faces, over seeds: make the networks, and say what they show.

python benchmarks/fairface/study.py run -o runs/study        (about four hours on two cores; --quick: minutes)
python benchmarks/fairface/study.py analyse runs/study       (any time: takes what is finished)

A run is resumed by the same command. The run folder holds weights and what models said of single people: special
category data, which stays on your machine; what ``analyse`` writes beside this script is aggregated over people.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.fairface import page, picture  # noqa: E402
from benchmarks.fairface.design import QUICK, QUICK_SETTINGS, Design  # noqa: E402
from benchmarks.fairface.findings import find  # noqa: E402
from benchmarks.fairface.results import read_study  # noqa: E402
from benchmarks.fairface.running import StudyFailed, run_study  # noqa: E402
from fair_prune_plugins.errors import FairPruneError  # noqa: E402
from fair_prune_plugins.workflow.config import read  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make the networks that are not made yet")
    run.add_argument("-o", "--output", type=Path, help="run folder; runs/study, with --quick runs/study-quick")
    run.add_argument("--quick", action="store_true", help="some minutes: few networks, wide intervals")
    run.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    run.add_argument("--workers", type=int, help="processes; 2 on a CPU (one thread each), 1 on a GPU")
    run.add_argument("--threads", type=int, default=1, help="of torch in each process")
    run.add_argument("--seeds", type=int, help="of the complete factorial")
    run.add_argument("--headline-seeds", type=int, help="of the headline comparisons")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a key of study.yaml")
    analyse = commands.add_parser("analyse", help="write study.md and study.png from what is finished")
    analyse.add_argument("run", type=Path, help="run folder")
    analyse.add_argument("--to", type=Path, default=HERE, help="folder to write into; beside this script")
    analyse.add_argument("--resamples", type=int, default=2000)
    options = parser.parse_args(arguments)
    try:
        if options.command == "run":
            _run(options)
        else:
            _analyse(options.run, options.to, options.resamples)
    except (FairPruneError, StudyFailed) as error:
        sys.exit(f"error: {error}")


def _run(options: argparse.Namespace) -> None:
    design = QUICK if options.quick else Design()
    changes = {
        name: value
        for name, value in (("seeds", options.seeds), ("headline_seeds", options.headline_seeds))
        if value is not None
    }
    settings = [*(QUICK_SETTINGS if options.quick else ()), f"device={options.device}", *options.set]
    run_study(
        read(HERE / "study.yaml", settings),
        Design(**{**vars(design), **changes}),
        options.output or Path("runs/study-quick" if options.quick else "runs/study"),
        base=HERE,
        workers=options.workers or (2 if options.device == "cpu" else 1),
        threads=options.threads,
    )


def _analyse(run: Path, to: Path, resamples: int) -> None:
    study = read_study(run)
    findings = find(study, resamples=resamples)
    to.mkdir(parents=True, exist_ok=True)
    picture.draw(findings, to / "study.png")
    text = page.write(findings, to / "study.md")
    print(text)


if __name__ == "__main__":
    main()
