"""What of a plain network is calibrated, where its branches meet, and which networks are refused unseen."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ccnn_zoo._conversion.kinds import is_calibratable_conv, is_linear, is_per_channel, refuse_attachments
from ccnn_zoo._conversion.options import ConversionOptions
from ccnn_zoo.errors import CalibrationError
from ccnn_zoo.layers import BranchConv2d, BranchLinear, CalibratedConv2d

# Without parameters, or with so small an effect that comparing outputs would not tell.
_MIXES_CHANNELS = {
    nn.LayerNorm: "normalises over the channels of all branches",
    nn.RMSNorm: "normalises over the channels of all branches",
    nn.LocalResponseNorm: "normalises over neighbouring channels, also those of another branch",
    nn.CrossMapLRN2d: "normalises over neighbouring channels, also those of another branch",
    nn.Softmax2d: "normalises over the channels of all branches",
    nn.MultiheadAttention: "attends over the channels of all branches",
}


@dataclass(frozen=True)
class Survey:
    """What :func:`survey` found in a plain network, by names of modules: it holds for every copy.

    Args:
        convs: the convolutions that become calibrated ones, in the order of registration.
        classifier: the layer in which the branches meet; None where the network ends in features.
        image_readers: those of ``convs`` that read the image itself, which all branches share.
    """

    convs: tuple[str, ...]
    classifier: str | None
    image_readers: tuple[str, ...]


def survey(model: nn.Module, options: ConversionOptions) -> Survey:
    """Return what of ``model`` is calibrated, as far as its modules tell: the first convolution reads the image.

    Args:
        model: the plain network; it is only looked at.
        options: how it is to be calibrated.

    Raises:
        CalibrationError: a module has no calibrated form, there is no convolution, or there are classes and no layer
            in which the branches could meet; names it and why.
    """
    convs = _find_convs(model)
    classifier = _find_classifier(model)
    if options.merge == "probability" and options.branches > 1:
        _refuse_hidden_classifier(model, classifier)
    names = tuple(name for name in convs if name != classifier)
    if not names:
        raise CalibrationError(f"{type(model).__name__} has no nn.Conv2d to calibrate")
    return Survey(names, classifier, names[:1])


def _find_convs(model: nn.Module) -> list[str]:
    convs: list[str] = []
    linear = ""
    for name, module in model.named_modules():
        if is_calibratable_conv(module):
            if linear:
                raise CalibrationError(
                    f"{linear} (Linear) comes before {name} (Conv2d): it would mix the channels of all branches. "
                    "Only linear layers after the last convolution can be calibrated."
                )
            refuse_attachments(name, module)
            if module.padding_mode != "zeros":
                raise CalibrationError(f"{name} has padding_mode={module.padding_mode!r}; only 'zeros' is supported")
            convs.append(name)
        elif is_linear(module):
            linear = linear or name
        else:
            _refuse(name or "the model", module)
    if "" in convs:
        raise CalibrationError("a lone nn.Conv2d is no network; build a CalibratedConv2d, or wrap it in nn.Sequential")
    return convs


def _find_classifier(model: nn.Module) -> str | None:
    """Return where branches meet: the first linear layer, else the convolution that timm calls classifier."""
    found = next(((name, module) for name, module in model.named_modules() if is_linear(module)), None)
    if found is None and callable(getattr(model, "get_classifier", None)):
        classifier = model.get_classifier()
        pixelwise = {"kernel_size": (1, 1), "stride": (1, 1), "padding": (0, 0), "groups": 1}
        if type(classifier) is nn.Conv2d and all(getattr(classifier, name) == it for name, it in pixelwise.items()):
            found = next((name, module) for name, module in model.named_modules() if module is classifier)
    if found is not None:
        refuse_attachments(*found)
        return found[0]
    if isinstance(classes := getattr(model, "num_classes", 0), int) and classes > 0:
        raise CalibrationError(
            f"{type(model).__name__} has {classes} classes and no nn.Linear in which its branches could meet, nor a "
            "convolution that get_classifier() names"
        )
    return None


def _refuse_hidden_classifier(model: nn.Module, classifier: str | None) -> None:
    """Refuse to give every branch a classifier of its own where that would not be the last layer."""
    linears = [name for name, module in model.named_modules() if is_linear(module)]
    if len(linears) > 1 or (classifier is not None and not linears):
        found = f"linear layers {', '.join(linears)}" if linears else "a convolution as its classifier"
        raise CalibrationError(
            f"merge='probability' needs a network whose one linear layer is its classifier; {type(model).__name__} has "
            f"{found}. Take merge='mean', 'max' or 'concat'"
        )


def _refuse(name: str, module: nn.Module) -> None:
    kind = type(module).__name__
    if isinstance(module, CalibratedConv2d | BranchLinear | BranchConv2d):
        raise CalibrationError(f"{name} is calibrated already; pass the plain network")
    for mixing, why in _MIXES_CHANNELS.items():
        if isinstance(module, mixing):
            raise CalibrationError(f"{name} ({kind}) {why}: the branches would not stay apart")
    if isinstance(module, nn.Conv2d):
        raise CalibrationError(
            f"{name} ({kind}) is an nn.Conv2d that does more than convolve with its weight, for example standardise "
            "it; only nn.Conv2d itself and timm's Conv2dSame can be calibrated"
        )
    own = [n for n, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
    if own and not is_per_channel(module):
        raise CalibrationError(
            f"{name} ({kind}) has parameters or buffers of its own ({', '.join(own)}) and no calibrated form is known. "
            "Supported: nn.Conv2d, batch, group and instance normalisation, nn.PReLU, linear classifiers, and layers "
            "without parameters."
        )
