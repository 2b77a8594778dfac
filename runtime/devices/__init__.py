"""Where tensors lie and are combined, the host or a CUDA device; knows back ends, and nothing of sampling."""
