"""What a person sees while a run works: a line per stage, and the bars that the stages show themselves."""

from __future__ import annotations

import sys

from rich.console import Console

from fair_prune_plugins.workflow.run_folder import Finished


def show_bars() -> bool:
    """Whether progress bars make sense: on a terminal they replace themselves, in a file they would pile up."""
    return sys.stderr.isatty()


class ConsoleWatcher:
    """Prints one numbered line for each stage.

    Args:
        console: where to print.
        total: number of stages.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = 0

    def started(self, stage: str) -> None:
        """Say what is being worked on; on a terminal, the bar or line that comes next takes its place."""
        self._print(self._done + 1, f"{stage} ...", end="\r" if self._console.is_terminal else "\n")

    def finished(self, stage: str, outcome: Finished) -> None:
        """Say how long it took, or that it was kept from an earlier run."""
        self._done += 1
        how = "[dim]kept[/]" if outcome.reused else f"[green]done[/] in {outcome.seconds:.1f} s"
        self._print(self._done, f"{stage} {how}", end="\n")

    def _print(self, number: int, text: str, *, end: str) -> None:
        width = len(str(self._total))
        self._console.print(f"[dim]\\[{number:>{width}}/{self._total}][/] {text}", highlight=False, end=end)
