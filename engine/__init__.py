"""Stage 2: ONNX graphs -> engines in a bundle, for any back end; only `build` in it knows the other two stages."""
