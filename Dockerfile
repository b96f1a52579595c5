# docker build -t adapterd . For a release, pin the base and name the revision:
#   --build-arg BASE=debian:bookworm-slim@sha256:... --build-arg REVISION="$(git rev-parse HEAD)"
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
# Debian keeps only the newest build of a package, so a pinned version would break with its next security update.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends \
    cmake g++ ninja-build pkg-config protobuf-compiler protobuf-compiler-grpc \
    libabsl-dev libcli11-dev libcpp-httplib-dev libdnnl-dev libfmt-dev libgrpc++-dev libpcre2-dev libprotobuf-dev \
    libspdlog-dev libsqlite3-dev libssl-dev nlohmann-json3-dev ocl-icd-opencl-dev prometheus-cpp-dev \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cmake --preset release -DADAPTERD_BUILD_TESTS=OFF -DADAPTERD_BUILD_BENCH=OFF \
  && cmake --build --preset release --target adapterd adapterd_health \
  && install -D --strip --target-directory=/out build/bin/adapterd build/bin/adapterd_health

FROM ${BASE}
# The libraries that the binaries link themselves; apt adds what those need. An adapter volume is mounted at
# /adapters; the folder lets the server start without one.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends \
    libabsl20220623 libcpp-httplib0.11 libdnnl2 libfmt9 libgomp1 libgrpc++1.51 libgrpc29 libpcre2-8-0 \
    libprometheus-cpp-core1.0 libprotobuf32 libspdlog1.10 libsqlite3-0 libssl3 \
  && rm -rf /var/lib/apt/lists/* \
  && mkdir /adapters
COPY --from=build /out/ /usr/local/bin/
# The server has its own worker threads: each of them must not start a team of OpenMP threads that spin.
ENV OMP_NUM_THREADS=1 \
  OMP_WAIT_POLICY=passive \
  ADAPTERD_GRPC_ADDRESS=0.0.0.0:50051 \
  ADAPTERD_ADMIN_ADDRESS=0.0.0.0:9464 \
  ADAPTERD_ADAPTER_ROOT=/adapters
EXPOSE 50051 9464
# A number, because Kubernetes' runAsNonRoot cannot judge a name.
USER 65532:65532
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["adapterd_health"]
ENTRYPOINT ["adapterd"]
# Last, so that a new revision keeps the layers above.
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="adapterd" \
  org.opencontainers.image.description="A gRPC service that holds LoRA adapters and applies or merges them" \
  org.opencontainers.image.licenses="Apache-2.0" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${REVISION}" \
  org.opencontainers.image.base.name="${BASE}"
