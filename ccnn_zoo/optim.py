"""CSGD, the calibrated stochastic gradient descent (Algorithm 1 of the paper).

Source: "Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.optim.sgd import sgd

from ccnn_zoo._roles import CALIBRATION, SHARED_WEIGHT, get_role
from ccnn_zoo.errors import ConfigurationError

CALIBRATION_UPDATES = ("descent", "ascent")


class CSGD(Optimizer):
    r"""Calibrated SGD: momentum SGD on w with Gaussian noise, projected gradient steps on R.

    For every calibrated convolution, with gradients taken at :math:`(w^t, R^t)`,

    .. math::
        w^{t+1} &= w^t - \theta \sum_k R_k^t * \partial f / \partial H_k + N(0, \sigma) \\
        R^{t+1} &= |R^t \mp \ell \, \partial f / \partial R^t|, \quad \text{then divided by its sum over branches}

    The first sum is what autograd gives for f(R * w). Parameters of other layers take plain momentum SGD steps,
    bit-equal to ``torch.optim.SGD``'s. R knows neither momentum nor weight decay. Do not use it for networks
    without :class:`ccnn_zoo.CalibratedConv2d`: it would be ``torch.optim.SGD``.

    Args:
        params: a model, or parameters or parameter groups as for every torch optimizer. Parameters know whether
            they are w, R or neither, so groups can be cut in any way.
        lr: learning rate theta of w and of all ordinary parameters.
        momentum: momentum of the same parameters.
        weight_decay: L2 penalty on the same parameters, added to the gradient.
        noise_std: standard deviation sigma of the noise added to w after each step; 0 switches it off. (The
            paper calls sigma a variance; as one, its 1e-4 a step would diverge as a random walk.)
        calibration_lr: learning rate l of R. Schedulers, which change ``lr``, leave it.
        calibration_update: ``"descent"`` lowers the loss; ``"ascent"`` is the sign that the paper prints.
        maximize: maximise the objective instead.
        foreach: use the multi-tensor implementation; None leaves the choice to torch.
        seed: seed of the noise. Every data-parallel rank must have the same one, and then adds the same noise.

    Raises:
        ConfigurationError: an argument is out of range.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        noise_std: float = 1e-4,
        calibration_lr: float = 0.1,
        calibration_update: str = "descent",
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "noise_std": noise_std,
            "calibration_lr": calibration_lr,
            "calibration_update": calibration_update,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": False,  # torch adds it to every loaded group
        }
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self._loaded_noise: dict[str, Tensor] = {}
        super().__init__(params.parameters() if isinstance(params, nn.Module) else params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step of Algorithm 1 on all parameters that have a gradient.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The closure's loss, or None without a closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            self._descend([p for p in params if get_role(p) != CALIBRATION], group)
            self._calibrate([p for p in params if get_role(p) == CALIBRATION], group)
            if group["noise_std"] > 0:
                self._add_noise([p for p in params if get_role(p) == SHARED_WEIGHT], group["noise_std"])
        return loss

    def _descend(self, params: list[Tensor], group: dict[str, Any]) -> None:
        buffers = [self.state[p].get("momentum_buffer") for p in params]
        sgd(
            params,
            [p.grad for p in params],
            buffers,
            foreach=group["foreach"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=group["maximize"],
        )
        if group["momentum"] != 0:
            for param, buffer in zip(params, buffers, strict=True):
                self.state[param]["momentum_buffer"] = buffer

    def _calibrate(self, calibrations: list[Tensor], group: dict[str, Any]) -> None:
        downhill = (group["calibration_update"] == "descent") != group["maximize"]
        step_size = -group["calibration_lr"] if downhill else group["calibration_lr"]
        update = _update_one_by_one if group["foreach"] is False else _update_together
        update(calibrations, [r.grad for r in calibrations], step_size)

    def _add_noise(self, weights: list[Tensor], std: float) -> None:
        if weights:
            noise = [torch.empty_like(w).normal_(0, std, generator=self._generator(w.device)) for w in weights]
            torch._foreach_add_(weights, noise)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            generator = torch.Generator(device).manual_seed(self._seed)
            if str(device) in self._loaded_noise:
                generator.set_state(self._loaded_noise.pop(str(device)))
            self._generators[device] = generator
        return self._generators[device]

    def state_dict(self) -> dict[str, Any]:
        """Return torch's optimizer state, and under ``"noise"`` the seed and the generators' states by device."""
        return {**super().state_dict(), "noise": {"seed": self._seed, "generators": self._noise_states()}}

    def _noise_states(self) -> dict[str, Tensor]:
        used = {str(device): generator.get_state() for device, generator in self._generators.items()}
        return {**self._loaded_noise, **used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, noise included; one of ``torch.optim.SGD`` loads too and leaves the noise as it is.

        The noise continues to the bit on the same kind of device; on another kind it starts from the seed.
        """
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        if "noise" in state_dict:
            self._seed = state_dict["noise"]["seed"]
            self._generators.clear()
            # Restored on first use: the device that made them may be absent from this machine.
            self._loaded_noise = {name: state.cpu() for name, state in state_dict["noise"]["generators"].items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_seed": self._seed, "_loaded_noise": self._noise_states()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, default in (("_seed", 0), ("_generators", {}), ("_loaded_noise", {})):
            self.__dict__.setdefault(name, default)
        super().__setstate__(state)


def calibration_step(calibration: Tensor, grad: Tensor, step_size: float) -> Tensor:
    """Return the next R: ``|R + step_size * grad|``, divided by its sum over the branches.

    Args:
        calibration: R, (K, ...).
        grad: dL/dR, the same shape.
        step_size: -l to descend, +l to ascend.

    Returns:
        A tensor of R's shape, in float32 at least; a position at which all R_k became 0 is 1/K.
    """
    precision = torch.promote_types(calibration.dtype, torch.float32)
    stepped = (calibration.to(precision) + step_size * grad.to(precision)).abs()
    total = stepped.sum(0, keepdim=True)
    # Asks for zero, not for > 0: a NaN gradient must stay visible.
    return torch.where(total == 0, 1 / len(calibration), stepped / total)


def _update_one_by_one(calibrations: Sequence[Tensor], grads: Sequence[Tensor], step_size: float) -> None:
    for calibration, grad in zip(calibrations, grads, strict=True):
        calibration.copy_(calibration_step(calibration, grad, step_size))


def _update_together(calibrations: Sequence[Tensor], grads: Sequence[Tensor], step_size: float) -> None:
    """Same as one by one, with all layers of K branches in one tensor (K, positions of all layers)."""
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, calibration in enumerate(calibrations):
        alike[len(calibration), calibration.device, calibration.dtype].append(i)
    for indices in alike.values():
        group = [calibrations[i] for i in indices]
        joined = torch.cat([r.flatten(1) for r in group], dim=1)
        stepped = calibration_step(joined, torch.cat([grads[i].flatten(1) for i in indices], dim=1), step_size)
        parts = stepped.split([r[0].numel() for r in group], dim=1)
        torch._foreach_copy_(group, [part.view_as(r) for part, r in zip(parts, group, strict=True)])


def _check_group(group: dict[str, Any]) -> None:
    for name in ("lr", "momentum", "weight_decay", "noise_std", "calibration_lr"):
        if not group[name] >= 0:
            raise ConfigurationError(f"{name} must be 0 or above, got {group[name]!r}")
    if group["calibration_update"] not in CALIBRATION_UPDATES:
        raise ConfigurationError(
            f"calibration_update must be one of {', '.join(CALIBRATION_UPDATES)}, got {group['calibration_update']!r}"
        )


def register_with_timm() -> None:
    """Register CSGD as ``opt="csgd"`` of ``timm.optim.create_optimizer_v2`` and of timm's scripts."""
    from timm.optim import OptimInfo
    from timm.optim._optim_factory import default_registry

    default_registry.register(
        OptimInfo(
            name="csgd",
            opt_class=CSGD,
            description="Calibrated SGD with noise on the shared weights and projected calibration kernels",
            has_eps=False,
            has_momentum=True,
        )
    )
