# The workers of a job on Dataflow: Beam's own image with the built wheel in it. From the repository's root:
#   docker build -f runners/deploy/dataflow.Dockerfile -t REGION-docker.pkg.dev/PROJECT/REPOSITORY/cuckooflow .
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

FROM apache/beam_python3.11_sdk:2.77.0
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/*.whl)[pipelines]"
