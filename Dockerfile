# One image for all of Davit's processes; docker-compose.yml runs them.
FROM debian:12-slim

WORKDIR /davit
ENV PATH=/davit/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONNOUSERSITE=1 MALLOC_ARENA_MAX=2

# The same set-up as without Docker, in a layer that only a change of what it installs makes anew.
COPY scripts/setup scripts/packages scripts/
COPY requirements.lock .
RUN SETUP_STACK=no scripts/setup run \
    && rm -rf /var/cache/davit /var/lib/apt/lists/* \
    && useradd --system --home-dir /var/lib/davit --shell /usr/sbin/nologin davit \
    && install -d -o davit -g davit -m 0700 /var/lib/davit

COPY . .
RUN python -m compileall -q -x '/\.venv/' . \
    && ln -s /davit/bin/davit /usr/local/bin/davit

USER davit
