"""Measures a GPU in stages that each fit ten minutes: see docs/gpu.md, and ``python -m benchmarks.gpu --help``.

``stage`` and ``record`` know what a stage is and what it leaves behind; ``runner`` runs each in a process of its own,
which is ``worker``; ``stages`` lists them, and what they measure is in one file for each kind.
"""
