"""The mathematics of the dead direction: pure functions on numpy float64 arrays. No I/O, no model, no torch."""
