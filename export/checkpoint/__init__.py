"""Checkpoints as folders of files: where they are, what their headers say, and their weights; knows no family."""
