"""Quantising a traced graph to fp8, and observing what enters its layers; for any family."""
