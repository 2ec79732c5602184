"""Time a training step with K branches against the plain network's, side by side in one run.

    python scripts/bench_training.py                      # CPU, float32
    python scripts/bench_training.py --device cuda --amp

Every ratio is K branches to one: forward, backward and CSGD step on the same images. Rounds alternate between the
ways, and a way's figure is its fastest round, so that other load on the machine falls on all alike.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from documents import write
from torch import nn

import ccnn_zoo
from ccnn_zoo.branchwise import Branchwise
from ccnn_zoo.train import keep_freed_memory

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "all at once": lambda model: model,
    "4 at once": lambda model: Branchwise(model, 4),
    "2 at once": lambda model: Branchwise(model, 2),
    "1 at once": lambda model: Branchwise(model, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ccnn_resnet18_cifar")
    parser.add_argument("--size", type=int, default=32, help="image height and width")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--branches", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="add torch.compile of the whole network")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="write the table to this Markdown file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as `ccnn train` does; else the order of the measurements decides who pays for new pages
    lines = [*_description(args), "", *_table(args)]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        write(args.output, [text])


def _description(args: argparse.Namespace) -> list[str]:
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else _cpu_name()
    return [
        "# Cost of a training step",
        "",
        f"Written by `scripts/bench_training.py`: {args.model} at {args.size}x{args.size}, batch {args.batch_size}, "
        f"{'bfloat16 autocast' if args.amp else 'float32'}, {device}, {args.threads} threads, "
        f"torch {torch.__version__}, timm {timm.__version__}.",
        "",
        "Each figure is the time of one step with K branches divided by that of the plain network (K=1) in the same "
        f"layout and run, fastest of {args.rounds} alternating rounds. Lowest per row in bold; K is the aim.",
    ]


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def _table(args: argparse.Namespace) -> list[str]:
    ways = dict(WAYS)
    if args.compile:
        ways["compiled"] = torch.compile
    rows = [f"| layout | K | {' | '.join(ways)} | plain step |", "|---|---|" + "---|" * (len(ways) + 1)]
    for layout in LAYOUTS:
        for branches in args.branches:
            plain, times = _measure(args, layout, branches, ways)
            ratios = [seconds / plain for seconds in times]
            cells = [f"**{r:.2f}**" if r == min(ratios) else f"{r:.2f}" for r in ratios]
            rows.append(f"| {layout} | {branches} | {' | '.join(cells)} | {1000 * plain:.1f} ms |")
    return rows


def _measure(
    args: argparse.Namespace, layout: str, branches: int, ways: dict[str, Callable[[nn.Module], nn.Module]]
) -> tuple[float, list[float]]:
    """Return the seconds of a plain step, and those of a step with ``branches`` branches in each way."""
    steps = [_step(args, layout, 1, lambda model: model)]
    steps += [_step(args, layout, branches, way) for way in ways.values()]
    fastest = [float("inf")] * len(steps)
    for round_ in range(args.rounds + 1):
        for i, step in enumerate(steps):
            seconds = step()
            if round_ > 0:  # the first warms up
                fastest[i] = min(fastest[i], seconds)
    return fastest[0], fastest[1:]


def _step(
    args: argparse.Namespace, layout: str, branches: int, way: Callable[[nn.Module], nn.Module]
) -> Callable[[], float]:
    torch.manual_seed(0)
    model = timm.create_model(args.model, branches=branches).to(args.device, memory_format=LAYOUTS[layout])
    optimizer = ccnn_zoo.CSGD(model, lr=0.01)
    forward = way(model.train())
    images = torch.randn(args.batch_size, 3, args.size, args.size, device=args.device)
    images = images.to(memory_format=LAYOUTS[layout])
    targets = torch.randint(model.num_classes, (args.batch_size,), device=args.device)
    kind = torch.device(args.device).type

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(kind, torch.bfloat16, enabled=args.amp):
            loss = nn.functional.cross_entropy(forward(images), targets)
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device
        return time.perf_counter() - start

    return step


if __name__ == "__main__":
    main()
