"""Trains a small network on one process, and on two by DDP and by FSDP2, and compares: see test_optim_roles.py."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from ccnn_zoo import CSGD, CalibratedConv2d
from ccnn_zoo.layers import BranchLinear

STEPS, RANKS = 4, 2
OPTIONS = {"lr": 0.1, "weight_decay": 1e-2, "calibration_lr": 1.0, "noise_std": 1e-2, "seed": 5}


def network() -> nn.Sequential:
    """Without normalisation, whose statistics are those of a process's part; K=3 does not divide by two ranks."""
    torch.manual_seed(0)
    return nn.Sequential(
        CalibratedConv2d(3, 4, 3, padding=1, branches=3, shared_input=True, bias=True),
        nn.ReLU(),
        CalibratedConv2d(4, 6, 3, branches=3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        BranchLinear(6, 5, branches=3),
    )


def steps(model: nn.Module, optimizer: CSGD, part: slice) -> None:
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        images, labels = torch.randn(8, 3, 6, 6, generator=generator), torch.randint(5, (8,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(images[part]), labels[part]).backward()
        optimizer.step()


def whole(model: nn.Module) -> dict[str, Tensor]:
    state = {name.removeprefix("module."): value for name, value in model.state_dict().items()}
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in state.items()}


def sharded(model: nn.Module) -> nn.Module:
    for layer in model:
        if isinstance(layer, CalibratedConv2d):
            fully_shard(layer)
    return fully_shard(model)


def run(rank: int, meeting: str, wrap: Callable[[nn.Module], nn.Module], given: Callable, expected: dict) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    model = wrap(network())
    steps(model, CSGD(given(model), **OPTIONS), slice(4 * rank, 4 * rank + 4))
    for name, value in whole(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        if name.endswith("calibration"):
            torch.testing.assert_close(value.sum(0), torch.ones_like(value[0]))
    dist.destroy_process_group()


def main() -> None:
    torch.set_num_threads(1)
    alone = network()
    untouched = deepcopy(alone.state_dict())
    steps(alone, CSGD(alone, **OPTIONS), slice(8))
    expected = alone.state_dict()
    assert not torch.allclose(expected["2.calibration"], untouched["2.calibration"])
    ways = {
        "DDP": (DistributedDataParallel, lambda model: model),
        "FSDP2": (sharded, lambda model: model),
        "FSDP2-parameters": (sharded, lambda model: model.parameters()),
    }
    for name, (wrap, given) in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            children = []
            for rank in range(RANKS):
                child = os.fork()
                if child == 0:
                    code = 1
                    try:
                        run(rank, f"{folder}/meeting", wrap, given, expected)
                        code = 0
                    except BaseException as error:
                        print(f"rank {rank}: {error!r}", file=sys.stderr, flush=True)
                    os._exit(code)
                children.append(child)
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            raise SystemExit(f"{name}: {codes}")
        print(name, flush=True)


if __name__ == "__main__":
    main()
