"""Transformers in fp8: the calibration that their ranges come from, and graphs quantised with it."""
