# syntax=docker/dockerfile:1
# Generation on an NVIDIA GPU. Mount the folder that holds the bundle; the video is written there too.
#
#   docker build -t flowblending .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD":/data flowblending wan --prompt "A cat on the grass"
#
# fb-serve in place of fb-run, with deploy/compose.yaml around it or alone (docs/serve.md):
#
#   docker build --target serve --build-arg EXTRAS=tensorrt,video,serve -t flowblending-serve .
#
# EXTRAS chooses the back end: tensorrt, tensorrt-rtx or cuda (ONNX Runtime). A TensorRT plan runs on the version
# that built it: build bundles with the tensorrt of constraints.txt, or in an image with EXTRAS=tensorrt,video,build,cuda
# (docker run --entrypoint fb-build-engines ...).
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04 AS installed

ARG EXTRAS=tensorrt,video
ENV HOME=/tmp PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PATH=/opt/venv/bin:$PATH

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv \
    && useradd --create-home --uid 10001 flowblending

WORKDIR /opt/flowblending
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY flowblending flowblending
COPY export export
COPY engine engine
COPY runtime runtime
# The TensorRT-RTX package makes links in its own folder when it is first imported, which takes root.
RUN pip install --constraint constraints.txt ".[${EXTRAS}]" \
    && (python3 -c "import onnxruntime_ep_nv_tensorrt_rtx" 2>/dev/null || true)

USER flowblending

FROM installed AS serve
# Jobs and videos; a volume that is mounted here gets this folder's owner.
USER root
RUN install --directory --owner flowblending /served
USER flowblending
WORKDIR /bundles
VOLUME /served
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
# 0.0.0.0 is the container's own network; keys are asked for all the same: FB_SERVE_API_KEYS, or --api-keys.
ENTRYPOINT ["fb-serve", "--host", "0.0.0.0", "--port", "8000", "--data", "/served"]
CMD ["--help"]

FROM installed AS run
WORKDIR /data
ENTRYPOINT ["fb-run"]
CMD ["--help"]
