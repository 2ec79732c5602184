"""``ccnn train`` and ``ccnn list``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccnn_zoo._printable import printable
from ccnn_zoo._tasks import task_of_data
from ccnn_zoo.errors import ConfigurationError, TrainingInterrupted

from ._options import TOKEN
from ._output import say, say_json, show

if TYPE_CHECKING:
    from ._parts import Part


def train(
    recipe: Annotated[str, typer.Option(help="A packaged recipe or a YAML file.")] = "digits",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for checkpoint, curves and history.")] = Path(
        "runs/ccnn"
    ),
    model: Annotated[str | None, typer.Option(help="A network of `ccnn list`, or any of timm's to calibrate.")] = None,
    branches: Annotated[int | None, typer.Option(help="Number K of branches; 1 is the plain network.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="digits, mnist:FOLDER, cifar10:, folder:, hfds/NAME; boxes: voc: or coco:FOLDER."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order, augmentation and noise.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last saved state in the output folder, if there is one.")
    ] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out pictures and boxes that cannot be used, and say which.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard too.")] = False,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="Any other value of the recipe, as NAME=VALUE (YAML).")
    ] = None,
) -> None:
    """Train a network with CSGD; options override the recipe's values.

    Ctrl-C saves the run's state; the same command with --resume goes on from it.

    Example:  ccnn train --recipe digits --branches 8 --set lr=0.05 --output runs/digits8

    Detection:  ccnn train --recipe bccd_detection --data voc:FOLDER --output runs/cells
    """
    from accelerate import PartialState

    from ccnn_zoo.train import Recipe, keep_freed_memory

    named = {"model": model, "branches": branches, "data": data, "epochs": epochs, "seed": seed}
    changes = {name: value for name, value in named.items() if value is not None} | _parsed(values or [])
    if "epochs" in changes:
        changes.setdefault("iterations", None)
    if "iterations" in changes and changes["iterations"] is not None:
        changes.setdefault("epochs", None)
    whole = {**Recipe.load(recipe).to_dict(), **changes}
    part: Part = task_of_data(str(whole["data"])).part(__package__)
    if skip_unreadable:
        whole[part.SKIPS] = True
    resolved = Recipe.from_mapping(whole, source=f"recipe {recipe} as changed")
    keep_freed_memory()
    try:
        result = part.train(resolved, output, resume=resume, tensorboard=tensorboard)
    except TrainingInterrupted as stopped:
        say(stopped, err=True)
        raise typer.Exit(128 + stopped.signal) from stopped  # what a shell reports of such a signal
    if PartialState().is_main_process:
        metric, name = part.FIGURE
        say(f"test {name} {result.record.metrics[metric]:.2f} %, saved to {result.checkpoint}")


def list_networks(
    pattern: Annotated[str, typer.Argument(help="Names to list, e.g. '*cifar*'.")] = "*",
    hub: Annotated[
        str | None, typer.Option(help="List what this user or organisation has published on the Hugging Face Hub.")
    ] = None,
    token: Annotated[bool, TOKEN] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list with an object per network.")] = False,
) -> None:
    """List the networks of the zoo with their sizes: millions of parameters, billions of multiply-adds.

    Example:  ccnn list '*resnet*'
    """
    if hub is not None:
        _list_published(hub, pattern, token, as_json=as_json)
        return
    if token:
        raise ConfigurationError("--token is for --hub: leave it out, or name whose networks to list")
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ccnn_zoo.models import table

    rows = table(pattern)
    if not rows:
        raise ConfigurationError(f"no network is called {pattern!r}; `ccnn list` shows all of them")
    if as_json:
        say_json([asdict(row) for row in rows], indent=2)
        return
    view = Table(
        "name", "K", "trained M", "deployed M", "MACs G", "input", "checkpoints", box=SIMPLE_HEAD, pad_edge=False
    )
    view.columns[0].no_wrap = view.columns[5].no_wrap = True
    for column in view.columns[1:5]:
        column.justify = "right"
    for row in rows:
        view.add_row(
            row.name,
            str(row.branches),
            f"{row.trained_parameters / 1e6:.2f}",
            f"{row.folded_parameters / 1e6:.2f}",
            f"{row.macs / 1e9:.3f}",
            "x".join(map(str, row.input_size)),
            ", ".join(row.checkpoints),
        )
    show(view)


def _list_published(author: str, pattern: str, token: bool, *, as_json: bool) -> None:
    """List networks on the Hub with their errors and sizes: millions of parameters, megabytes of all files."""
    from fnmatch import fnmatchcase

    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from ccnn_zoo.hub import search

    published = search(author, token=token)
    found = [network for network in published if fnmatchcase(network.repo_id.partition("/")[2], pattern)]
    if not found:
        raise ConfigurationError(f"{author} has published no network {pattern!r}; check the spelling of both")
    if as_json:
        say_json([asdict(network) for network in found], indent=2)
        return
    view = Table("repository", "network", "K", "test %", "trained M", "deployed M", "MB", "precisions", box=SIMPLE_HEAD)
    view.columns[0].no_wrap = view.columns[1].no_wrap = True
    for network in found:
        figures = [(kind, network.metrics.get(f"test_{kind.lower()}_percent")) for kind in ("error", "mAP")]
        view.add_row(
            Text(printable(network.repo_id)),
            network.architecture,
            str(network.branches),
            ", ".join(f"{kind} {figure:.2f}" for kind, figure in figures if figure is not None),
            f"{network.trained_parameters / 1e6:.2f}",
            f"{network.deployed_parameters / 1e6:.2f}",
            f"{network.size / 1e6:.1f}",
            ", ".join(network.precisions),
        )
    show(view)


def _parsed(values: list[str]) -> dict[str, object]:
    from ccnn_zoo._files import parsed_yaml

    parsed = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigurationError(f"--set takes NAME=VALUE, got {text!r}")
        parsed[name.strip()] = parsed_yaml(value, f"--set {name}={value}")
    return parsed
