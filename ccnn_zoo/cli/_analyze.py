"""``ccnn analyze``: the paper's theory on a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._output import say


def analyze(
    source: Annotated[Path, typer.Argument(help="A checkpoint or training folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for JSON and pictures.")] = Path("analysis"),
    data: Annotated[str | None, typer.Option(help="Data to run on with; digits where the training had them.")] = None,
    runs: Annotated[int, typer.Option(help="Runs, which differ in batches and noise.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps of every run.")] = 40,
    lr: Annotated[float | None, typer.Option(help="Constant; a tenth of the recipe's by default.")] = None,
    coordinates: Annotated[int, typer.Option(help="Values of w that are followed.")] = 256,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Start as the training did, with the recipe's learning rate.")
    ] = False,
) -> None:
    """Run a network on for a few steps, several times: Lipschitz constants, the theorem's bound, R, diversity.

    Example:  ccnn analyze runs/digits --output runs/digits/analysis
    """
    from ccnn_zoo import analysis

    found = analysis.analyze(
        source,
        output,
        data=data,
        runs=runs,
        steps=steps,
        lr=lr,
        coordinates=coordinates,
        from_scratch=from_scratch,
    )
    bound, diversity = found.bound, found.diversity
    say(f"largest deviation |mean - E mean| of {runs} runs: {max(bound.measured_sums):.3g}")
    for total, limit, share in zip(bound.totals, bound.threshold_sums, bound.measured_shares, strict=True):
        say(f"at or above {limit:.3g}: probability at most {total:g} by the theorem, {share:g} of the runs")
    branches = ", ".join(f"{error:.2f}" for error in diversity.branch_error_percent)
    say(f"error {diversity.error_percent:.2f} %, of the branches alone {branches} %")
    say(f"two branches disagree on {100 * diversity.disagreement:.2f} % of {diversity.images} images")
    say(f"saved in {output}")
