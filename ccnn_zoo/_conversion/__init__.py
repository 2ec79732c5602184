"""From a plain network to a calibrated one: survey it once, apply what was found to a copy, check the result by it."""
