"""CSGD, the calibrated stochastic gradient descent (Algorithm 1 of the paper).

Source: "Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from ccnn_zoo._base.checks import check_choice
from ccnn_zoo._base.compat import foreach_add_, foreach_mul_
from ccnn_zoo._base.roles import CALIBRATION, SHARED_WEIGHT
from ccnn_zoo.errors import ConfigurationError

from ._algorithm import CALIBRATION_UPDATES, csgd_one_by_one, csgd_together
from ._groups import check_known, groups_of, layers_of, refuse_lost_roles, regrouped, role_in
from ._noise import NOISES, NoiseSource


class CSGD(Optimizer):
    """Calibrated SGD: momentum SGD on w with Gaussian noise, projected gradient steps on R.

    For every calibrated convolution, with gradients taken at w and R of the step before::

        w <- w - lr * sum_k R_k * df/dH_k + N(0, sigma)
        R <- |R - calibration_lr * df/dR|, then divided by its sum over branches

    The first sum is what autograd gives for f(R * w). Parameters of other layers take plain momentum SGD steps,
    bit-equal to ``torch.optim.SGD``'s. R knows neither momentum nor weight decay. The steps themselves are functions,
    in :mod:`ccnn_zoo.optim._algorithm`.

    Give it the model: it finds w and R through the layers, makes the parameter groups w, R and rest, and every step
    makes sure that it still knows the parameters of the layers. Parameters alone know what they are, and are grouped in
    the same way. Groups that were cut before, as timm's factory hands them over, stay as they are; the steps are the
    same. Like every optimizer, build it after what makes new parameters (FSDP's ``fully_shard``).

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
        ConfigurationError: an argument is out of range; a model has no calibrated layer; a parameter looks like an R
            that does not know it.
    """

    _layers: Sequence[tuple[str, nn.Module]] = ()  # of the model, if it was given
    _order: Sequence[int] = ()  # which parameter of those given is the first, the second, ... of the groups

    def __init__(
        self,
        params: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
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
        if isinstance(params, nn.Module):
            self._layers = layers_of(params)
            params = params.parameters()
        groups, self._order = groups_of(list(params))
        super().__init__(groups, defaults)
        refuse_lost_roles(self.param_groups)

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
            ConfigurationError: a gradient is sparse, or a layer of the model has other parameters than the optimizer
                knows; nothing was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        _refuse_sparse(self.param_groups)
        check_known(self._layers, self.param_groups)
        for group in self.param_groups:
            self._step_of(group)
        self._steps.add_(1)
        return loss

    def _step_of(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        learnt = [p for p in params if role_in(group, p) != CALIBRATION]
        calibrations = [p for p in params if role_in(group, p) == CALIBRATION]
        grads, noise = [p.grad for p in learnt], ()
        if group["noise_std"] > 0 and group["noise"] == "gradient":
            grads = self._with_noise(grads, group)
        elif group["noise_std"] > 0:
            noise = self._noise_for([p for p in learnt if role_in(group, p) == SHARED_WEIGHT], group)
        momenta = [self.state[p].get("momentum_buffer") for p in learnt] if group["momentum"] != 0 else []
        # The other implementations read a tensor's value on the host, which waits for the device.
        fused = group["fused"] or (group["capturable"] and isinstance(group["lr"], Tensor))
        if fused:  # its first step is one with empty buffers, but for all parameters at once or none
            momenta = [torch.zeros_like(p) if b is None else b for p, b in zip(learnt, momenta, strict=False)]
        step, how = csgd_together, {"foreach": group["foreach"], "fused": fused}
        if group["foreach"] is False and not fused:
            step, how = csgd_one_by_one, {}
        downhill = (group["calibration_update"] == "descent") != group["maximize"]
        momenta = momenta or [None] * len(learnt)
        step(
            learnt,
            grads,
            momenta,
            noise,
            calibrations,
            [r.grad for r in calibrations],
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            step_size=-group["calibration_lr"] if downhill else group["calibration_lr"],
            maximize=group["maximize"],
            **how,
        )
        for param, buffer in zip(learnt, momenta, strict=True):
            if buffer is not None:
                self.state[param]["momentum_buffer"] = buffer

    def _noise_for(
        self, weights: list[Tensor], group: dict[str, Any]
    ) -> Iterator[tuple[list[Tensor], list[Tensor], float]]:
        for batch, noise in self._noise.batches(weights):
            std = self._noise_std(group, batch[0].device)
            if isinstance(std, Tensor):
                foreach_mul_(noise, std)
                std = 1.0
            yield batch, noise, std

    def _with_noise(self, grads: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        sums = {}
        for batch, noise in self._noise.batches(grads):
            foreach_mul_(noise, self._noise_std(group, batch[0].device))
            foreach_add_(noise, batch)
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
        """Load a state, noise included; one of ``torch.optim.SGD`` on the same parameters loads too and leaves the
        noise as it is.

        The noise continues to the bit on the same kind of device; on another kind it starts from the seed.
        """
        super().load_state_dict(regrouped(state_dict, self.param_groups, self._order))
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        if "noise" in state_dict:
            self._noise.load_state_dict(state_dict["noise"])
            self._steps.copy_(torch.as_tensor(state_dict["noise"].get("steps", 0)))

    def __getstate__(self) -> dict[str, Any]:
        # A copy does not watch over the layers, which need not be copied with it.
        return {**super().__getstate__(), "_noise": self._noise, "_steps": self._steps, "_order": self._order}


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
        check_choice(name, group[name], allowed)
    if group["fused"] and group["foreach"]:
        raise ConfigurationError("fused=True and foreach=True exclude each other; drop one")
