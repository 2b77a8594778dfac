"""TensorRT and TensorRT-RTX: compiling plans, their listings and weights, and running them on a CUDA device."""
