"""Serving a bundle with NVIDIA Triton: writing the model repository, the model inside the server, and a client."""
