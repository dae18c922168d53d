# Two images from one file: `--target cpu` (default) and `--target gpu`.
# The GPU image needs only the NVIDIA driver and container toolkit on the host: TensorFlow's wheel brings CUDA along.
ARG BASE=docker.io/library/debian:12-slim

FROM ${BASE} AS base
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 tini ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home --shell /usr/sbin/nologin reconstream \
 && install -d -o reconstream -g reconstream /data /spool

FROM base AS builder
# A certificate bundle for pip, for sites behind an inspecting proxy; empty elsewhere.
ARG PIP_CERT
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv \
 && python3 -m venv /opt/reconstream
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY recon recon
COPY gadgets gadgets
COPY service service
COPY configs configs

FROM builder AS build-cpu
ARG PIP_CERT
RUN /opt/reconstream/bin/pip install --no-cache-dir --disable-pip-version-check '.[cpu]'

FROM builder AS build-gpu
ARG PIP_CERT
RUN /opt/reconstream/bin/pip install --no-cache-dir --disable-pip-version-check '.[gpu]'

FROM base AS service
ENV PATH=/opt/reconstream/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TF_CPP_MIN_LOG_LEVEL=2 \
    OMP_WAIT_POLICY=PASSIVE
EXPOSE 9002
WORKDIR /data
USER 1000
# The first client is queued until a worker is warm; the server answers queries at once.
HEALTHCHECK --interval=15s --timeout=5s --start-period=5s CMD ["reconstream", "health"]
ENTRYPOINT ["tini", "--", "reconstream"]
# Inside a container only the published ports are reachable, so listening on every address is safe here.
CMD ["serve", "--host", "0.0.0.0", "--port", "9002"]

FROM service AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-gpu /opt/reconstream /opt/reconstream

FROM service AS cpu
COPY --from=build-cpu /opt/reconstream /opt/reconstream
