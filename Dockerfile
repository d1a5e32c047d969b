# syntax=docker/dockerfile:1
# The label server, with the versions of uv.lock, as a user without rights on a read-only file system:
#
#   docker build --tag boltzformer .                                  PyTorch with CUDA; the driver is the machine's
#   docker build --tag boltzformer:cpu --build-arg TORCH=cpu .        PyTorch without CUDA
#   docker run --stop-timeout 120 --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --publish 127.0.0.1:8000:8000 \
#       --volume SCANS:/data --volume WORKSPACE:/workspace --volume MODEL:/models/model:ro boltzformer
#
# Weights are mounted, none are in the image. packaging/try_container.py carries out these steps without an engine.

FROM python:3.11-slim-bookworm AS base

FROM base AS wheels
ARG TORCH=cuda
# npm of whatever version the base image has; what it fetches is locked.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends npm && rm -rf /var/lib/apt/lists/*
RUN python -m pip install --no-cache-dir uv==0.13.9
WORKDIR /src
COPY . .
RUN python packaging/wheels.py /wheels --torch "$TORCH" --extra label

FROM base
RUN useradd --uid 10001 --home-dir /workspace --shell /usr/sbin/nologin boltzformer \
    && install --directory --owner boltzformer --group boltzformer /data /workspace /models
RUN --network=none --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python -m venv /opt/boltzformer \
    && /opt/boltzformer/bin/pip install --no-cache-dir --no-index --find-links /wheels --require-hashes -r /wheels/requirements.txt
ENV PATH=/opt/boltzformer/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/workspace \
    USER=boltzformer \
    MPLCONFIGDIR=/tmp/matplotlib \
    HF_HUB_OFFLINE=1 \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /workspace
VOLUME ["/data", "/workspace"]
EXPOSE 8000
# Past the proxy that Docker's configuration may hand to containers.
HEALTHCHECK --interval=30s --timeout=10s --start-period=5m --retries=3 \
    CMD ["python", "-c", "from urllib.request import ProxyHandler as P, build_opener; build_opener(P({})).open('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["boltzformer"]
CMD ["serve", "/data", "--checkpoint", "/models/model", "--workspace", "/workspace", "--host", "0.0.0.0"]
