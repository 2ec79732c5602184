"""Time a CSGD step against one of torch.optim.SGD(foreach=True), side by side in one run.

    python scripts/bench_optimizer.py                     # CPU
    python scripts/bench_optimizer.py --device cuda

All steps move the same parameters with the same gradients. Rounds alternate between the optimizers, and an
optimizer's figure is its fastest round, so that other load on the machine falls on all alike.
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
from ccnn_zoo.optim import SHARED_WEIGHT, get_role

COMMON = {"lr": 1e-6, "momentum": 0.9, "weight_decay": 1e-4}
REFERENCE = "SGD, foreach"
BARE = "noise alone: `normal_` of as many values, kept nowhere"
STEPS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    REFERENCE: lambda model: torch.optim.SGD(model.parameters(), foreach=True, **COMMON),
    "CSGD, foreach, sigma=0": lambda model: ccnn_zoo.CSGD(model, noise_std=0, foreach=True, **COMMON),
    "CSGD, foreach, noise": lambda model: ccnn_zoo.CSGD(model, foreach=True, **COMMON),
    "SGD, fused": lambda model: torch.optim.SGD(model.parameters(), fused=True, **COMMON),
    "CSGD, fused, sigma=0": lambda model: ccnn_zoo.CSGD(model, noise_std=0, fused=True, **COMMON),
    "CSGD, fused, noise": lambda model: ccnn_zoo.CSGD(model, fused=True, **COMMON),
    "CSGD, fused, gradient noise": lambda model: ccnn_zoo.CSGD(model, fused=True, noise="gradient", **COMMON),
}
TARGETS = {"CSGD, foreach, sigma=0": 1.15, "CSGD, fused, sigma=0": 1.15}
TARGETS |= {"CSGD, foreach, noise": 1.4, "CSGD, fused, noise": 1.4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ccnn_resnet18")
    parser.add_argument("--branches", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="write the table to this Markdown file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = timm.create_model(args.model, branches=args.branches).to(args.device)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    seconds = _fastest(_steps(model), args.rounds, torch.device(args.device))
    text = "\n".join([*_description(args, model), "", *_table(seconds), "", *_conclusion(seconds)]) + "\n"
    print(text)
    if args.output:
        write(args.output, [text])


def _steps(model: nn.Module) -> dict[str, Callable[[], object]]:
    steps: dict[str, Callable[[], object]] = {name: make(model).step for name, make in STEPS.items()}
    weights = [p for p in model.parameters() if get_role(p) == SHARED_WEIGHT]
    count, device = sum(w.numel() for w in weights), weights[0].device
    size = 2**16 if device.type == "cpu" else count  # what stays in the cache
    values, generator = torch.empty(size, device=device), torch.Generator(device).manual_seed(0)

    def noise_alone() -> None:
        for _ in range(round(count / size)):
            values.normal_(generator=generator)

    return {**steps, BARE: noise_alone}


def _fastest(steps: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the seconds of the fastest round of every step."""
    fastest = dict.fromkeys(steps, float("inf"))
    for round_ in range(rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_ > 1:  # the first ones make momentum and warm up
                fastest[name] = min(fastest[name], time.perf_counter() - start)
    return fastest


def _description(args: argparse.Namespace, model: nn.Module) -> list[str]:
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else _cpu_name()
    parameters = list(model.parameters())
    noisy = sum(p.numel() for p in parameters if get_role(p) == SHARED_WEIGHT)
    return [
        "# Cost of an optimizer step",
        "",
        f"Written by `scripts/bench_optimizer.py`: {args.model}, K={args.branches}, {len(parameters)} parameters of "
        f"{sum(p.numel() for p in parameters):,} values, {noisy:,} of which receive noise; float32, {device}, "
        f"{args.threads} threads, torch {torch.__version__}.",
        "",
        f"Ratios are to `torch.optim.SGD(foreach=True)` with the same momentum and weight decay, fastest of "
        f"{args.rounds} alternating rounds.",
    ]


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def _table(seconds: dict[str, float]) -> list[str]:
    rows = ["| step | ms | ratio | aim |", "|---|---|---|---|"]
    for name, value in seconds.items():
        aim = f"at most {TARGETS[name]}" if name in TARGETS else ""
        rows.append(f"| {name} | {1000 * value:.1f} | {value / seconds[REFERENCE]:.2f} | {aim} |")
    return rows


def _conclusion(seconds: dict[str, float]) -> list[str]:
    missed = [name for name, aim in TARGETS.items() if seconds[name] > aim * seconds[REFERENCE]]
    if not missed:
        return ["All aims are met."]
    bound = (seconds["SGD, fused"] + seconds[BARE]) / seconds[REFERENCE]
    return [
        f"Not met: {'; '.join(missed)}. Lower bound with torch's generator, its `normal_` and the fastest SGD step one "
        f"after the other: {bound:.2f}."
    ]


if __name__ == "__main__":
    main()
