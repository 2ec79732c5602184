"""What an experiment writes: Markdown with its pictures, and the records from which both were computed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from documents import replacing, write
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ._cells import Record
from ._statistics import RULE


@dataclass
class Document:
    """One page of results.

    Args:
        name: of its files, without a suffix.
        title: heading.
        lines: Markdown under it.
        records: of all cells that it speaks of.
        pictures: by file name.
    """

    name: str
    title: str
    lines: list[str]
    records: list[Record]
    pictures: dict[str, Figure] = field(default_factory=dict)

    def write(self, place: Path, command: str, wanted: int) -> Path:
        """Write ``NAME.md``, ``NAME.json`` and the pictures into ``place``; return the first.

        Args:
            place: folder.
            command: by which it was made.
            wanted: number of cells that the experiment has.
        """
        for name, figure in self.pictures.items():
            with replacing(place / name) as temporary:
                FigureCanvasAgg(figure).print_png(temporary)
        write(place / f"{self.name}.json", [json.dumps([record.as_json() for record in self.records], indent=1)])
        head = [f"# {self.title}", "", f"Written by `{command}`; the cells' records are in {self.name}.json.", ""]
        if len(self.records) < wanted:
            ended = f"{len(self.records)} of {wanted} trainings"
            head += [f"**Not finished: {ended}.** Figures are over the seeds that are there.", ""]
        path = place / f"{self.name}.md"
        write(path, [*head, *self.lines, "", "## How", "", *provenance(self.records)])
        return path


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def provenance(records: Sequence[Record]) -> list[str]:
    """Return what was run, where, on which data and for how long, from the records."""
    if not records:
        return ["No cell was run."]
    ended = [r for r in records if "seconds" in r.measured]
    lines = [f"- {RULE}", *(f"- {text}" for text in _distinct(records, _data_text))]
    lines.append(f"- Seeds: {', '.join(map(str, sorted({r.settings['seed'] for r in records})))}.")
    if ended:
        lengths = sorted({(r.measured["epochs"], r.measured["iterations"]) for r in ended})
        steps = "; ".join(f"{epochs} epochs, {iterations:,} iterations" for epochs, iterations in lengths)
        seconds = [r.measured["seconds"] or 0.0 for r in ended]
        lines.append(
            f"- {len(records)} trainings of {steps} each; {sum(seconds) / 60:.1f} minutes of training steps together, "
            f"{min(seconds):.1f} to {max(seconds):.1f} s each, without evaluation."
        )
    lines += [f"- {text}" for text in _distinct(records, _machine_text)]
    sources = {r.measured["environment"]["git_revision"] for r in records}
    listed = f"{len(sources)} revisions of the source, each in its record" if len(sources) > 1 else str(*sources)
    return [*lines, f"- Source: {listed}."]


def _distinct(records: Iterable[Record], text: Callable[[Record], str]) -> list[str]:
    return list(dict.fromkeys(text(record) for record in records))


def _data_text(record: Record) -> str:
    data = record.measured["data"]
    held_out = f", {data['validation']:,} held out for validation" if "validation" in data else ""
    size = "x".join(map(str, data["input_size"]))
    text = f"Data: {data['name']}, {size}: {data['train']:,} training images{held_out}, {data['test']:,} test images."
    if data["name"].startswith("CIFAR-10"):
        text += " Image files: if they are JPEGs, as ours of quality 75, they are not the paper's CIFAR-10."
    return text


def _machine_text(record: Record) -> str:
    found = record.measured["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"Device: {found['device']} ({found['device_name']}), {found['machine']}, threads of a training: "
        f"{found['threads']}; {versions}."
    )
