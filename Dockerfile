# The server's image: built on Debian bookworm, then only the two programs and the libraries they load.
#   docker build -t qmatmul .                              (--build-arg CUDA=OFF: without the CUDA device)
#   docker run --rm -p 127.0.0.1:8500:8500 -p 127.0.0.1:8501:8501 qmatmul
FROM debian:bookworm-slim AS build
WORKDIR /src
# ON: with the CUDA device, whose compiler comes from Python wheels. The program starts without a GPU or driver.
ARG CUDA=ON
# First, and alone: the packages are installed again only when their list changes.
COPY deploy/install-deps deploy/install-deps
COPY deploy/certificates /usr/local/share/ca-certificates
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
RUN deploy/install-deps $([ "$CUDA" = ON ] && echo --cuda)
COPY CMakeLists.txt CMakePresets.json ./
COPY proto proto
COPY kernels kernels
COPY server server
COPY client client
COPY deploy/cmake deploy/cmake
RUN cmake --preset release -DQMATMUL_TESTS=OFF -DQMATMUL_CUDA="$CUDA" \
 && cmake --build --preset release --target qmatmul-server qmatmul \
 && strip build/release/bin/qmatmul-server build/release/bin/qmatmul

FROM debian:bookworm-slim
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="qmatmul" \
      org.opencontainers.image.description="Quantized matrix multiplication as a gRPC service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends \
      libgrpc++1.51 libgrpc29 libprotobuf32 libabsl20220623 libspdlog1.10 libfmt9 \
      libprometheus-cpp-core1.0 libprometheus-cpp-pull1.0 libcurl4 libssl3 zlib1g libvulkan1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin qmatmul
COPY --from=build /src/build/release/bin/qmatmul-server /src/build/release/bin/qmatmul /usr/local/bin/
# A library that is missing here fails the build, not the start.
RUN qmatmul-server --version && qmatmul --version
COPY LICENSE /usr/share/doc/qmatmul/LICENSE
USER qmatmul
# Inside a container the loopback default would reach nobody; a published port says who may.
ENV QMATMUL_LISTEN=0.0.0.0:8500 \
    QMATMUL_HTTP_LISTEN=0.0.0.0:8501
EXPOSE 8500 8501
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 CMD ["qmatmul", "health"]
STOPSIGNAL SIGTERM
CMD ["qmatmul-server"]
