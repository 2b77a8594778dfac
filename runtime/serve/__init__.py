"""Bundles behind a server, a folder for each kind; knows the run, which is the same as that of fb-run."""
