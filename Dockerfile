# The service with the model of the package, on a processor. Not built by the tests: see docs/serving.md.
#     docker build -t dcmpl .
#     docker run --rm --read-only --tmpfs /tmp:size=2g -p 127.0.0.1:8765:8765 -v ./key:/run/key:ro dcmpl
# Folders of models can be mounted: ... dcmpl serve --model /models/mine --host 0.0.0.0 --key-file /run/key
# With --build-arg PIP_EXTRA_INDEX_URL=... (PyTorch's index of wheels without CUDA) it is some GB smaller.
FROM python:3.11-slim AS build
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir torch==2.13.0 \
    && /venv/bin/pip install --no-cache-dir -c constraints.txt '.[serve,plots]'

FROM python:3.11-slim
COPY --from=build /venv /venv
RUN useradd --system --no-create-home dcmpl
USER dcmpl
ENV PATH=/venv/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp PYTHONDONTWRITEBYTECODE=1
EXPOSE 8765
HEALTHCHECK --start-period=30s --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8765/readyz', timeout=4)"]
ENTRYPOINT ["dcmpl"]
CMD ["serve", "--host", "0.0.0.0", "--key-file", "/run/key", "--log-json"]
