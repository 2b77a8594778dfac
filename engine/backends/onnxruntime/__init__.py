"""ONNX Runtime: runs the exported ONNX file itself, on CPUs everywhere and on GPUs through its CUDA provider."""
