# DB-GPT with this project's plugin, as tests/e2e installs it; see compose.yaml.

FROM python:3.11-slim-bookworm
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && pip install 'dbgpt-app==0.8.2' 'cachetools<7' \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /data dbgpt \
    && mkdir -p /data \
    && chown dbgpt:dbgpt /data
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY dbgpt_guanaco ./dbgpt_guanaco
# Without its dependencies: the plugin runs on what DB-GPT brings.
RUN pip install --no-deps .
COPY examples/dbgpt /etc/dbgpt
# hadolint ignore=DL3064
ENV HOME=/data \
    DBGPT_HOME=/data/dbgpt \
    TIKTOKEN_CACHE_DIR=/data/tiktoken \
    WEB_SERVER_HOST=0.0.0.0 \
    WEB_SERVER_PORT=5670
USER 10001:10001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 5670
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['WEB_SERVER_PORT'] + '/api/health', timeout=4)"]
ENTRYPOINT ["dbgpt"]
CMD ["start", "webserver", "--config", "/etc/dbgpt/plugin.toml"]
