# The image: what Cargo.lock says, built against the system's OpenSSL, run as nobody in particular.
# Settings are mounted at /etc/runbell, state lives in the volume.

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends pkg-config libssl-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
ENV CARGO_PROFILE_RELEASE_LTO=thin CARGO_PROFILE_RELEASE_STRIP=debuginfo

# The dependencies by themselves: this layer is built anew only when they change. Cargo wants to see
# every target that the manifest names.
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches \
 && touch src/lib.rs \
 && echo 'fn main() {}' | tee src/main.rs benches/intake.rs > benches/sinks.rs \
 && cargo build --locked --release

# Cargo goes by the time of a file, and these may be older than the empty ones just built.
COPY . .
RUN touch src/lib.rs src/main.rs \
 && cargo build --locked --release

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libssl3 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --system --gid 65532 runbell \
 && useradd --system --uid 65532 --gid runbell --home-dir /var/lib/runbell --shell /usr/sbin/nologin runbell \
 && install -d -m 0700 -o runbell -g runbell /var/lib/runbell \
 && install -d -m 0750 -o runbell -g runbell /var/log/runbell
COPY --from=build /build/target/release/runbell /usr/local/bin/runbell
COPY LICENSE /usr/share/doc/runbell/LICENSE
# A number, so that an orchestrator can see that it is not root.
USER 65532:65532
WORKDIR /var/lib/runbell
VOLUME /var/lib/runbell
# SNS posts to the first. The second is [admin] listen: on the loopback, where the health check asks,
# unless the settings say otherwise.
EXPOSE 8443 9644
HEALTHCHECK --interval=10s --timeout=6s --start-period=10s \
  CMD ["runbell", "ready", "--url", "http://127.0.0.1:9644/-/ready"]
ENTRYPOINT ["runbell"]
CMD ["serve", "--config", "/etc/runbell/runbell.toml"]
