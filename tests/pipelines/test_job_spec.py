"""A wrong spec is answered with every fault at once: line, field, what was received, what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckooflow.models.duration import format_duration, parse_duration
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.options import training_options
from cuckooflow.pipelines.spec_file import SpecFaults, load_spec, parse_spec

GOOD = Path(__file__).parent / "job.yaml"
TEXT = GOOD.read_text()


def faults_of(*changes: tuple[str, str]) -> dict[str, tuple[str, str]]:
    """Field -> (received, allowed) after replacing text in the good spec."""
    text = TEXT
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    with pytest.raises(SpecFaults) as caught:
        parse_spec(text, GOOD)
    assert len(str(caught.value).splitlines()) == 1 + len(caught.value.faults)
    return {".".join(map(str, f.location)): (f.received, f.allowed) for f in caught.value.faults}


def test_good_spec_loads_with_absolute_folder_and_defaults() -> None:
    job = load_spec(GOOD)
    assert isinstance(job, JobSpec)
    assert job.dir == GOOD.parent
    assert job.labels["like"].window == 30 * 60 * 1_000_000
    assert job.join.late_horizon == 3_600_000_000
    assert job.path(job.logs.late.path) == GOOD.parent / "logs/late"


TOPIC = """  examples:
    kafka:
      bootstrap: "h1:9092,h2:9092"
      topic: examples.v1
      partitions: 2
      config: {retention.ms: 604800000, cleanup.policy: delete}
      client: {security.protocol: SASL_SSL, sasl.password: "${env:KAFKA_PASSWORD}"}
"""


def with_topic(topic: str = TOPIC) -> str:
    return TEXT.replace("  examples: {path: logs/examples, partitions: 2}\n", topic, 1)


def test_a_log_may_be_a_topic() -> None:
    job = parse_spec(with_topic(), GOOD)
    examples = job.address(job.logs.examples)
    assert str(examples) == "kafka://h1:9092,h2:9092/examples.v1"
    assert (examples.name, examples.partitions) == ("examples.v1", 2)
    assert examples.config == {"retention.ms": "604800000", "cleanup.policy": "delete"}
    assert examples.client["sasl.password"] == "${env:KAFKA_PASSWORD}"
    impressions = job.address(job.logs.impressions)
    assert (str(impressions), impressions.partitions) == (str(GOOD.parent / "logs/impressions"), 2)


@pytest.mark.parametrize(
    ("old", "new", "field", "received", "allowed"),
    [
        ("topic: examples.v1", 'topic: "a b"', "topic", "'a b'", "string should match"),
        ("      topic: examples.v1\n", "", "topic", "nothing", "required"),
        ("      partitions: 2", "      partitions: none", "partitions", "'none'", "integer"),
        ("bootstrap:", "brokers:", "brokers", "unknown key 'brokers'", "bootstrap, topic, partitions"),
        ("config:", "library: java\n      config:", "library", "'java'", "'confluent-kafka'"),
        ("security.protocol", "group.id", "client", "not shown", "the address's group"),
        ("${env:KAFKA_PASSWORD}", "${KAFKA_PASSWORD}", "client", "not shown", "${env:NAME}"),
        ('"${env:KAFKA_PASSWORD}"', "[hush]", "client", "not shown", "a text, a number"),
    ],
)
def test_faults_of_a_topic(old: str, new: str, field: str, received: str, allowed: str) -> None:
    text = with_topic()
    assert old in text
    with pytest.raises(SpecFaults) as caught:
        parse_spec(text.replace(old, new), GOOD)
    faults = {".".join(map(str, f.location)): (f.received, f.allowed) for f in caught.value.faults}
    got_received, got_allowed = faults[f"logs.examples.kafka.{field}"]
    assert received in got_received and allowed in got_allowed
    assert "hush" not in str(caught.value)
    line = 1 + next(i for i, row in enumerate(text.splitlines()) if row == "  examples:")
    assert int(str(caught.value).splitlines()[1].split(":")[1]) >= line


def test_a_log_that_is_neither() -> None:
    text = with_topic("  examples: logs/examples\n")
    with pytest.raises(SpecFaults) as caught:
        parse_spec(text, GOOD)
    (fault,) = caught.value.faults
    assert fault.location == ("logs", "examples") and "a folder, or with kafka" in fault.allowed
    both = with_topic("  examples: {path: logs/examples, partition: 2}\n")
    with pytest.raises(
        SpecFaults, match=r"partitions \(did you mean that\?\); the keys here are path, partitions"
    ):
        parse_spec(both, GOOD)


def test_all_faults_come_at_once() -> None:
    faults = faults_of(
        ("emit" if "emit:" in TEXT else "late_horizon: 1h", "late_horizon: soon"),
        ("window: 10m", "windw: 10m"),
        ("kind: deepfm", "kind: deepfn"),
        ("batch_size: 64", "batch_size: many"),
    )
    assert set(faults) == {
        "join.late_horizon",
        "labels.click.windw",
        "labels.click.window",
        "model.kind",
        "training.batch_size",
    }
    assert faults["join.late_horizon"][0] == "'soon'"
    assert "30s" in faults["join.late_horizon"][1]
    assert "did you mean" in faults["labels.click.windw"][1]
    assert "'lr'" in faults["model.kind"][1]


def test_a_fault_names_the_line() -> None:
    with pytest.raises(SpecFaults) as caught:
        parse_spec(TEXT.replace("kind: deepfm", "kind: deepfn"), GOOD)
    line = 1 + next(i for i, text in enumerate(TEXT.splitlines()) if text.startswith("model:"))
    assert f"job.yaml:{line}: model.kind: received 'deepfn'" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "field", "received", "allowed"),
    [
        ("key: [request_id, item_id]", "key: [request_id, film]", "join.key.1", "'film'", "request_id"),
        ("action_type: action", "action_type: kind", "join.action_type", "'kind'", "action"),
        (
            "impression_time: time",
            "impression_time: user_id",
            "join.impression_time",
            "user_id, of type string",
            "of type time",
        ),
        ("column: user_id}", "column: usr}", "features.0", "'usr'", "user_id"),
        ("{name: item, column", "{name: user, column", "features.1.name", "'user'", "once"),
        ("labels: [like]", "labels: [liked]", "model.labels.0", "'liked'", "click, like"),
        (
            "labels:\n",
            "labels:\n  twice: {action: like, window: 10m}\n  again: {action: like, window: 10m}\n",
            "labels.again",
            "the same as twice",
            "each label once",
        ),
        (
            "labels:\n",
            "labels:\n  watched: {action: like, window: 10m, value: sum}\n",
            "labels.watched.column",
            "None with sum",
            "a column of actions",
        ),
        (
            "labels:\n",
            "labels:\n  watched: {action: like, window: 10m, value: max, column: action}\n",
            "labels.watched.column",
            "'action'",
            "numbers of actions",
        ),
        ("action: like,", "action: like, value: mean,", "labels.like.value", "'mean'", "'count'"),
        ("num_shards: 2", "num_shards: 0", "join.num_shards", "0", "greater than or equal to 1"),
        (
            "store: {",
            "stores: {}\nstore: {",
            "stores",
            "the unknown key 'stores'",
            "store (did you mean that?)",
        ),
    ],
)
def test_faults_between_sections(old: str, new: str, field: str, received: str, allowed: str) -> None:
    faults = faults_of((old, new))
    got_received, got_allowed = faults[field]
    assert received in got_received
    assert allowed in got_allowed


def test_a_missing_section_says_what_it_needs() -> None:
    start = TEXT.index("join:\n")
    with pytest.raises(SpecFaults) as caught:
        parse_spec(TEXT[:start] + TEXT[TEXT.index("labels:\n") :], GOOD)
    assert [f.location for f in caught.value.faults] == [("join",)]
    assert "key" in caught.value.faults[0].allowed


@pytest.mark.parametrize(("text", "words"), [("a: [", "not YAML"), ("", "a mapping"), ("- 1", "a mapping")])
def test_what_is_no_spec_at_all(text: str, words: str) -> None:
    with pytest.raises(SpecFaults, match=words):
        parse_spec(text, GOOD)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecFaults, match="cannot be read"):
        load_spec(tmp_path / "none.yaml")


def test_a_mirror_is_of_a_log_of_snapshots_and_a_folder_of_its_own() -> None:
    faults = faults_of(("serving: {", "serving: {mirror: mine, "))
    assert "none without snapshots.log" in faults["serving.mirror"][1]
    faults = faults_of(
        ("snapshots: {", "snapshots: {log: {path: logs/snapshots}, "),
        ("serving: {", "serving: {mirror: snapshots, "),
    )
    assert "a folder of its own" in faults["serving.mirror"][1]


def test_a_gate_is_of_a_label_of_the_model_and_has_a_bound() -> None:
    faults = faults_of(("snapshots: {", "snapshots: {gate: {share: {auc_min: 0.6}}, "))
    assert "labels of the model: like" in faults["snapshots.gate"][1]
    faults = faults_of(("snapshots: {", "snapshots: {gate: {like: {rows: 100}}, "))
    assert "expected auc_min" in str(faults["snapshots.gate.like"])


def test_a_key_that_stands_twice_is_refused() -> None:
    faults = faults_of(("store: {", "snapshots: {interval: 1s}\nstore: {buckets: 4, "))
    assert set(faults) == {"snapshots", "store.buckets"}
    assert faults["store.buckets"] == ("the key twice", "each key once")


def test_log_odds_for_several_labels_is_refused() -> None:
    faults = faults_of(
        ("labels: [like]", "labels: [like, click]"),
        ("labels:\n", "negative_sampling: {rate: 0.5}\nlabels:\n"),
    )
    assert "several labels" in faults["negative_sampling.correction"][0]


@given(st.integers(1, 10**6), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_durations_come_back(count: int, unit: str) -> None:
    us = parse_duration(f"{count}{unit}")
    assert parse_duration(format_duration(us)) == us


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1 week", 5, None, "1e3s"])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="a duration is"):
        parse_duration(text)


STREAMING = """  - {name: likes, kind: rate, by: [user_id], label: like, half_life: 1h}
  - {name: liked, kind: recent, by: [user_id], column: item_id, label: like, like: item}
model:"""


def test_streaming_features_name_what_is_there_and_the_lag_is_long_enough() -> None:
    text = TEXT.replace("model:", STREAMING, 1)
    job = parse_spec(text, GOOD)
    assert job.training.lag is None and training_options(job).lag_us == 1_800_500_000
    for old, new in (
        ("by: [user_id], label: like, half", "by: [viewer], label: liek, half"),
        ("column: item_id, label", "column: film, label"),
        ("like: item}", "like: genre}"),
        ("counting: true", "counting: true, lag: 30m"),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    with pytest.raises(SpecFaults) as caught:
        parse_spec(text, GOOD)
    found = {".".join(map(str, f.location)): (f.received, f.allowed) for f in caught.value.faults}
    assert found.keys() == {
        "features.4",
        "features.4.label",
        "features.5.column",
        "features.5.like",
        "training.lag",
    }
    assert found["features.4"][0] == "'viewer'"
    assert found["features.4.label"] == ("'liek'", "labels: click, like")
    assert found["features.5.like"] == ("'genre'", "features of kind id: user, item, genres")
    assert found["training.lag"][1].startswith("at least 1800500ms")


def test_the_examples_are_valid() -> None:
    folder = Path(__file__).resolve().parents[2] / "examples"
    assert len(load_spec(folder / "kuairand_streaming.yaml").features) == 35
