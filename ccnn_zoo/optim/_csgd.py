"""CSGD, the calibrated stochastic gradient descent (Algorithm 1 of the paper).

Source: "Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.optim.sgd import sgd

from ccnn_zoo._roles import CALIBRATION, SHARED_WEIGHT, get_role
from ccnn_zoo.errors import ConfigurationError

from ._calibration import CALIBRATION_UPDATES, update_one_by_one, update_together
from ._noise import NOISES, NoiseSource


class CSGD(Optimizer):
    r"""Calibrated SGD: momentum SGD on w with Gaussian noise, projected gradient steps on R.

    For every calibrated convolution, with gradients taken at :math:`(w^t, R^t)`,

    .. math::
        w^{t+1} &= w^t - \theta \sum_k R_k^t * \partial f / \partial H_k + N(0, \sigma) \\
        R^{t+1} &= |R^t \mp \ell \, \partial f / \partial R^t|, \quad \text{then divided by its sum over branches}

    The first sum is what autograd gives for f(R * w). Parameters of other layers take plain momentum SGD steps,
    bit-equal to ``torch.optim.SGD``'s. R knows neither momentum nor weight decay. Do not use it for networks
    without :class:`ccnn_zoo.CalibratedConv2d`: it would be ``torch.optim.SGD``.

    The noise is the same for the same seed, whatever ``foreach`` and ``fused`` are, and on the CPU also however groups
    are cut, if that leaves the order of the parameters that receive noise.

    Args:
        params: a model, or parameters or parameter groups as for every torch optimizer. Parameters know whether
            they are w, R or neither, so groups can be cut in any way.
        lr: learning rate theta of w and of all ordinary parameters.
        momentum: momentum of the same parameters.
        weight_decay: L2 penalty on the same parameters, added to the gradient.
        noise_std: standard deviation sigma of the noise; 0 switches it off. (The paper calls sigma a variance; as
            one, its 1e-4 a step would diverge as a random walk.)
        calibration_lr: learning rate l of R. Schedulers, which change ``lr``, leave it.
        calibration_update: ``"descent"`` lowers the loss; ``"ascent"`` is the sign that the paper prints.
        noise: ``"weight"`` adds the noise to w after each step, as Algorithm 1 does; ``"gradient"`` adds it to the
            gradients of all parameters but R before each step, as Neelakantan et al. do ("Adding Gradient Noise
            Improves Learning for Very Deep Networks", 2015; the paper's row "ResNet-18*").
        noise_decay: exponent gamma by which the noise fades: in step t = 0, 1, ... its variance is
            ``noise_std**2 / (1 + t)**noise_decay``. Neelakantan et al. anneal by 0.55, from a variance eta of 0.01,
            0.3 or 1.
        maximize: maximise the objective instead.
        foreach: use the multi-tensor implementation; None leaves the choice to torch.
        fused: use torch's fused kernel for all but R and noise, which rounds otherwise; fastest on every device.
        capturable: let the step be captured in a CUDA graph, after :meth:`register_with_graph`. Give ``lr`` as a
            tensor if a schedule is to change it between replays; such a step runs the fused kernel.
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
        noise: str = "weight",
        noise_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "noise_std": noise_std,
            "calibration_lr": calibration_lr,
            "calibration_update": calibration_update,
            "noise": noise,
            "noise_decay": noise_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": False,  # torch adds it to every loaded group
        }
        self._noise = NoiseSource(seed)
        self._steps = torch.zeros(())  # a tensor, which a CUDA graph can count up
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

        Raises:
            ConfigurationError: a gradient is sparse; nothing was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        _refuse_sparse(self.param_groups)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            learnt = [p for p in params if get_role(p) != CALIBRATION]
            noisy = group["noise_std"] > 0
            grads = [p.grad for p in learnt]
            if noisy and group["noise"] == "gradient":
                grads = self._with_noise(grads, group)
            self._descend(learnt, grads, group)
            self._calibrate([p for p in params if get_role(p) == CALIBRATION], group)
            if noisy and group["noise"] == "weight":
                self._add_noise([p for p in learnt if get_role(p) == SHARED_WEIGHT], group)
        self._steps.add_(1)
        return loss

    def _descend(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        buffers = [self.state[p].get("momentum_buffer") for p in params] if momentum != 0 else []
        # The other implementations read a tensor's value on the host, which waits for the device.
        fused = group["fused"] or (group["capturable"] and isinstance(group["lr"], Tensor))
        if fused:  # its first step is one with empty buffers, but for all parameters at once or none
            buffers = [torch.zeros_like(p) if b is None else b for p, b in zip(params, buffers, strict=False)]
        sgd(
            params,
            grads,
            buffers or [None] * len(params),
            foreach=False if fused else group["foreach"],
            fused=fused or None,
            weight_decay=group["weight_decay"],
            momentum=momentum,
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=group["maximize"],
        )
        for param, buffer in zip(params, buffers, strict=False):
            self.state[param]["momentum_buffer"] = buffer

    def _calibrate(self, calibrations: list[Tensor], group: dict[str, Any]) -> None:
        downhill = (group["calibration_update"] == "descent") != group["maximize"]
        step_size = -group["calibration_lr"] if downhill else group["calibration_lr"]
        update = update_one_by_one if group["foreach"] is False else update_together
        update(calibrations, [r.grad for r in calibrations], step_size)

    def _add_noise(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        for batch, noise in self._noise.batches(weights):
            std = self._noise_std(group, batch[0].device)
            if isinstance(std, Tensor):
                torch._foreach_mul_(noise, std)
                std = 1.0
            torch._foreach_add_(batch, noise, alpha=std)

    def _with_noise(self, grads: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        sums = {}
        for batch, noise in self._noise.batches(grads):
            torch._foreach_mul_(noise, self._noise_std(group, batch[0].device))
            torch._foreach_add_(noise, batch)
            sums.update(zip(map(id, batch), noise, strict=True))
        return [sums[id(grad)] for grad in grads]

    def _noise_std(self, group: dict[str, Any], device: torch.device) -> float | Tensor:
        """Return the standard deviation in this step: a tensor on ``device`` if the host cannot know the step."""
        if group["noise_decay"] == 0:
            return group["noise_std"]
        steps = self._steps.item() if not group["capturable"] else self._steps_on(device)
        return group["noise_std"] * (1 + steps) ** (-group["noise_decay"] / 2)

    def _steps_on(self, device: torch.device) -> Tensor:
        if self._steps.device != device:
            self._steps = self._steps.to(device)
        return self._steps

    def register_with_graph(self, graph: torch.cuda.CUDAGraph) -> None:
        """Let replays of a CUDA graph draw new noise; call it before the step is captured.

        Warm up by a few steps on a side stream before that, as torch asks for every graph: they make the momentum.
        """
        devices = {p.device for group in self.param_groups for p in group["params"]}
        for device in devices:
            graph.register_generator_state(self._noise.generator(device))

    def state_dict(self) -> dict[str, Any]:
        """Return torch's optimizer state, and under ``"noise"`` seed, generators' states by device, and step."""
        return {**super().state_dict(), "noise": {**self._noise.state_dict(), "steps": self._steps.clone()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, noise included; one of ``torch.optim.SGD`` loads too and leaves the noise as it is.

        The noise continues to the bit on the same kind of device; on another kind it starts from the seed.
        """
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        if "noise" in state_dict:
            self._noise.load_state_dict(state_dict["noise"])
            self._steps.copy_(torch.as_tensor(state_dict["noise"].get("steps", 0)))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_noise": self._noise, "_steps": self._steps}


def _refuse_sparse(groups: list[dict[str, Any]]) -> None:
    for number, group in enumerate(groups):
        for param in group["params"]:
            if param.grad is not None and param.grad.layout is not torch.strided:
                raise ConfigurationError(
                    f"CSGD takes no sparse gradients, and a parameter {tuple(param.shape)} of group {number} has one; "
                    "build its layer with sparse=False"
                )


def _check_group(group: dict[str, Any]) -> None:
    for name in ("lr", "momentum", "weight_decay", "noise_std", "calibration_lr", "noise_decay"):
        if isinstance(group[name], Tensor) and (name != "lr" or group[name].numel() != 1):
            raise ConfigurationError(f"{name} must be a number, and only lr may be a tensor, of one element")
        if not group[name] >= 0:
            raise ConfigurationError(f"{name} must be 0 or above, got {group[name]!r}")
    for name, allowed in (("calibration_update", CALIBRATION_UPDATES), ("noise", NOISES)):
        if group[name] not in allowed:
            raise ConfigurationError(f"{name} must be one of {', '.join(allowed)}, got {group[name]!r}")
    if group["fused"] and group["foreach"]:
        raise ConfigurationError("fused=True and foreach=True exclude each other; drop one")
