# The relay in an image: built in one stage, run in another without a shell's needs, as nobody in particular.
#
#   docker build --build-arg COMMIT="$(git rev-parse --short=12 HEAD)" --tag standpipe .
#   docker run --read-only --cap-drop ALL --security-opt no-new-privileges \
#       --security-opt seccomp=deploy/seccomp.json --stop-timeout 60 \
#       --volume standpipe:/var/lib/standpipe --publish 15555:15555 --publish 127.0.0.1:9155:9155 standpipe
#
# Without the seccomp profile it runs with epoll: Docker's own profile refuses io_uring.

ARG BUILD_BASE=rust:1.95-bookworm
ARG RUNTIME_BASE=debian:bookworm-slim

FROM ${BUILD_BASE} AS build
WORKDIR /build
COPY . .
ARG COMMIT="unknown commit"
# A binary in the context, such as prebuilt/standpipe: it is taken as it is, and nothing is built.
ARG PREBUILT=""
RUN if [ -n "$PREBUILT" ]; then cp "$PREBUILT" /standpipe; else \
        BUILD_COMMIT="$COMMIT" cargo build --release --locked --package standpipe --bin standpipe && \
        cp target/release/standpipe /standpipe; \
    fi
# A volume takes owner and mode from the directory that it is first mounted on.
RUN mkdir /state && chown 10001:10001 /state && chmod 750 /state

FROM ${RUNTIME_BASE}
# The roots for TLS to AWS. The slim base has none.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build --chown=10001:10001 /state /var/lib/standpipe
COPY --from=build /standpipe /usr/local/bin/standpipe
USER 10001:10001
WORKDIR /var/lib/standpipe
# Inside a container other addresses than loopback's are its own; what is published is decided outside.
ENV STANDPIPE_LISTEN=0.0.0.0:15555 \
    STANDPIPE_ADMIN=0.0.0.0:9155
EXPOSE 15555 9155
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/usr/local/bin/standpipe", "health"]
ENTRYPOINT ["/usr/local/bin/standpipe"]
