"""How good is the forecast from the dense network alone? Areas under ROC curves and rank correlations on real faces.

python benchmarks/audit/forecast.py run -o runs/audit           (some minutes on one core; --quick: one or two)
python benchmarks/audit/forecast.py analyse runs/audit          (writes forecast.md and forecast.json)

The folder of a finished face study (benchmarks/fairface/study.py) is analysed alike; its group gradients are made by

python benchmarks/audit/forecast.py gradients runs/study -o runs/study-gradients
python benchmarks/audit/forecast.py analyse runs/study --gradients runs/study-gradients --name study

A run is resumed by the same command. The run folder holds weights and what models said of single people: special
category data, which stays on your machine; what ``analyse`` writes is aggregated over people.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.audit import judged, making, page  # noqa: E402
from benchmarks.fairface.design import Design  # noqa: E402
from fair_prune_plugins.errors import FairPruneError  # noqa: E402
from fair_prune_plugins.workflow.config import read  # noqa: E402

QUICK = ("training.epochs=3", "finetune.epochs=1", "prune.macs=[0.25]")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make the networks that are not made yet")
    run.add_argument("-o", "--output", type=Path, help="run folder; runs/audit, with --quick runs/audit-quick")
    run.add_argument("--quick", action="store_true", help="a minute or two: two seeds, hardly trained")
    run.add_argument("--seeds", type=int, help="dense networks; 3, with --quick 2")
    run.add_argument("--most", type=int, help="people per group for the Hessian's eigenvalue; 16, with --quick 8")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a key of faces.yaml")
    curved = commands.add_parser("gradients", help="group gradients of a finished study's dense networks")
    curved.add_argument("study", type=Path, help="run folder of the study; only read")
    curved.add_argument("-o", "--output", type=Path, required=True, help="folder to write into")
    curved.add_argument("--seeds", type=int, default=3)
    curved.add_argument("--most", type=int, default=16, help="people per group for the Hessian's eigenvalue")
    analyse = commands.add_parser("analyse", help="write the page from what is finished")
    analyse.add_argument("run", type=Path, help="run folder")
    analyse.add_argument("--gradients", type=Path, help="folder of the group gradients, if not the run folder")
    analyse.add_argument("--methods", nargs="*", help="criteria to look at; all")
    analyse.add_argument("--to", type=Path, default=HERE, help="folder to write into; beside this script")
    analyse.add_argument("--name", default="forecast", help="of the files written")
    analyse.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args(arguments)
    try:
        if options.command == "run":
            _run(options)
        elif options.command == "gradients":
            making.add_gradients(options.study, options.output, range(options.seeds), options.most)
        else:
            found = judged.judge_run(options.run, options.gradients or options.run, options.methods, options.resamples)
            options.to.mkdir(parents=True, exist_ok=True)
            print(page.write(found, options.to, options.name))
    except FairPruneError as error:
        sys.exit(f"error: {error}")


def _run(options: argparse.Namespace) -> None:
    seeds = options.seeds or (2 if options.quick else 3)
    making.make(
        read(HERE / "faces.yaml", [*(QUICK if options.quick else ()), *options.set]),
        Design(seeds=seeds, headline_seeds=seeds, loss_criteria=("taylor",), stopovers=()),
        options.output or Path("runs/audit-quick" if options.quick else "runs/audit"),
        base=HERE,
        most=options.most or (8 if options.quick else 16),
    )


if __name__ == "__main__":
    main()
