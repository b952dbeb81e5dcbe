# The Python workers, as a pool beside a TaskManager. From the repository's root:
#   docker build -f runners/deploy/worker.Dockerfile -t cuckooflow-workers .
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY setup.py pyproject.toml requirements.txt requirements-confluent.txt ./
COPY cuckooflow ./cuckooflow
COPY logs ./logs
COPY embedding_store ./embedding_store
COPY models ./models
COPY transforms ./transforms
COPY serving ./serving
COPY runners ./runners
COPY pipelines ./pipelines
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/*.whl)[pipelines]"
RUN useradd --create-home worker && install -d -o worker /work
USER worker
WORKDIR /work
EXPOSE 50000
ENTRYPOINT ["cuckooflow-worker-pool", "--listen", "0.0.0.0:50000"]
