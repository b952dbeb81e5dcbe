"""The join on Dataflow: Beam's real translation of it to a job request, offline; and what is refused before."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.dataflow.internal import apiclient

from cuckooflow.errors import SpecError
from cuckooflow.pipelines.dataflow_run import run_on_dataflow
from cuckooflow.pipelines.run import stages, submit
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.runners.dataflow import options_of, preset

FLAGS = [
    "--project=shop-1",
    "--region=europe-west6",
    "--temp_location=gs://shop-bucket/tmp",
    "--sdk_container_image=europe-west6-docker.pkg.dev/shop-1/images/cuckooflow:1",
    "--max_num_workers=4",
]
OUTPUTS = ("late", "unmatched", "dead_letters", "join_balances")
#: What Dataflow takes for the identity of state when a job is updated: a change here is one for running jobs.
STEPS = {
    *(f"ReadLogs/{step}" for step in ("Seed", "SeedKey", "Merge", "Given/Poll")),
    *(f"ReadLogs/{step}{log}" for step in ("Read", "Key") for log in ("Impressions", "Actions")),
    *(f"ReadLogs/Read{log}/Read" for log in ("Impressions", "Actions")),
    *("OnlineJoin/TypeShards", "OnlineJoin/Join"),
    *(f"NegativeSampling/{step}" for step in ("Sample", "Count", "Late")),
    *(f"Write{name}/Append" for name in ("Examples", "Late", "Unmatched", "RefusedEvents", "RefusedRows")),
    *(f"Write{stage}Balances/Append" for stage in ("Source", "Join", "Sampling")),
    *(f"Show{stage}Balances/{step}" for stage in ("Join", "Sampling") for step in ("Key", "Show")),
}


@pytest.fixture
def remote(films: Any, kafka: str) -> Any:
    """The films job with subscriptions for inputs and topics for outputs."""
    mark = uuid.uuid4().hex[:8]

    def topic(name: str, partitions: int = 1) -> str:
        return f"{{kafka: {{bootstrap: '{kafka}', topic: {name}-{mark}, partitions: {partitions}}}}}"

    text = films.spec.read_text()
    others = "".join(f"\n  {name}: {topic(name)}" for name in OUTPUTS)
    for old, new in (
        (
            "{path: logs/impressions, partitions: 2}",
            "{pubsub: {project: shop-1, subscription: impressions}}",
        ),
        ("{path: logs/actions}", "{pubsub: {project: shop-1, subscription: actions}}"),
        ("{path: logs/examples, partitions: 2}", topic("examples", 2) + others),
    ):
        assert old in text, old
        text = text.replace(old, new, 1)
    films.spec.write_text(text)
    films.job = load_spec(films.spec)
    return films


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No question to the cloud about the bucket; it is asked while the options are checked."""
    monkeypatch.setattr(GoogleCloudOptions, "_warn_if_soft_delete_policy_enabled", lambda *_: None)


def request(films: Any) -> tuple[Any, beam_runner_api_pb2.Pipeline]:
    """The job request's environment and its pipeline, as Beam makes them for the service."""
    flags = [*FLAGS, "--dry_run=True"]
    results: list[Any] = []
    chosen = preset(options_of(f"{films.job.name}-join", flags), flags)
    submit(stages("join", films.job, False, None), chosen, results.append)
    job = results[0].job
    environment = apiclient.Environment(
        proto_pipeline_staged_url="gs://shop-bucket/pipeline.pb",
        packages=[],
        options=job.options,
        environment_version="8",
        proto_pipeline=job.proto_pipeline,
        pipeline_proto_hash="",
    ).proto
    assert job.proto.name == "films-join"
    assert job.proto.type_.name == "JOB_TYPE_STREAMING"
    return environment, job.proto_pipeline


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_the_job_request_has_the_options_and_stable_steps(remote: Any) -> None:
    environment, pipeline = request(remote)
    options = json.loads(type(environment).to_json(environment))["sdkPipelineOptions"]["options"]
    expected: dict[str, Any] = dict(flag.removeprefix("--").split("=", 1) for flag in FLAGS)
    expected["max_num_workers"] = 4
    assert options["temp_location"].startswith(expected.pop("temp_location"))  # and a folder of the job's own
    assert {name: options[name] for name in expected} == expected
    assert options["streaming"] is True
    assert options["enable_streaming_engine"] is True
    assert options["max_cache_memory_usage_mb"] == 256
    assert not options.get("save_main_session")
    images = {
        beam_runner_api_pb2.DockerPayload.FromString(one.payload).container_image
        for one in pipeline.components.environments.values()
    }
    assert images == {expected["sdk_container_image"]}
    assert not any(one.dependencies for one in pipeline.components.environments.values())

    names = {one.unique_name for one in pipeline.components.transforms.values()}
    # Without the steps inside Beam's own, and without whole transforms of ours.
    ours = {name for name in names if "(" not in name and "/" in name and name != "ReadLogs/Given"}
    assert ours == STEPS, sorted(ours ^ STEPS)
    # Dataflow's own reader, not a DoFn that pulls.
    reads = [one for one in pipeline.components.transforms.values() if "pubsub_read" in one.spec.urn]
    payloads = [beam_runner_api_pb2.PubSubReadPayload.FromString(one.spec.payload) for one in reads]
    assert {one.subscription for one in payloads} == {
        "projects/shop-1/subscriptions/impressions",
        "projects/shop-1/subscriptions/actions",
    }
    assert all(one.with_attributes for one in payloads)
    _, again = request(remote)
    assert {one.unique_name for one in again.components.transforms.values()} == names


def test_every_missing_flag_is_named_at_once(films: Any) -> None:
    with pytest.raises(SpecError, match="no --region, --sdk_container_image"):
        options_of("films-join", ["--project=shop-1", "--temp_location=gs://b/t"])
    with pytest.raises(SpecError, match="folders of this machine for impressions, actions, examples"):
        run_on_dataflow("join", load_spec(films.spec), FLAGS)
    with pytest.raises(SpecError, match="expected join"):
        run_on_dataflow("train", load_spec(films.spec), FLAGS)


@pytest.mark.slow
def test_the_plan_shows_what_dataflow_would_be_given(films: Any, cli: Callable[..., Any]) -> None:
    done = cli("plan", films.spec, "--runner", "dataflow")
    assert done.returncode == 0, done.stderr[-2000:]
    shown = dict(
        line.split(maxsplit=1) for line in done.stdout.split("runner dataflow")[1].splitlines() if " " in line
    )
    assert shown["sdk_container_image"].strip() == "(--sdk_container_image)"
    assert shown["job_name"].strip() == "films-join"
    assert "native" in done.stdout
