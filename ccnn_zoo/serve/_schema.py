"""What goes over HTTP, typed: the service reads and writes by these, and describes itself by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.runtime import Classification
from ccnn_zoo.uncertainty import COVERAGES, RISKS

_SHARE = {"gt": 0, "lt": 1, "allow_inf_nan": False}


def _whole(value: object) -> object:
    # pydantic takes "5.0", "1_0" and " 5" too, which nobody means.
    if isinstance(value, str) and not (value.isascii() and value.isdecimal()):
        raise ValueError("Input should be an integer")
    return value


class Query(BaseModel):
    """What a request may ask for, beside its picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_k: Annotated[
        int, BeforeValidator(_whole), Field(ge=1, lt=10**9, description="How many of the most probable classes.")
    ] = 5
    coverage: float | None = Field(
        None,
        **_SHARE,
        description="Make a set of classes that holds the true one for this share of pictures: "
        f"one of {', '.join(map(str, COVERAGES))}. The service may have a default.",
    )
    max_risk: float | None = Field(
        None,
        **_SHARE,
        description="Decide only where at most this share of decisions is wrong: "
        f"one of {', '.join(map(str, RISKS))}. The service may have a default.",
    )

    @property
    def promises(self) -> dict[str, float]:
        """What of it :meth:`ccnn_zoo.runtime.ImageClassifier.classify` is asked to keep."""
        asked = {"coverage": self.coverage, "max_risk": self.max_risk}
        return {name: value for name, value in asked.items() if value is not None}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Query:
        """Make one of what came.

        Raises:
            ConfigurationError: a name is unknown, or a value is outside its range; names it.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            if first["type"] == "extra_forbidden":
                known = ", ".join(cls.model_fields)
                raise ConfigurationError(f"there is no parameter {name[:40]!r}; there are {known}") from error
            raise ConfigurationError(f"{name}: {first['msg']}, got {str(first['input'])[:40]!r}") from error


class _Read(BaseModel):
    """Read from the runtime's dataclasses."""

    model_config = ConfigDict(from_attributes=True, extra="forbid")


class Prediction(_Read):
    """One class that the picture may belong to."""

    label: str = Field(description="Name of the class.")
    probability: float = Field(ge=0, le=1, description="Of the logits over the temperature that the file carries.")
    index: int = Field(ge=0, description="Position of the class in the logits.")


class OutOfDistribution(_Read):
    """How unlike the known pictures it is."""

    percentile: float = Field(ge=0, le=100, description="Share of the held-out pictures that are less so, in percent.")
    energy: float = Field(description="Minus the log-sum-exp of its logits.")


class Answer(_Read):
    """The most probable classes of a picture, and their worth. Every field is always there.

    null stands for what was not asked for, or of which the network's file carries nothing.
    """

    predictions: list[Prediction] = Field(description="The most probable class first.")
    prediction_set: list[str] | None = Field(
        description="The classes among which the true one is with the coverage asked for, the most probable first."
    )
    abstained: str | None = Field(
        description="Why no decision is made at the max_risk asked for: ask a person. null where it is made."
    )
    entropy: float | None = Field(ge=0, description="Of the probabilities, in nats: 0 (sure) to log(classes).")
    agreement: float | None = Field(ge=0, le=1, description="Share of the branches that say what the network says.")
    mutual_information: float | None = Field(
        ge=0, description="How far the branches differ, in nats: 0 (all say the same) to log(branches)."
    )
    ood: OutOfDistribution | None
    branches: list[str] | None = Field(description="The most probable class of each branch.")

    @classmethod
    def of(cls, found: Classification) -> Answer:
        """Return the answer for a picture that was classified."""
        return cls.model_validate(found)


class About(_Read):
    """The network that answers."""

    model: str = Field(description="Name of its architecture.")
    labels: list[str] = Field(description="Its classes, in the order of the logits.")
    classify: str = Field(description="The request that classifies.")


class Health(_Read):
    """Whether pictures would be classified now."""

    status: str = Field(description='"ok", or what is wrong.')
    replicas: int | None = Field(None, ge=0, description="How many run.")


class Refusal(_Read):
    """Why a request was not answered."""

    error: str = Field(description="In words, with the remedy.")
