# The coordinator's image, from the repository's root; it holds no line of a site's agent:
#   docker build -f deploy/docker/coordinator.Dockerfile -t smile-coordinator .
# Name a digest (python:3.11-slim-bookworm@sha256:...) to have the same base tomorrow.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/smile
COPY constraints.txt ./
# PyPI's torch for x86-64 needs CUDA, gigabytes. PyTorch's own index has the build without, as 2.13.0+cpu, which is a 2.13.0 to
# the next command. Nothing else is looked for there: a second index for all would let it answer for any other name.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m pip --python /opt/smile/bin/python install --no-deps --index-url "${TORCH_INDEX}" "$(grep ^torch== constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY protocol protocol
COPY coordinator coordinator
# psycopg speaks to PostgreSQL.
RUN python -m pip --python /opt/smile/bin/python install --constraint constraints.txt ".[coordinator]" "psycopg[binary]" \
    && rm /opt/smile/bin/site-agent

FROM ${PYTHON}
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/smile-hub smile-hub \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/smile-hub /var/lib/smile-hub/hub
COPY --from=build /opt/smile /opt/smile
COPY deploy/docker/healthy.py /opt/healthy.py
# The root is read-only: what libraries keep goes to the container's /tmp.
ENV PYTHONDONTWRITEBYTECODE=1 HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib SMILE_COORDINATOR_HOME=/var/lib/smile-hub/hub
USER 10001:10001
ENTRYPOINT ["/opt/smile/bin/coordinator"]
CMD ["serve"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s CMD ["/opt/smile/bin/python", "/opt/healthy.py", "fleet", "/var/lib/smile-hub/hub"]
