# ./dev image builds it. For a release, pin the base and name the revision:
#   BASE=debian:bookworm-slim@sha256:... ./dev image
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
# Debian keeps only the newest build of a package, so a pinned version would break with its next security update.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends \
    cmake g++ ninja-build pkg-config protobuf-compiler protobuf-compiler-grpc \
    libabsl-dev libcli11-dev libcpp-httplib-dev libdnnl-dev libeigen3-dev libfmt-dev libgrpc++-dev liblapack-dev libpcre2-dev libprotobuf-dev \
    libspdlog-dev libsqlite3-dev libssl-dev nlohmann-json3-dev ocl-icd-opencl-dev prometheus-cpp-dev \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cmake --preset release -DADAPTERD_BUILD_TESTS=OFF -DADAPTERD_BUILD_BENCH=OFF \
  && cmake --build --preset release --parallel "$(nproc)" --target adapterd adapterd_health adapterd_smoke \
  && install -D --strip --target-directory=/out build/bin/adapterd build/bin/adapterd_health build/bin/adapterd_smoke

FROM ${BASE} AS runtime
# The libraries that the binaries link themselves; apt adds what those need. Volumes are mounted at /adapters and
# /models; the folders let the server start without. What it writes goes to /var/lib/adapterd. `clean`, because only some
# images of Debian empty apt's caches by themselves.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends \
    libabsl20220623 libcpp-httplib0.11 libdnnl2 libfmt9 libgfortran5 libgomp1 libgrpc++1.51 libgrpc29 libpcre2-8-0 \
    libprometheus-cpp-core1.0 libprotobuf32 libspdlog1.10 libsqlite3-0 libssl3 \
  && apt-get clean \
  && rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/log/apt /var/log/dpkg.log \
  && mkdir /adapters /models \
  && install -d -m 700 -o 65532 -g 65532 /var/lib/adapterd
COPY --from=build /out/ /usr/local/bin/

FROM runtime AS sbom
ARG VERSION=0.1.0
# The commit's time, so that the same source gives the same document.
ARG SOURCE_DATE_EPOCH
COPY scripts/sbom.sh /sbom.sh
RUN sh /sbom.sh adapterd "${VERSION}" /usr/local/bin/adapterd /usr/local/bin/adapterd_health \
    /usr/local/bin/adapterd_smoke > /adapterd.spdx.json

FROM runtime
COPY --from=sbom /adapterd.spdx.json /usr/share/doc/adapterd/
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
