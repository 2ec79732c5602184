"""What the model card says of uncertainty: how the numbers in the files were fitted, and what they are worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from string import Template
from typing import Any

from ._manifest import CONFIDENCE

_TEXT = Template("""## Uncertainty

The ONNX files carry numbers that were fitted on $pictures pictures which neither training nor test has seen, for each
file by its own logits: a temperature, thresholds of prediction sets and of decisions, quantiles of out-of-distribution
scores.

```python
from ccnn_zoo import runtime
from PIL import Image

classifier = runtime.load($runtime_name)
image = Image.new("$mode", ($width, $height), "gray")  # yours: "picture.png"
for result in classifier.classify([image], coverage=0.95, max_risk=0.05):
    print(result.prediction_set, result.abstained or result.label, result.ood.percentile)
```

$measured

""")
_NO_TEST = "What they are worth was not measured: no test pictures with classes were at hand."
_REST = (
    "The sets are those of the kind `lac`. No pictures of other things were at hand, so how well they are told from "
    "the known ones was not measured."
)


def uncertainty_section(details: Mapping[str, Any], example: Mapping[str, object]) -> str:
    """Return the section, empty where no file carries numbers.

    Args:
        details: the manifest's.
        example: ``runtime_name``, the arguments of ``runtime.load`` in Python; ``mode``, ``width`` and ``height``.
    """
    numbers = details.get(CONFIDENCE)
    if not numbers:
        return ""
    exports = {"fp32": details["export"], **details.get("further_exports", {})}
    found = {precision: export["measured"] for precision, export in exports.items() if export.get("measured")}
    fitted = {precision: numbers[path] for precision, path in details["networks"].items() if path in numbers}
    counts = sorted({entry["pictures"] for entry in fitted.values()})
    pictures = " or ".join(f"{count:,}" for count in counts)
    return _TEXT.substitute(pictures=pictures, measured=_table(found, fitted) if found else _NO_TEST, **example)


def _table(found: Mapping[str, Mapping[str, Any]], fitted: Mapping[str, Mapping[str, Any]]) -> str:
    first = next(iter(found.values()))
    header = [f"on the test part, {first['pictures']:,} pictures", *found]
    rows = [header, ["---"] * len(header)]
    rows.append(["temperature", *(f"{fitted[precision]['temperature']:.3f}" for precision in found)])
    rows += [[name, *values] for name, values in _rows(list(found.values()))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n{_REST}"


def _rows(found: list[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    def row(name: str, digits: int, unit: str = "") -> list[str]:
        return [_figure(one[name], digits, unit) for one in found]

    def entries(name: str, key: str, digits: int, unit: str = "") -> list[str]:
        return [_figure(one[name][key], digits, unit) for one in found]

    yield "error", row("error_percent", 2, " %")
    yield "NLL, as trained", row("nll", 4)
    yield "NLL, with the temperature", row("nll_fitted", 4)
    yield "ECE, as trained", row("ece_percent", 2, " %")
    yield "ECE, with the temperature", row("ece_percent_fitted", 2, " %")
    for coverage in found[0]["covered_percent"]:
        asked = f"sets for {100 * float(coverage):g} %"
        yield f"{asked}: hold the true class", entries("covered_percent", coverage, 2, " %")
        yield f"{asked}: classes", entries("set_size", coverage, 2)
    for risk in found[0]["decided_percent"]:
        asked = f"at most {100 * float(risk):g} % of decisions wrong"
        yield f"{asked}: decided", entries("decided_percent", risk, 2, " %")
        yield f"{asked}: wrong of them", entries("wrong_percent", risk, 2, " %")
    yield "AURC", row("aurc_percent", 3, " %")
    yield "AUROC of own errors", row("auroc_errors_percent", 2, " %")


def _figure(value: float | None, digits: int, unit: str) -> str:
    return "none" if value is None else f"{value:.{digits}f}{unit}"
