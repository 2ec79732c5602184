"""Table 1 of the paper on one GPU: all of its 64,000 iterations, several networks side by side, within a time limit.

    python scripts/gpu_table1.py --data cifar10:DATA --minutes 9
    python scripts/gpu_table1.py --data cifar10:DATA --device cpu --iterations 20 --seeds 1 --out /tmp/rehearsal

It times one step of every way to compute it, and takes the fastest; then trains K = 1 and 4, then 2 and 8, with as
many seeds at a time as will come to their end. Each network that has ended stands in the page at once. What is left
unfinished when the time is up goes on from its state at the next call, and what is finished is not trained again.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from experiments._cells import Record, key_of
from experiments._classification import Training, costs, cpu_name, sizes
from experiments._scores import scores
from experiments._side_by_side import (
    PRECISIONS,
    DeviceImages,
    Network,
    Way,
    learning_rates,
    set_precision,
    step_seconds,
    train_epoch,
)
from experiments.table1_gpu import NAME, OnDevice, document, names

from ccnn_zoo.errors import CCNNError, ConfigurationError
from ccnn_zoo.train import Recipe, build_model, load_data
from ccnn_zoo.train._environment import git_revision, package_versions
from ccnn_zoo.train._state import StateFolder

ROOT = Path(__file__).resolve().parents[1]
WRITING = 15.0  # seconds kept for scores and page
MARGIN = 1.05  # of the time that a training is expected to take
SAVE_EVERY = 60.0  # seconds


class Session:
    """Trains the cells of a command line, as many as its time allows."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.end = args.begun + 60 * args.minutes - WRITING
        self.device = torch.device(args.device)
        recipe = replace(Recipe.load(args.recipe), data=args.data)
        self.recipe = replace(recipe, iterations=args.iterations or recipe.iterations, epochs=None)
        if self.recipe.iterations is None:
            raise ConfigurationError(f"{args.recipe} counts epochs; name its --iterations")
        if not recipe.validation:
            raise ConfigurationError(
                f"{args.recipe} holds no images out; set validation, the table has a column of them"
            )
        self.waves = [
            [self._cell(k, seed) for seed in range(args.seeds) for k in map(int, wave.split(","))]
            for wave in args.waves
        ]
        self.images = DeviceImages(load_data(args.data), recipe.crop_padding, self.device)
        self.rates = learning_rates(self.recipe)
        self.ways: dict[int, Way] = {}
        self.timed: list[tuple[int, str, float]] = []
        self.networks: dict[OnDevice, Network] = {}
        self.records = {key_of(record.settings): record for record in _finished(args.out)}

    def _cell(self, branches: int, seed: int) -> OnDevice:
        return OnDevice(Training(replace(self.recipe, branches=branches, seed=seed)), self.args.precision)

    @property
    def time_left(self) -> float:
        """Seconds in which steps can be taken."""
        return self.end - time.monotonic()

    def run(self) -> None:
        """Train until all is finished or the time is up."""
        while self.time_left > 0 and (cells := self.next_cells()):
            self.train(cells)
        self.write()

    def unfinished(self, cells: Sequence[OnDevice]) -> list[OnDevice]:
        """Return the cells that have no record."""
        return [cell for cell in cells if key_of(cell.settings()) not in self.records]

    def next_cells(self) -> list[OnDevice]:
        """Return those to be trained side by side next: as many as will end in time, else one of each K."""
        waves = [cells for wave in self.waves if (cells := self.unfinished(wave))]
        for cells in waves:
            for count in range(len(cells), 0, -1):
                if self.time_left < 0:
                    break
                some = cells[:count]
                networks = [self.network(cell) for cell in some]
                needed = MARGIN * step_seconds(networks, self.args.measure) * max(n.left for n in networks)
                _say(f"{names(some)}: {needed:.0f} s to their end, {self.time_left:.0f} s are left")
                if needed < self.time_left:
                    return some
        return waves[0][: len(self.args.waves[0].split(","))] if waves else []

    def network(self, cell: OnDevice) -> Network:
        """Return a cell's network, built on first use and ready for its next step."""
        if cell not in self.networks:
            branches = cell.training.recipe.branches
            if branches not in self.ways:
                self.ways[branches] = self._fastest(cell)
            self.networks[cell] = self._built(cell, self.ways[branches])
        return self.networks[cell]

    def _built(self, cell: OnDevice, way: Way) -> Network:
        bf16, graph = self.args.precision == "bf16", not self.args.eager
        network = Network(cell.training.recipe, self.images, self.rates, way, bf16=bf16, graph=graph)
        network.resume(self._states(cell))
        network.prepare()
        return network

    def _fastest(self, cell: OnDevice) -> Way:
        """Time one step of each way, alone on the device."""
        branches = cell.training.recipe.branches
        layouts = {"auto": (False, True), "yes": (True,), "no": (False,)}[self.args.channels_last]
        ways = [
            Way(apart, last, self.args.compile)
            for apart in ((False,) if branches == 1 or self.args.compile else (False, True))
            for last in layouts
        ]
        seconds = {}
        for way in ways:
            seconds[way] = step_seconds([self._built(cell, way)], self.args.measure)
            self.timed.append((branches, way.name, seconds[way]))
            _say(f"K = {branches}, {way.name}: {1000 * seconds[way]:.2f} ms a step")
        return min(seconds, key=seconds.__getitem__)

    def _states(self, cell: OnDevice) -> StateFolder:
        return StateFolder(
            (self.args.states or self.args.out / "states") / f"{cell.name}-{key_of(cell.settings())}", keep=1
        )

    def train(self, cells: Sequence[OnDevice]) -> None:
        """Train cells side by side until all have ended, or the time is up."""
        networks, saved = {cell: self.network(cell) for cell in cells}, time.monotonic()
        while networks:
            ended = {cell: n for cell, n in networks.items() if n.left == 0 or n.diverged}
            self._save(ended)  # scores take a while, and a kill is near
            for cell, network in ended.items():
                self._finish(cell, network, len(cells))
                del networks[cell]
            if self.time_left < 0:
                break
            if networks:
                train_epoch(list(networks.values()))
            if time.monotonic() - saved > SAVE_EVERY:
                self._save(networks)
                saved = time.monotonic()
        self._save(networks)

    def _save(self, networks: dict[OnDevice, Network]) -> None:
        for cell, network in networks.items():
            if network.done:
                network.save(self._states(cell))
            _say(f"{names([cell])}: {network.done} iterations, training loss {network.loss}")

    def _finish(self, cell: OnDevice, network: Network, beside: int) -> None:
        """Score a network and keep what was measured, at once: the next moment may be the last."""
        data, recipe = self.images.data, cell.training.recipe
        parts = {part: len(numbers) for part, numbers in network.parts.items()}
        measured: dict[str, Any] = {"data": {**sizes(data, None), **parts}, "environment": self._environment()}
        ways = {way: 1000 * seconds for branches, way, seconds in self.timed if branches == recipe.branches}
        measured |= {"way": network.way.name, "ways_ms": ways, "side_by_side": beside}
        if not network.diverged:
            for part in ("test", "validation"):
                measured[part] = scores(*network.log_probabilities(part))
            measured["train"] = {"loss": network.loss}
            measured |= {"iterations": network.done, "epochs": -(-network.done // network.steps_per_epoch)}
            measured |= {"seconds": network.seconds, **costs(build_model(recipe, data).eval(), data.input_size)}
        else:
            measured["diverged"] = f"the loss became {network.loss} in the epoch before iteration {network.done}"
        record = Record(cell.name, cell.settings(), measured, self.args.out)
        self.records[key_of(record.settings)] = record
        del self.networks[cell]
        self.write()
        shutil.rmtree(self._states(cell).path.parent)

    def _environment(self) -> dict[str, Any]:
        on_gpu = self.device.type == "cuda"
        return {
            "versions": package_versions(),
            "git_revision": self.args.revision or git_revision(),
            "device": str(self.device),
            "device_name": torch.cuda.get_device_name() if on_gpu else cpu_name(),
            "machine": platform.platform(),
            "threads": torch.get_num_threads(),
            "graph": on_gpu and not self.args.eager,
        }

    def write(self) -> None:
        """Write the page, and the records that it is computed from."""
        cells = {key_of(cell.settings()): cell for wave in self.waves for cell in wave}
        for record in self.records.values():  # of earlier calls too, which asked for others of the same recipe
            cell = self._cell(record.settings["branches"], record.settings["seed"])
            if (key := key_of(cell.settings())) in self.records:
                cells.setdefault(key, cell)
        ordered = sorted(cells.values(), key=lambda cell: (cell.training.recipe.seed, cell.training.recipe.branches))
        begun = {cell: n.done for cell, n in self.networks.items() if n.done}
        document(ordered, self.records, begun).write(self.args.out, "scripts/gpu_table1.py", len(ordered))


def _finished(out: Path) -> list[Record]:
    path = out / f"{NAME}.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return [Record(**value, folder=out) for value in values]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line names."""
    args = _parser().parse_args(arguments)
    args.begun = time.monotonic()
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.precision = args.precision or ("tf32" if args.device == "cuda" else "fp32")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU; --device cpu rehearses without one")
    set_precision(args.precision)
    try:
        Session(args).run()
    except CCNNError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="cifar10:FOLDER, or an archive, as recipes name data")
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit, all included (9)")
    parser.add_argument("--seeds", type=int, default=3, help="of each K, from 0 (3), if time allows")
    parser.add_argument("--waves", nargs="+", default=["1,4", "2,8"], help="K trained together, in this order")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="the GPU if there is one")
    parser.add_argument("--precision", choices=PRECISIONS, help="tf32 on a GPU, fp32 on a CPU")
    parser.add_argument("--channels-last", choices=("auto", "yes", "no"), default="auto", help="auto: if it is faster")
    parser.add_argument("--compile", action="store_true", help="compile the networks by torch.compile")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--recipe", default="cifar10_table1", help="name or file of another recipe")
    parser.add_argument("--iterations", type=int, help="to rehearse: fewer than the recipe's")
    parser.add_argument("--measure", type=int, default=30, help="steps by which a way is timed (30)")
    parser.add_argument("--revision", help="of the source, where it is no checkout")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder of page and records")
    parser.add_argument("--states", type=Path, help="folder of trainings that have not ended (states in --out)")
    return parser


if __name__ == "__main__":
    main()
