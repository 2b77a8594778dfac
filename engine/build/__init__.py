"""From two checkpoints to a bundle: the one room that may call all others, which only fb-build-engines calls."""
