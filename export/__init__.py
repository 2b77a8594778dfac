"""Stage 1: diffusers checkpoints -> verified ONNX graphs. Knows torch, diffusers, transformers."""
