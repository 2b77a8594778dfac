"""The claims about schedules, measured on the shapes pair: ``python -m benchmarks.schedules --help``."""
