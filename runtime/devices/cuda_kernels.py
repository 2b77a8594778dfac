"""The source of the sampler's kernels, which NVRTC compiles for the GPU that is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

from flowblending import FlowBlendingError
from flowblending.runtime.devices.cuda_probe import PROBE_SOURCE
from flowblending.runtime.devices.cuda_rescale import RESCALE_SOURCE
from flowblending.runtime.devices.pictures import PICTURES_SOURCE
from flowblending.runtime.devices.tiles import TILES_SOURCE

MAX_TERMS: Final = 8
"""Terms of one fused kernel; longer mixes take several."""

_Term = TypeVar("_Term")

_WATCH_SOURCE: Final = """
extern "C" __global__ void watch(const float* values, unsigned long long count, unsigned index, unsigned* first) {
  bool bad = false;
  for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
       i += gridDim.x * (unsigned long long)blockDim.x)
    bad |= (__float_as_uint(values[i]) & 0x7f800000u) == 0x7f800000u;
  if (bad) atomicMin(first, index);
}

extern "C" __global__ void watch_told(const float* values, unsigned long long count, const unsigned* index,
                                      unsigned* first) {
  bool bad = false;
  for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
       i += gridDim.x * (unsigned long long)blockDim.x)
    bad |= (__float_as_uint(values[i]) & 0x7f800000u) == 0x7f800000u;
  if (bad) atomicMin(first, *index);
}
"""


_HOLD_SOURCE: Final = """
extern "C" __global__ void hold(float* out, const float* source, unsigned long long count, unsigned long long width,
                                unsigned long long pitch, unsigned long long start, unsigned long long out_pitch,
                                unsigned long long out_start) {
  for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
       i += gridDim.x * (unsigned long long)blockDim.x) {
    unsigned long long row = i / width, column = i % width;
    out[row * out_pitch + out_start + column] = source[row * pitch + start + column];
  }
}
"""


def kernel_names() -> list[str]:
    """Of the kernels in `kernel_source`: ``mix1`` to ``mix8``, and those of other files.

    Those with ``_told`` in their name read their numbers from memory, where each launch of a graph finds others.
    """
    mixes = [f"mix{count}{told}" for told in ("", "_told") for count in range(1, MAX_TERMS + 1)]
    return [*mixes, "watch", "watch_told", "probe", "moments", "rescale", "pictures", "place", "hold"]


def kernel_source() -> str:
    """CUDA C++: mix kernels for every number of terms, whose sum is not fused; then those of other files."""
    mixes = "".join(source(count) for source in (_mix_source, _told_source) for count in range(1, MAX_TERMS + 1))
    return mixes + _WATCH_SOURCE + PROBE_SOURCE + RESCALE_SOURCE + PICTURES_SOURCE + TILES_SOURCE + _HOLD_SOURCE


def chained(terms: Sequence[_Term], again: _Term) -> list[list[_Term]]:
    """A mix's terms by the kernels that it takes; those after the first begin with ``again``, the sum so far."""
    chunks = [list(terms[:MAX_TERMS])]
    for start in range(MAX_TERMS, len(terms), MAX_TERMS - 1):
        chunks.append([again, *terms[start : start + MAX_TERMS - 1]])
    return chunks


def compile_kernels(core: Any, architecture: str) -> dict[str, Any]:
    """Compile them, in a fraction of a second.

    Args:
        core: ``cuda.core``.
        architecture: such as ``sm_89``.

    Raises:
        FlowBlendingError: NVRTC is not installed, or does not know the GPU.
    """
    try:
        code = core.Program(kernel_source(), "c++", core.ProgramOptions(arch=architecture, fma=False)).compile("cubin")
    except Exception as error:  # a missing library and a failed compilation share no class
        raise FlowBlendingError(
            f"NVRTC cannot compile the sampler's kernels ({str(error).strip().splitlines()[0]}); "
            "install nvidia-cuda-nvrtc for the CUDA version of your driver."
        ) from None
    return {name: code.get_kernel(name) for name in kernel_names()}


def _mix_source(count: int) -> str:
    # No __restrict__: the output may be the first term.
    parameters = ", ".join(f"float c{index}, const float* t{index}" for index in range(count))
    return _sum_source(f"mix{count}", parameters, "", count)


def _told_source(count: int) -> str:
    parameters = ", ".join(["const float* c", *(f"const float* t{index}" for index in range(count))])
    read = ", ".join(f"c{index} = c[{index}]" for index in range(count))
    return _sum_source(f"mix{count}_told", parameters, f"\n  const float {read};", count)


def _sum_source(name: str, parameters: str, read: str, count: int) -> str:
    total = " + ".join(f"c{index} * t{index}[i]" for index in range(count))
    return f"""
extern "C" __global__ void {name}(float* out, unsigned long long count, {parameters}) {{{read}
  for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
       i += gridDim.x * (unsigned long long)blockDim.x)
    out[i] = {total};
}}
"""
