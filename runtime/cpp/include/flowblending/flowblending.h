/* FlowBlending for every language that can call C. No exception crosses it.
 *
 * A call that fails returns NULL or a code other than FB_OK; fb_last_error() then says why in one plain sentence.
 * See flowblending.hpp for what the calls do. */
#ifndef FLOWBLENDING_H
#define FLOWBLENDING_H

#include <stdint.h>

#if defined(_WIN32)
#define FB_API __declspec(dllexport)
#else
#define FB_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define FB_ABI_VERSION 3

enum fb_code {
  FB_OK = 0,
  FB_INVALID_ARGUMENT = 1,
  FB_BAD_FILE = 2,
  FB_UNAVAILABLE = 3,
  FB_FAILED = 4,
  FB_CANCELLED = 5
};
enum fb_verify { FB_VERIFY_SIZES = 0, FB_VERIFY_CHECKSUMS = 1 };
enum fb_device { FB_CPU = 0, FB_CUDA = 1 };
enum fb_dtype { FB_FLOAT32 = 0, FB_FLOAT16 = 1, FB_INT64 = 2, FB_INT32 = 3 };

typedef struct fb_bundle fb_bundle;
typedef struct fb_sampler fb_sampler;

/* A step has finished: number `index` of `steps`, counted from 0. Zero goes on, anything else cancels. */
typedef int (*fb_on_step)(int index, int steps, const char* model, double seconds, void* user);

/* FB_ABI_VERSION of the library; compare it with the header's. */
FB_API int fb_abi_version(void);

/* Why the last call on this thread failed; empty if it did not. Valid until the next call on this thread. */
FB_API const char* fb_last_error(void);

FB_API fb_bundle* fb_open(const char* folder, int verify);
FB_API const char* fb_bundle_id(const fb_bundle* bundle);
/* Writes [C, F, H, W] of the bundle's default size; a program may have another, see fb_sampler_latent_shape. */
FB_API int fb_latent_shape(const fb_bundle* bundle, int64_t shape[4]);
/* Samplers made from a bundle may outlive it. NULL is ignored. */
FB_API void fb_close(fb_bundle* bundle);

/* `stream` is a cudaStream_t for FB_CUDA, else NULL; `threads` of ONNX Runtime on the CPU, 0 for all. */
FB_API fb_sampler* fb_sampler_create(const fb_bundle* bundle, int device, void* stream, int threads);
FB_API int fb_sampler_load(fb_sampler* sampler, const char* program);
/* Writes [C, F, H, W] of the loaded program's noise. */
FB_API int fb_sampler_latent_shape(const fb_sampler* sampler, int64_t shape[4]);
/* Likewise of its latents, which may have fewer frames. */
FB_API int fb_sampler_result_shape(const fb_sampler* sampler, int64_t shape[4]);
/* How many inputs fb_sampler_set has to give; -1 if `sampler` is NULL. */
FB_API int fb_sampler_inputs(const fb_sampler* sampler);
/* Names live until the next fb_sampler_load. `shape` has room for 8 sizes. */
FB_API int fb_sampler_input(const fb_sampler* sampler, int index, const char** branch, const char** name, int* dtype,
                            int64_t* shape, int* rank);
FB_API int fb_sampler_set(fb_sampler* sampler, const char* branch, const char* name, const void* data, int dtype,
                          const int64_t* shape, int rank);
/* `noise` is float32 [1, C, F, H, W] of fb_sampler_latent_shape, and `latents` of fb_sampler_result_shape; `on_step` may
 * be NULL. */
FB_API int fb_sample(fb_sampler* sampler, const float* noise, float* latents, fb_on_step on_step, void* user);
/* NULL is ignored. */
FB_API void fb_sampler_destroy(fb_sampler* sampler);

#ifdef __cplusplus
}
#endif

#endif
