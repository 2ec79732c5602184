"""Which form of a network is faster, measured on this machine's onnxruntime.

Every form runs on one thread, in turn with all others, and is timed by the processor time of that thread, of which
the least counts: so other programs on the machine hardly matter. A form must win by more than :data:`MARGIN`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto

from ._branch_chains import branches_apart, part_of
from ._graph import INPUT
from ._separate import group_part_of, grouped_convolutions, groups_of, separate
from ._session import session_of

MARGIN = 0.01
"""Share of the time that another form must save to be chosen."""

_ROUNDS, _SECONDS = 5, 2.0  # at least so many runs of each form, and more until so much time is spent

Timer = Callable[[Mapping[str, ModelProto]], dict[str, float]]
"""From graphs by name to their seconds."""


@dataclass(frozen=True)
class Timing:
    """What was measured, and what was made of it.

    Args:
        milliseconds: processor time of one batch on one thread, by form: ``"fp32"``, ``"fp32 apart"`` (branch by
            branch; where that cannot be ``"fp32 separate"``: a convolution for every group), ``"faster kinds"`` (for
            some of the convolutions only), the same of ``"int8"``, and ``"chosen"``.
        apart: the network is written branch by branch, because that was faster.
        separated: kinds of convolutions written as separate ones, because that was faster.
        kept_fp32: kinds of convolutions that int8 made slower, and that stay in float32.
        slower: what a reader must know: forms of this file that are slower than plain fp32.
        batch_size: images of the batch.
        machine: processor and onnxruntime's version.
    """

    milliseconds: dict[str, float]
    apart: bool = False
    separated: tuple[str, ...] = ()
    kept_fp32: tuple[str, ...] = ()
    slower: tuple[str, ...] = ()
    batch_size: int = 8
    machine: str = field(default_factory=lambda: f"{platform.machine()}, onnxruntime {ort.__version__}, 1 thread")


def timer(batch: NDArray[np.float32]) -> Timer:
    """Return what times graphs on ``batch``, (N, C, H, W)."""

    def measure(graphs: Mapping[str, ModelProto]) -> dict[str, float]:
        sessions = {name: session_of(graph, intra_op_num_threads=1) for name, graph in graphs.items()}
        for session in sessions.values():
            session.run(None, {INPUT: batch})
        least = dict.fromkeys(sessions, float("inf"))
        start, rounds = time.monotonic(), 0
        while rounds < _ROUNDS or (time.monotonic() - start < _SECONDS * len(sessions) and rounds < 100):
            rounds += 1
            for name, session in sessions.items():
                before = time.thread_time()
                session.run(None, {INPUT: batch})
                least[name] = min(least[name], time.thread_time() - before)
        return least

    return measure


def choose_fp32(graph: ModelProto, measure: Timer, batch_size: int, branches: int) -> tuple[ModelProto, Timing]:
    """Write branch by branch, or as separate convolutions those kinds of grouped ones that are faster so."""
    kinds = {_described(kind): names for kind, names in grouped_convolutions(graph).items()}
    if not kinds:
        return graph, _timing(measure({"fp32": graph}), batch_size=batch_size)
    form, without = _without_groups(graph, kinds, branches)
    whole = f"fp32 {form}"
    forms = {"fp32": graph, whole: without}
    forms |= {kind: separate(graph, names) for kind, names in kinds.items()}
    seconds = measure(forms)
    faster = {kind: names for kind, names in kinds.items() if seconds[kind] < (1 - MARGIN) * seconds["fp32"]}
    candidates = {"fp32": graph, whole: without, "faster kinds": separate(graph, _all(faster))}
    final = measure(candidates) if faster else {name: seconds[name] for name in ("fp32", whole)}
    name = _best(final, "fp32")
    separated = {"faster kinds": tuple(faster), "fp32 separate": tuple(kinds)}.get(name, ())
    return candidates[name], _timing(
        final, name, apart=name == "fp32 apart", separated=separated, batch_size=batch_size
    )


def choose_int8(
    graph: ModelProto,
    quantizer_of: Callable[[ModelProto], Callable[[Collection[str]], ModelProto]],
    measure: Timer,
    batch_size: int,
    branches: int,
) -> tuple[ModelProto, Timing]:
    """Quantise with grouped convolutions or without, and leave in float32 those kinds that int8 makes slower."""
    kinds = {_described(kind): names for kind, names in grouped_convolutions(graph).items()}
    sources = {"int8": graph}
    if kinds:
        form, without = _without_groups(graph, kinds, branches)
        sources[f"int8 {form}"] = without
    quantizers = {name: quantizer_of(source) for name, source in sources.items()}
    forms = {name: quantizer(()) for name, quantizer in quantizers.items()}
    seconds = measure({"fp32": graph, **forms})
    name = _best({form: value for form, value in seconds.items() if form != "fp32"}, "int8")
    nodes = {kind: _parts(names, graph, sources[name]) for kind, names in kinds.items()}
    without = {kind: quantizers[name](names) for kind, names in nodes.items()}
    compared = measure({name: forms[name], **without})
    slower = {kind: nodes[kind] for kind in kinds if compared[kind] < (1 - MARGIN) * compared[name]}
    chosen = forms[name]
    if slower:
        mixed = quantizers[name](_all(slower))
        again = measure({name: chosen, "mixed": mixed})
        if _best(again, name) == "mixed":
            chosen, seconds["chosen"] = mixed, again["mixed"]
        else:
            slower = {}
    separated = tuple(kinds) if name == "int8 separate" else ()
    apart = name == "int8 apart"
    return chosen, _timing(
        seconds, name, apart=apart, separated=separated, kept_fp32=tuple(slower), batch_size=batch_size
    )


def _without_groups(graph: ModelProto, kinds: Mapping[str, Collection[str]], branches: int) -> tuple[str, ModelProto]:
    """Return the graph with one convolution for each branch, or else for each group, and what that form is called."""
    apart = branches_apart(graph, branches) if branches > 1 else None
    return ("separate", separate(graph, _all(kinds))) if apart is None else ("apart", apart)


def _timing(seconds: dict[str, float], chosen: str = "fp32", *, batch_size: int, **found: Any) -> Timing:
    seconds.setdefault("chosen", seconds[chosen])
    slower = [f"{name} takes {seconds[name] / seconds['fp32']:.2f} times the time of fp32" for name in seconds]
    slower = [
        text for name, text in zip(seconds, slower, strict=True) if seconds[name] > (1 + MARGIN) * seconds["fp32"]
    ]
    milliseconds = {name: round(1000 * value, 3) for name, value in seconds.items()}
    return Timing(milliseconds, slower=tuple(slower), batch_size=batch_size, **found)


def _best(seconds: Mapping[str, float], default: str) -> str:
    """Return the fastest form, or the default where that is as fast within the margin."""
    name = min(seconds, key=seconds.__getitem__)
    return name if seconds[name] < (1 - MARGIN) * seconds[default] else default


def _described(kind: tuple[tuple[int, ...], int, tuple[int, ...]]) -> str:
    shape, groups, strides = kind
    return f"{shape[0]}x{shape[1]}x{shape[2]}x{shape[3]} in {groups} groups, stride {'x'.join(map(str, strides)) or 1}"


def _all(kinds: Mapping[str, Collection[str]]) -> set[str]:
    return {name for names in kinds.values() for name in names}


def _parts(names: Collection[str], graph: ModelProto, written: ModelProto) -> list[str]:
    """Return the names of the convolutions that these grouped ones of ``graph`` have become in ``written``."""
    there = {node.name for node in written.graph.node}
    found = []
    for node in graph.graph.node:
        if node.name in names:
            of_branches = [part_of(node.name, k) for k in range(groups_of(node))]
            of_groups = [group_part_of(node.name, k) for k in range(groups_of(node))]
            found += [name for name in (node.name, *of_branches, *of_groups) if name in there]
    return found
