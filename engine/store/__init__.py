"""The cache of built components: kept by key, shared by processes, pruned; knows files and keys, and no models."""
