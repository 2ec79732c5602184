"""An independent reading of Eq. 4: K separate plain networks, network k of which holds the kernels H_k = R_k * w."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every weight, affine parameter and statistic its own value, so that no slip can hide behind 0 or 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("calibration", "num_batches_tracked")):
                continue
            if tensor.ndim > 1:
                bound = (6 / tensor[0].numel()) ** 0.5
                tensor.copy_((2 * draw(tensor) - 1) * bound)
            elif name.endswith(("bias", "running_mean")):
                tensor.copy_(draw(tensor) - 0.5)
            else:
                tensor.copy_(draw(tensor) + 0.5)
    return model


def branch_state(plain: dict[str, Tensor], calibrated: dict[str, Tensor], branch: int) -> dict[str, Tensor]:
    """State dict of the plain network that branch ``branch`` is: H_k for each convolution, slice k of each norm."""
    state = {}
    for name, template in plain.items():
        value = calibrated[name]
        calibration = calibrated.get(f"{name.removesuffix('weight')}calibration")
        if name.endswith("weight") and calibration is not None:
            value = calibration[branch] * value
        elif value.shape != template.shape:
            channels = len(template)
            value = value[branch * channels : (branch + 1) * channels]
        state[name] = value.detach().clone()
    return state


def load_branch(plain: nn.Module, calibrated: nn.Module, branch: int) -> nn.Module:
    """Load branch ``branch`` of ``calibrated`` into ``plain`` and return it."""
    plain.load_state_dict(branch_state(plain.state_dict(), calibrated.state_dict(), branch))
    return plain
