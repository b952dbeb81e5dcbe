"""The freshness benchmark: the scorer's part runs small, and its command line gives every figure's name."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from benchmarks import freshness, freshness_scorer


@pytest.mark.deep
@pytest.mark.slow
def test_the_scorer_is_asked_while_snapshots_are_applied(capsys: pytest.CaptureFixture[str]) -> None:
    assert freshness.main(["--quick", "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out.splitlines()[-1])
    assert list(found) == [*freshness.KEYS, "quick"]
    assert found["freshness_p50_s"] is found["freshness_p99_s"] is None
    assert found["scorer_predictions_per_s"] > 100
    assert 0 < found["scorer_p99_ms"] < 10_000
    assert "snapshots were applied" in told.err


def test_a_scorer_that_refuses_is_an_error() -> None:
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="503"):
            freshness_scorer.ask(f"127.0.0.1:{server.server_port}", [b"{}"], 5.0)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_unknown_parts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        freshness.main(["--parts", "all"])
    assert "some of freshness,scorer" in capsys.readouterr().err
