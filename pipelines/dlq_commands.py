"""``cuckooflow dlq show | replay``: what was refused, and putting it back at the source."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cuckooflow.errors import LogNotFound

if TYPE_CHECKING:
    from cuckooflow.logs.address import LogAddress
    from cuckooflow.pipelines.dlq.letters import Letter, Wanted
    from cuckooflow.pipelines.job_spec import JobSpec

app = typer.Typer(no_args_is_help=True, help="Dead letters: show, replay.")

#: Where a job's replays are written down, in its folder.
LEDGER = Path("dlq") / "replays.jsonl"

SpecFile = Annotated[Path, typer.Argument(metavar="JOB.YAML", help="the job spec")]
Reasons = Annotated[list[str] | None, typer.Option("--reason", help="only this reason; may be given again")]
OfLog = Annotated[str | None, typer.Option("--log", help="only of this log, by its name")]
_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]
Since = Annotated[datetime | None, typer.Option(formats=_FORMATS, help="appended then or later, UTC")]
Until = Annotated[datetime | None, typer.Option(formats=_FORMATS, help="appended before, UTC")]
Days = Annotated[
    str | None, typer.Option("--files", help="letters of this folder of days, not of the job's log")
]
_VALUE_CHARS = 160


@app.command()
def show(
    spec_file: SpecFile,
    reasons: Reasons = None,
    log: OfLog = None,
    since: Since = None,
    until: Until = None,
    files: Days = None,
    train: Annotated[bool, typer.Option("--train", help="those of the trainer, of the examples log")] = False,
    limit: Annotated[int, typer.Option(min=0, help="letters to show; all are counted")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="a line of JSON each, bytes included")] = False,
) -> None:
    """Show dead letters: position, reason, bytes, and where each was put back."""
    from cuckooflow.pipelines.dlq.ledger import Ledger
    from cuckooflow.pipelines.dlq.letters import Place
    from cuckooflow.pipelines.spec_file import load_spec

    job = load_spec(spec_file)
    with Ledger(job.path(LEDGER), read_only=True) as ledger:
        replayed = ledger.replayed(_incarnations(job))
    back = {target: place for place, target in replayed.items()}
    counts: Counter[tuple[str, str]] = Counter()
    letters = _letters(job, _wanted(reasons, log, since, until), files, train)
    for number, letter in enumerate(letters):
        counts[letter.place.log, letter.reason] += 1
        if number >= limit:
            continue
        target = replayed.get(letter.place)
        source = back.get(letter.place[:3])
        if as_json:
            more = {} if target is None else {"replayed_to": list(target)}
            more |= {} if source is None else {"replay_of": list(source)}
            print(json.dumps({**letter.to_dict(), **more}, ensure_ascii=False))
            continue
        when = datetime.fromtimestamp(letter.append_us / 1e6, UTC).isoformat(timespec="seconds")
        value = "-" if letter.value is None else letter.value.decode(errors="backslashreplace")
        notes = "" if target is None else f"  replayed to {Place(*target, 0)}"
        notes += "" if source is None else f"  replay of {source}"
        print(f"{letter.place}  {when}  {letter.reason}: {letter.detail}{notes}")
        print(f"    {value if len(value) <= _VALUE_CHARS else value[:_VALUE_CHARS] + '...'}")
    if not as_json:
        for (of_log, reason), count in sorted(counts.items()):
            print(f"{count} {of_log} {reason}")


@app.command()
def replay(
    spec_file: SpecFile,
    reasons: Reasons = None,
    log: OfLog = None,
    since: Since = None,
    until: Until = None,
    files: Days = None,
    mend: Annotated[
        Path | None, typer.Option(help="a Python file with mend(value, letter), which gives bytes or None")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="messages to append at most")] = None,
    again: Annotated[bool, typer.Option("--again", help="also what was put back and refused again")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="count, and append nothing")] = False,
) -> None:
    """Append the original bytes of dead letters to the logs they came from; each once, however often it runs."""
    from cuckooflow.pipelines.dlq.ledger import Ledger
    from cuckooflow.pipelines.dlq.replay import Replay, load_mend
    from cuckooflow.pipelines.log_specs import PubSubLogSpec
    from cuckooflow.pipelines.spec_file import load_spec

    job = load_spec(spec_file)
    for of_log in (job.logs.impressions, job.logs.actions):
        if isinstance(of_log, PubSubLogSpec):
            raise of_log.pubsub.read_once("a replay")
    script = None if mend is None else load_mend(mend)
    letters = _letters(job, _wanted(reasons, log, since, until), files, train=False)
    with Ledger(job.path(LEDGER), read_only=dry_run) as ledger:
        counts = Replay(_targets(job), ledger, script, again, _read_only(job)).run(letters, dry_run, limit)
    print(f"replay: {counts}{' (dry run)' if dry_run else ''}")


def _wanted(
    reasons: list[str] | None, log: str | None, since: datetime | None, until: datetime | None
) -> Wanted:
    from cuckooflow.pipelines.dlq.letters import Wanted

    def microseconds(time: datetime | None) -> int | None:
        return None if time is None else int(time.replace(tzinfo=UTC).timestamp()) * 1_000_000

    return Wanted(tuple(reasons or ()), log, microseconds(since), microseconds(until))


def _letters(job: JobSpec, wanted: Wanted, files: str | None, train: bool) -> Iterator[Letter]:
    from cuckooflow.pipelines.dlq.letters import each_once, letters_of_days, letters_of_log

    if files is not None:
        letters = letters_of_days(files)
    else:
        log = job.logs.train_dead_letters if train else job.logs.dead_letters
        letters = letters_of_log(job.address(log).open_reader())
    return filter(wanted.takes, each_once(letters))


def _targets(job: JobSpec) -> dict[str, LogAddress]:
    """The job's input logs that can be written to, by their names in letters."""
    return {address.name: address for address in job.written_inputs()}


def _read_only(job: JobSpec) -> frozenset[str]:
    """The names of the inputs that nothing is appended to."""
    names = {job.input(log).name for log in (job.logs.impressions, job.logs.actions)}
    return frozenset(names - _targets(job).keys())


def _incarnations(job: JobSpec) -> dict[str, str]:
    found = {}
    for name, address in _targets(job).items():
        with contextlib.suppress(LogNotFound), contextlib.closing(address.open_reader()) as reader:
            found[name] = reader.incarnation()
    return found
