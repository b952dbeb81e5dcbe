"""``cuckooflow-worker``: one Beam worker process, as a worker pool starts it.

Beam's pool by itself starts workers that know nothing of the job's options: no state cache
(``--max_cache_memory_usage_mb``), no log level, no settings of file systems. This program keeps the
contract of Beam's container instead: it asks the provision service for the options first.
"""

from __future__ import annotations

import argparse
import os
import sys

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc, endpoints_pb2
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf import json_format, text_format

#: How long the service that started this worker may take to say what it is for.
PROVISION_TIMEOUT_S = 60.0


def main() -> None:
    """Entry point; returns when the job no longer needs the worker."""
    parser = argparse.ArgumentParser(prog="cuckooflow-worker", description=__doc__.splitlines()[0])
    for name in ("id", "logging_endpoint", "artifact_endpoint", "provision_endpoint", "control_endpoint"):
        parser.add_argument(f"--{name}", required=name != "artifact_endpoint")
    given = parser.parse_args()
    # The pool never reads what a worker prints; a full pipe would hold the worker for ever.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.environ.update(_environment(given, _provision(given.provision_endpoint, given.id)))
    sdk_worker_main.main(sys.argv)


def _provision(endpoint: str, worker: str) -> beam_provision_api_pb2.ProvisionInfo:
    with grpc.insecure_channel(endpoint) as channel:
        service = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        answer = service.GetProvisionInfo(
            beam_provision_api_pb2.GetProvisionInfoRequest(),
            timeout=PROVISION_TIMEOUT_S,
            wait_for_ready=True,
            metadata=[("worker_id", worker)],
        )
    return answer.info


def _environment(given: argparse.Namespace, info: beam_provision_api_pb2.ProvisionInfo) -> dict[str, str]:
    """What Beam's own entry point reads."""
    return {
        "WORKER_ID": given.id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "LOGGING_API_SERVICE_DESCRIPTOR": _descriptor(given.logging_endpoint),
        "CONTROL_API_SERVICE_DESCRIPTOR": _descriptor(given.control_endpoint),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }


def _descriptor(url: str) -> str:
    return text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url))


if __name__ == "__main__":
    main()
