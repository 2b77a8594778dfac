"""Tensorrt."""
