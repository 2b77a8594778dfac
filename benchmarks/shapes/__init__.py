"""A pair of video models that was really trained: its data, its training, its judge (see README.md here)."""
