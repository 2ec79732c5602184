"""What a network's probabilities are worth: likelihood after temperature, order of errors, pictures from elsewhere.

All figures are those of torch-uncertainty and torchmetrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import binary_auroc

from ._scores import scores


class Outputs(NamedTuple):
    """What a network says of N images.

    Args:
        log_probabilities: natural logarithms, (N, classes).
        branches: the same of each branch or member alone, (K, N, classes); None if there is one only.
        targets: classes, (N,); None of pictures that have none.
    """

    log_probabilities: Tensor
    branches: Tensor | None
    targets: Tensor | None


def doubt(validation: Outputs, test: Outputs, elsewhere: Mapping[str, Outputs]) -> dict[str, Any]:
    """Return the figures.

    Args:
        validation: held-out images, by which the temperature is fitted and the best branch is chosen.
        test: images of the same classes.
        elsewhere: images of other things, by kind.

    Returns:
        ``temperature``; ``nll_tempered`` and ``ece_percent_tempered``; ``aurc_percent``, the area under the curve of
        risk over coverage; ``auroc_percent`` by kind and ``mean``, of the highest probability as the score of a picture
        from elsewhere; of branches ``disagreement_percent``, ``kl``, the mean over ordered pairs of KL in nats,
        ``auroc_percent_mutual_information``, and ``best_branch``, scores of the one that is best on ``validation``.
    """
    from torch_uncertainty.metrics import AURC

    temperature = _temperature(validation)
    tempered = scores((test.log_probabilities / temperature).log_softmax(1).numpy(), test.targets.numpy())
    probabilities = test.log_probabilities.exp()
    aurc = AURC()
    aurc.update(probabilities, test.targets)
    found = {
        "temperature": temperature,
        "nll_tempered": tempered["nll"],
        "ece_percent_tempered": tempered["ece_percent"],
        "aurc_percent": 100 * float(aurc.compute()),
        "auroc_percent": _aurocs({k: 1 - o.log_probabilities.exp().amax(1) for k, o in _with(test, elsewhere).items()}),
    }
    if test.branches is None:
        return found
    information = {kind: _mutual_information(o.branches) for kind, o in _with(test, elsewhere).items()}
    return {**found, **_branches(validation, test), "auroc_percent_mutual_information": _aurocs(information)}


def _branches(validation: Outputs, test: Outputs) -> dict[str, Any]:
    from torch_uncertainty.metrics import Disagreement

    apart = Disagreement()
    apart.update(test.branches.exp().transpose(0, 1))
    pairs = [(a.exp() * (a - b)).sum(1).mean() for a, b in permutations(test.branches, 2)]
    errors = [float((b.argmax(1) != validation.targets).double().mean()) for b in validation.branches]
    best = int(np.argmin(errors))
    return {
        "disagreement_percent": 100 * float(apart.compute()),
        "kl": float(torch.stack(pairs).mean()),
        "best_branch": scores(test.branches[best].numpy(), test.targets.numpy()),
    }


def _temperature(held_out: Outputs) -> float:
    from torch_uncertainty.post_processing import TemperatureScaler

    scaler = TemperatureScaler()
    whole = TensorDataset(held_out.log_probabilities, held_out.targets)
    scaler.fit(DataLoader(whole, batch_size=len(whole)), progress=False)
    found = float(scaler.temperature[0].detach())
    # LBFGS without a line search can leave the valley of a network that has learnt nothing.
    return found if found > 0 else 1.0


def _mutual_information(branches: Tensor) -> Tensor:
    from torch_uncertainty.metrics import MutualInformation

    found = MutualInformation(reduction="none")
    found.update(branches.exp().transpose(0, 1))
    return found.compute().reshape(-1)


def _with(test: Outputs, elsewhere: Mapping[str, Outputs]) -> dict[str, Outputs]:
    return {"": test, **elsewhere}


def _aurocs(doubts: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the area under the ROC curve, in percent, of each kind against the test images, whose kind is ""."""
    usual = doubts[""]
    areas = {}
    for kind, strange in doubts.items():
        if kind:
            is_strange = torch.cat([torch.zeros(len(usual)), torch.ones(len(strange))]).long()
            areas[kind] = 100 * float(binary_auroc(torch.cat([usual, strange]), is_strange))
    return {**areas, "mean": float(np.mean(list(areas.values())))}


def mixed(members: list[Outputs]) -> Outputs:
    """Return the outputs of an ensemble, whose probability is the mean of its members'."""
    together = torch.stack([m.log_probabilities for m in members])
    return Outputs(together.logsumexp(0) - np.log(len(members)), together, members[0].targets)


def as_arrays(name: str, outputs: Outputs) -> dict[str, NDArray[Any]]:
    """Return what safetensors keeps of ``outputs``."""
    return {f"{name}/{field}": v.numpy() for field, v in outputs._asdict().items() if v is not None}


def from_arrays(tensors: Mapping[str, NDArray[Any]], name: str) -> Outputs:
    """Return the outputs that :func:`as_arrays` wrote under ``name``."""
    found = {f: tensors.get(f"{name}/{f}") for f in Outputs._fields}
    return Outputs(**{f: None if v is None else torch.from_numpy(v) for f, v in found.items()})
