"""All methods beside plain Taylor, at equal MACs and equal training, on faces and on a table.

python benchmarks/methods/compare.py run -o runs/methods        (hours on two cores; --quick: minutes)
python benchmarks/methods/compare.py analyse runs/methods       (any time: takes what is finished)

A run is resumed by the same command. The run folders hold weights and what models said of single people: special
category data, which stays on your machine; what ``analyse`` writes beside this script is aggregated over people.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.fairface.running import StudyFailed, run_study  # noqa: E402
from benchmarks.methods import page, picture  # noqa: E402
from benchmarks.methods.bench import MethodsBench  # noqa: E402
from benchmarks.methods.design import ADULT, FACES, QUICK, QUICK_SETTINGS  # noqa: E402
from benchmarks.methods.findings import find  # noqa: E402
from benchmarks.methods.results import read_comparison  # noqa: E402
from benchmarks.methods.tuning import MethodsForeman  # noqa: E402
from fair_prune_plugins.errors import FairPruneError  # noqa: E402
from fair_prune_plugins.workflow.config import read  # noqa: E402
from fair_prune_plugins.workflow.run_folder import MARKER  # noqa: E402
from fair_prune_plugins.workflow.stages import pick_device  # noqa: E402

DESIGNS = {"adult": ADULT, "faces": FACES}
NOTHING = "{run} holds no comparison; make one with `compare.py run -o {run}`"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make the networks that are not made yet")
    run.add_argument("data", nargs="*", metavar="DATA", help=f"of {', '.join(DESIGNS)}; all, in this order")
    run.add_argument("-o", "--output", type=Path, help="folder of run folders; runs/methods, quick runs/methods-quick")
    run.add_argument("--quick", action="store_true", help="some minutes: few networks, nothing tuned, wide intervals")
    run.add_argument("--device", help="cpu, cuda or auto; auto takes a GPU where there is one")
    run.add_argument("--workers", type=int, help="processes; 2 on a CPU (one thread each), 1 on a GPU")
    run.add_argument("--threads", type=int, default=1, help="of torch in each process")
    run.add_argument("--seeds", type=int, help="of every method")
    run.add_argument("--headline-seeds", type=int, help="of the methods that are combined with losses, if more")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a key of DATA.yaml")
    analyse = commands.add_parser("analyse", help="write DATA.md and DATA.png from what is finished")
    analyse.add_argument("run", type=Path, help="folder of run folders")
    analyse.add_argument("--to", type=Path, default=HERE, help="folder to write into; beside this script")
    analyse.add_argument("--resamples", type=int, default=2000)
    options = parser.parse_args(arguments)
    for name in options.data if options.command == "run" else ():
        if name not in DESIGNS:
            parser.error(f"there is no data set {name!r}; there are {', '.join(DESIGNS)}")
    try:
        if options.command == "run":
            for name in options.data or DESIGNS:
                _run(name, options)
        else:
            _analyse(options.run, options.to, options.resamples)
    except (FairPruneError, StudyFailed) as error:
        sys.exit(f"error: {error}")


def _run(name: str, options: argparse.Namespace) -> None:
    design = QUICK if options.quick else DESIGNS[name]
    if options.seeds is not None:
        design = replace(design, seeds=options.seeds, headline_seeds=max(options.seeds, design.headline_seeds))
    if options.headline_seeds is not None:
        design = replace(design, headline_seeds=options.headline_seeds)
    device = [] if options.device is None else [f"device={options.device}"]
    config = read(HERE / f"{name}.yaml", [*(QUICK_SETTINGS if options.quick else ()), *device, *options.set])
    on_cpu = pick_device(config.device).type == "cpu"
    run_study(
        config,
        design,
        (options.output or Path("runs/methods-quick" if options.quick else "runs/methods")) / name,
        base=HERE,
        workers=options.workers or (2 if on_cpu else 1),
        threads=options.threads,
        bench_type=MethodsBench,
        foreman_type=MethodsForeman,
    )


def _analyse(run: Path, to: Path, resamples: int) -> None:
    names = [name for name in DESIGNS if (run / name / MARKER).is_file()]
    if not names:
        sys.exit(f"error: {NOTHING.format(run=run)}")
    to.mkdir(parents=True, exist_ok=True)
    for name in names:
        findings = find(read_comparison(run / name), resamples=resamples)
        picture.draw(findings, to / f"{name}.png")
        print(page.write(findings, to / f"{name}.md"))


if __name__ == "__main__":
    main()
