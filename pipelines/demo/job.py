"""The demo's job spec, as the YAML text that is written into the run's folder for a user to read and change."""

from __future__ import annotations

from pathlib import Path

JOB_NAME = "films"
LABEL = "like"

JOB_YAML = """\
# The demo's job. Everything it writes lies beside this file.
#   cuckooflow validate job.yaml     checks it
#   cuckooflow plan job.yaml         shows stages, tables and dims
#   cuckooflow up job.yaml           runs it again where it left off
name: films
dir: .

logs:
  impressions: {path: logs/impressions}
  actions: {path: logs/actions}
  examples: {path: logs/examples, partitions: 2}

columns:
  impressions:
    request_id: {type: string}
    item_id: {type: string}
    time: {type: time, unit: s}
    user_id: {type: string}
    position: {type: int64}
    genres: {type: "list<string>", required: false}
    release_year: {type: float64, required: false}
    age: {type: float64, required: false}
    gender: {type: string, required: false}
    occupation: {type: string, required: false}
  actions:
    request_id: {type: string}
    item_id: {type: string}
    time: {type: time, unit: s}
    action: {type: string}

join:
  key: [request_id, item_id]
  impression_time: time
  action_time: time
  action_type: action
  emit: complete
  late_horizon: 1d
  max_skew: 5m
  max_lead: 2d
  # The replayed events are old. A partition that called itself idle would set its clock to today and make
  # the rest of the replay late, so in this job none does.
  idle_after: 7d
  num_shards: 4
  balance_interval: 500ms

labels:
  click: {action: click, window: 10m}
  like: {action: like, window: 1h}

# Half of the impressions without any action are left out; the kept ones count twice in training.
negative_sampling: {rate: 0.5, seed: 7, correction: weight}

features:
  - {name: user, column: user_id}
  - {name: item, column: item_id}
  - {name: genres, column: genres, pooling: mean, max_length: 6}
  - {name: year, column: release_year, kind: bucket, boundaries: [1940, 1960, 1970, 1980, 1990, 1994, 1996, 1997]}
  - {name: age, column: age, kind: bucket, boundaries: [18, 25, 30, 35, 45, 55]}
  - {name: gender, column: gender}
  - {name: occupation, column: occupation}
  - {name: item_gender, columns: [item_id, gender]}

model: {kind: deepfm, labels: [like], dim: 8, hidden: [128, 64]}

# counting: every feature id's occurrences are counted in the store as well, so that the demo can prove
# by equality that nothing was lost or learned twice.
training: {batch_size: 256, max_delay: 1s, metrics_window: 1d, metrics_interval: 250ms, counting: true}

store: {listen: "127.0.0.1:0", data: store, buckets: 64, checkpoint_interval: 5s}
snapshots: {dir: snapshots, interval: 1s, full_interval: 1d}
serving: {listen: "127.0.0.1:0"}
"""


def write_job(folder: Path) -> Path:
    """Write ``job.yaml`` into a folder; its path."""
    path = folder / "job.yaml"
    path.write_text(JOB_YAML, encoding="utf-8")
    return path
