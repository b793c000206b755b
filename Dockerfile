# The gateway, compiled, in an image without a compiler: docker build --tag presence-gateway:0.1.0 .
# docs/operations/deploy.md says how it is run. Everything that is installed is locked by its hash.

FROM python:3.11.16-slim-bookworm AS build

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1

WORKDIR /source

# What it needs first: this layer stays as long as the lock files do.
COPY requirements.lock requirements-build.lock ./
RUN python -m venv /tools \
    && /tools/bin/python -m pip install --quiet --require-hashes --requirement requirements-build.lock \
    && python -m venv /opt/presence-gateway \
    && /opt/presence-gateway/bin/python -m pip install --quiet --require-hashes --requirement requirements.lock

COPY pyproject.toml hatch_build.py README.md LICENSE test-presence.html ./
COPY static static
COPY gateway gateway
# "always": an image that is slow by oversight is not built.
RUN GATEWAY_COMPILE=always /tools/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/presence-gateway/bin/python -m pip install --quiet --no-deps --no-index --find-links /wheels presence-gateway \
    && /opt/presence-gateway/bin/python -m pip uninstall --quiet --yes pip setuptools


FROM python:3.11.16-slim-bookworm

# Nobody's files are its own: it writes nothing but its log, to stderr.
RUN groupadd --gid 10001 presence \
    && useradd --uid 10001 --gid presence --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin presence

COPY --from=build /opt/presence-gateway /opt/presence-gateway

ENV PATH=/opt/presence-gateway/bin:$PATH \
    HOST=0.0.0.0 \
    PORT=3000 \
    LOG_FORMAT=json

USER 10001:10001
WORKDIR /
EXPOSE 3000
STOPSIGNAL SIGTERM

# Ready, and not only alive: 503 while it drains, or has lost Redis.
HEALTHCHECK --interval=5s --timeout=3s --start-period=15s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/health/ready', timeout=2)"]

ENTRYPOINT ["presence-gateway"]
CMD ["serve"]
