"""What the demo measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkReport:
    """One trained network, or several joined into one.

    Args:
        branches: number K of branches.
        trained_parameters: weights that training moves, R included.
        deployed_parameters: weights of the folded network.
        test_error_percent: on the test digits, after the last epoch.
        test_loss: mean cross-entropy on the same.
        seconds: of training; 0 if it was found in the cache.
    """

    branches: int
    trained_parameters: int
    deployed_parameters: int
    test_error_percent: float
    test_loss: float
    seconds: float


@dataclass(frozen=True)
class DoubtReport:
    """What the downloaded file says of its own answers.

    Args:
        fitted_on: digits held out of the training, on which the numbers were fitted.
        coverage: asked of the sets of classes.
        covered: test digits whose true class is in their set.
        mean_set_size: classes in a set.
        max_risk: asked of the decisions.
        decided: test digits that the file decides; the others it leaves to a person.
        wrong: of these, the wrong ones.
        noise_told: share of as many pictures of noise that are unlike more than 95 % of the held-out digits.
        digits_told: the same of the test digits, 0.05 to 0.1 by construction: one of two scores is enough.
    """

    fitted_on: int
    coverage: float
    covered: int
    mean_set_size: float
    max_risk: float
    decided: int
    wrong: int
    noise_told: float
    digits_told: float


@dataclass(frozen=True)
class DemoReport:
    """What the demo measured.

    Args:
        plain: networks with one branch, which differ in their first weights and in the order of the digits.
        ensemble: these, joined into one network, which is what is published.
        calibrated: the network whose branches share one weight, same recipe.
        data: name of the data.
        learned_from: digits that each was trained on.
        images: test digits.
        seed: of all trainings.
        epochs: of all trainings.
        provider: the execution provider that classified the digits.
        onnx_error_percent: error of the downloaded ONNX network on the test digits.
        same_class_as_torch: digits, of ``images``, on which ONNX and torch agree.
        doubt: what the file knows of its own answers.
        versions: package name to version, as of training.
        picture: curves, digits and R as a PNG file.
        repository: folder of the published network.
    """

    plain: tuple[NetworkReport, ...]
    ensemble: NetworkReport
    calibrated: NetworkReport
    data: str
    learned_from: int
    images: int
    seed: int
    epochs: int
    provider: str
    onnx_error_percent: float
    same_class_as_torch: int
    doubt: DoubtReport
    versions: dict[str, str]
    picture: str
    repository: str
