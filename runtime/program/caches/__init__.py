"""Step caches: at which steps an engine runs, and what stands for its velocity where it does not."""
