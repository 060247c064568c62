# The two images of a site, from the repository's root; neither holds a line of the coordinator:
#   docker build -f deploy/docker/site.Dockerfile --target agent -t smile-agent .
#   docker build -f deploy/docker/site.Dockerfile --target connection -t smile-connection .
# Name a digest (python:3.11-slim-bookworm@sha256:...) to have the same base tomorrow.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS source
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/smile
COPY pyproject.toml constraints.txt ./
COPY deploy/site deploy/site
COPY protocol protocol
COPY site_agent site_agent

# Counts, signs, seals and opens. Without Flower, and so without any server, database or HTTP library but the client of `doctor`.
FROM source AS agent-build
# Further extras of a site: sql, privacy, text, search; as in --build-arg EXTRAS=agent,sql
ARG EXTRAS=agent
RUN python -m pip --python /opt/smile/bin/python install --constraint constraints.txt "./deploy/site[${EXTRAS}]"

# Talks to the coordinator. Without what reads and counts data.
FROM source AS connection-build
RUN python -m pip --python /opt/smile/bin/python install --constraint constraints.txt "./deploy/site[connection]"

FROM ${PYTHON} AS connection
RUN useradd --uid 10002 --no-create-home --home-dir /var/lib/smile-flower smile-flower
COPY --from=connection-build /opt/smile /opt/smile
COPY deploy/docker/healthy.py /opt/healthy.py
ENV PYTHONDONTWRITEBYTECODE=1 HOME=/var/lib/smile-flower
USER 10002:10002
ENTRYPOINT ["/opt/smile/bin/python", "-P", "-m", "site_agent.flower", "--config", "/etc/smile-flower/connection.toml"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["/opt/smile/bin/python", "/opt/healthy.py", "lock", "/var/lib/smile-flower/running.lock"]

FROM ${PYTHON} AS agent
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/smile smile-agent
COPY --from=agent-build /opt/smile /opt/smile
COPY deploy/docker/healthy.py /opt/healthy.py
# The root is read-only: numba keeps what it has compiled in the home's volume.
ENV PYTHONDONTWRITEBYTECODE=1 HOME=/var/lib/smile NUMBA_CACHE_DIR=/var/lib/smile/numba SMILE_SITE_HOME=/var/lib/smile/site
USER 10001:10001
ENTRYPOINT ["/opt/smile/bin/site-agent"]
CMD ["run", "--agent-only"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["/opt/smile/bin/python", "/opt/healthy.py", "lock", "/var/lib/smile/site/running.lock"]
