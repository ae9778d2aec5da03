# syntax=docker/dockerfile:1
# The router alone: no compiler, no pip, no shell needed at run time; everything hash-locked. For what several routers share
# (docs/teams.md, docs/operations.md) and for traces: docker build --build-arg EXTRAS="valkey postgres otel" .
FROM python:3.12-slim AS build
WORKDIR /src
ARG EXTRAS=""
COPY requirements.lock requirements-build.lock requirements-otel.lock requirements-postgres.lock requirements-ssh.lock requirements-valkey.lock ./
RUN python -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements-build.lock \
 && python -m venv /opt/router && /opt/router/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock \
 && for extra in $EXTRAS; do \
        /opt/router/bin/pip install --no-cache-dir --no-deps --require-hashes -r "requirements-$extra.lock" || exit 1; \
    done
COPY pyproject.toml README.md LICENSE ./
COPY router ./router
COPY ollama_simulator ./ollama_simulator
COPY config ./config
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/router/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
 && /opt/router/bin/pip uninstall --yes pip

FROM python:3.12-slim
# `utility` is what NVML needs; the container never computes.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=utility \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PATH=/opt/router/bin:$PATH
RUN groupadd --gid 10001 router \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent router \
 && install --directory --owner router --mode 0700 /var/lib/ollama-router
COPY --from=build /opt/router /opt/router
# For `docker run`: listens on all addresses of the container, in front of an Ollama on the same machine. Mount another file
# here, or set OLLAMA_ROUTER_… variables, which override it.
COPY config/examples/container.yaml /etc/ollama-router/router.yaml
ENV OLLAMA_ROUTER_CONFIG=/etc/ollama-router/router.yaml
USER 10001:10001
EXPOSE 11435 11436
VOLUME /var/lib/ollama-router
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:11436/readyz', timeout=2)"]
ENTRYPOINT ["ollama-router"]
CMD ["serve"]
