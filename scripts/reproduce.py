"""Run the paper's tables and figures as experiments, and write what came out.

    python scripts/reproduce.py all --quick                                    # everything, tiny, on digits: minutes
    python scripts/reproduce.py table1 ablation --small --data mnist:DATA      # small relatives on a CPU: an hour
    python scripts/reproduce.py pays --medium --data cifar10:DATA              # what K branches buy: hours on a CPU
    python scripts/reproduce.py table1 figure2 --data cifar10:DATA --jobs 4    # the paper's recipe: needs a GPU
    python scripts/reproduce.py table4 --voc DATA                              # VOC2007, detection; --small: BCCD

Every cell of a table is one training in a folder of its own. Finished cells are not run again, and one that was
interrupted goes on from its last state, so a call that was killed is repeated as it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import experiments

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
RUNS = Path("runs") / "reproduce"


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line names."""
    args = _parser().parse_args(arguments)
    names = experiments.NAMES if "all" in args.experiment else args.experiment
    size = next((name for name in ("quick", "small", "medium") if getattr(args, name)), "full")
    _choose_device(args.device)
    # Also in the processes to come, and before torch is imported.
    os.environ["OMP_NUM_THREADS"] = str(args.threads)

    from experiments._cells import Records, key_of, written
    from experiments._plans import MissingDataError, make_plan
    from experiments._running import run_cells

    from ccnn_zoo.errors import CCNNError

    out = args.out or (RESULTS if size != "quick" else RUNS / "quick")
    cells_folder = args.cells or RUNS / "cells"
    try:
        data = f"voc:{args.voc}" if args.voc else args.data
        plan = make_plan(size, data, args.seeds, cells_folder, args.side, args.narrow, args.few)
        chosen, cells = [], []
        for name in names:
            experiment = experiments.load(name)
            try:
                cells += experiment.cells(plan)
                chosen.append((name, experiment))
            except MissingDataError as error:
                if "all" not in args.experiment:
                    raise
                print(f"left out: {error}", file=sys.stderr)
        known = written(out) if size == "medium" else Records(())
        records = run_cells(cells, cells_folder, args.jobs, args.threads, run=not args.report, known=known)
    except CCNNError as error:
        sys.exit(f"error: {error}")
    for name, experiment in chosen:
        options = f"{'' if size == 'full' else f' --{size}'}{' --narrow' * plan.narrow}{' --few' * plan.few}"
        command = f"scripts/reproduce.py {name}{options}"
        wanted = len({key_of(cell.settings()) for cell in experiment.cells(plan)})
        print(experiment.report(plan, records).write(out, command, wanted))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="+", choices=[*experiments.NAMES, *experiments.OF_THEIR_OWN, "all"])
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="all of it, tiny: shows that it works")
    sizes.add_argument("--medium", action="store_true", help="CIFAR-10, 30 epochs, on a CPU: hours")
    sizes.add_argument("--small", action="store_true", help="small relatives of the networks, for a CPU")
    parser.add_argument("--data", help="as recipes name data: cifar10:FOLDER, folder:FOLDER, mnist:FOLDER, digits")
    parser.add_argument("--voc", type=Path, help="for table4: folder that holds VOCdevkit, of VOC2007 or in its layout")
    parser.add_argument("--side", type=int, default=16, help="pixels, with --medium: 16 or 32")
    parser.add_argument("--narrow", action="store_true", help="a network of a third of the time, with --medium")
    parser.add_argument("--few", action="store_true", help="a tenth of the pictures to learn from, with --medium")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--seeds", type=int, help="number of seeds, from 0 (3; 2 with --quick, 5 with --medium, 8 with --few)"
    )
    parser.add_argument("--out", type=Path, help=f"folder of documents (docs/results; {RUNS}/quick with --quick)")
    parser.add_argument("--cells", type=Path, help=f"folder of the trainings ({RUNS}/cells)")
    parser.add_argument("--report", action="store_true", help="train nothing: write what the finished cells say")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time, also on one GPU")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    return parser


def _choose_device(device: str) -> None:
    """Let torch, which is not yet imported, see the device; refuse a GPU that is not there."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.exit("error: --device cuda, and torch finds none; leave it out to use the CPU")


if __name__ == "__main__":
    main()
