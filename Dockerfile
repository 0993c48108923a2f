# Not built or run where this project is developed: please report what fails.
#
#   docker build -t animatelcm .
#   docker run --rm -v "$PWD:/clips" animatelcm generate "a red circle moving down on a white background" -o circle.gif
#
# Downloaded models stay in a volume with -v animatelcm-models:/models.
FROM rust:1.90-bookworm AS build
WORKDIR /src
COPY . .
# `--build-arg FEATURES=nats` adds features that are not on by default.
ARG FEATURES=
RUN cargo build --release --locked ${FEATURES:+--features "$FEATURES"}

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends libstdc++6 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/animatelcm /usr/local/bin/animatelcm
COPY LICENSE-MIT LICENSE-APACHE THIRD_PARTY_NOTICES.md /usr/share/doc/animatelcm/
ENV HF_HOME=/models
RUN mkdir -p /models /clips && chmod 1777 /models /clips && animatelcm --version
VOLUME /models
WORKDIR /clips
USER 1000:1000
ENTRYPOINT ["animatelcm"]
