"""What a user sees of a running training."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ccnn_zoo._printable import printable

from ._history import EpochResult


class TrainingProgress:
    """A progress bar on stderr; where stderr is no terminal, one line per epoch instead.

    Args:
        title: what is trained.
        epochs: of the whole run.
        steps: of the whole run.
        shown: False shows nothing.
    """

    def __init__(self, title: str, epochs: int, steps: int, *, shown: bool) -> None:
        self._console = Console(stderr=True, quiet=not shown)
        self._title, self._epochs = printable(title), epochs
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(self._title, total=steps, figures="")
        self._test = ""

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show_start(self, step: int) -> None:
        """Show from where a run goes on, or that it begins."""
        self._bar.update(self._task, completed=step)
        start = f"goes on after step {step}" if step else "begins: no state to go on from"
        self._console.print(f"{self._title}: {start}", markup=False, highlight=False, soft_wrap=True)

    def show_step(
        self, epoch: int, step: int, loss: float, error_percent: float | None, images_per_second: float
    ) -> None:
        """Show running means of the epoch."""
        figures = f"{_figures(loss, error_percent)}{self._test}, {images_per_second:,.0f} images/s"
        description = f"{self._title} {epoch}/{self._epochs}"
        self._bar.update(self._task, completed=step, description=description, figures=figures)

    def show_epoch(self, result: EpochResult) -> None:
        """Show what the epoch ended with."""
        judged = result.judged("test")
        if judged is not None:
            quality, value = judged
            self._test = f", test {quality.word}{value:.2f} %"
        if not self._console.is_terminal:
            self._console.print(
                f"{self._title} {result.epoch}/{self._epochs}: "
                f"{_figures(result.train_loss, result.train_error_percent)}{self._test}, "
                f"{result.images_per_second:,.0f} images/s",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def _figures(loss: float, error_percent: float | None) -> str:
    return f"loss {loss:.3f}" if error_percent is None else f"loss {loss:.3f}, error {error_percent:.2f} %"
