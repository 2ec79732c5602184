"""What files of earlier versions say that today's networks have no word for."""

from __future__ import annotations

FORMER = {"input_scale": ("none",), "scaled_layers": ("first", "all")}
"""Options of earlier versions, by the values that changed nothing, which stand in checkpoints of then."""
