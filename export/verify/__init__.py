"""A graph in ONNX Runtime compared with the unmodified class in torch, and what torch gave, to be kept."""
