"""A stand-in for NVIDIA's driver, and for TensorRT on it: what uses a GPU is tested on a machine that has none.

``driver/`` is a ``libcuda.so.1`` in C++ on which the real cuda-core, cuda-bindings and NVRTC run. Device memory is host
memory at addresses that the host cannot touch; streams run as late as CUDA allows; the kernels' own source is compiled
for the CPU; every use of memory that was freed is a fault; a journal tells what was asked for. ``tensorrt_stand_in``
runs ONNX Runtime's CPU kernels in the stream's order where `TrtEngine` asks for a plan.

Tests with the mark ``cuda`` run on a GPU where there is one, and in a process with the stand-in where there is none
(`plugin`); those that take the fixture ``driver`` always run on the stand-in.

Libraries that are linked to libcudart want tables of the driver that are private to NVIDIA (TensorRT's compilers, ONNX
Runtime's CUDA provider): they do not run on it. What a real GPU computes, and how fast, only a real GPU tells.
"""
