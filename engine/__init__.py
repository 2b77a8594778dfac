"""Stage 2: ONNX graphs -> engines in a bundle. Knows ONNX Runtime, TensorRT and TensorRT-RTX."""
