"""One jar of several: every class once, lists of services joined, signatures gone."""

from __future__ import annotations

import zipfile
from pathlib import Path

from cuckooflow.runners.cluster.cache import sha256
from cuckooflow.runners.cluster.job_server import merge


def jar(path: Path, entries: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for name, text in entries.items():
            out.writestr(name, text)
    return path


def test_what_two_jars_share_and_what_only_one_has(tmp_path: Path) -> None:
    service = "META-INF/services/some.Service"
    first = jar(
        tmp_path / "first.jar",
        {"a/A.class": "first", service: "first.Impl # ours\n", "META-INF/FIRST.SF": "s", "a/": ""},
    )
    second = jar(
        tmp_path / "second.jar",
        {
            "a/A.class": "second",
            "b/B.class": "b",
            service: "second.Impl\nfirst.Impl",
            "META-INF/MANIFEST.MF": "Main-Class: wrong\n",
            "META-INF/KEY.RSA": "r",
            "module-info.class": "m",
            "META-INF/versions/9/module-info.class": "m",
            "META-INF/versions/9/b/B.class": "b9",
        },
    )
    merge([first, second], tmp_path / "merged.jar", "a.Main")
    with zipfile.ZipFile(tmp_path / "merged.jar") as merged:
        found = {name: merged.read(name).decode() for name in merged.namelist()}
        assert len(merged.namelist()) == len(found)
    manifest = found.pop("META-INF/MANIFEST.MF")
    assert "Main-Class: a.Main\n" in manifest
    assert "Multi-Release: true\n" in manifest
    assert found == {
        "a/A.class": "first",
        "b/B.class": "b",
        service: "first.Impl\nsecond.Impl\n",
        "META-INF/versions/9/b/B.class": "b9",
    }


def test_the_same_jars_give_the_same_bytes(tmp_path: Path) -> None:
    part = jar(tmp_path / "part.jar", {"a/A.class": "a", "META-INF/services/s": "x"})
    for name in ("one.jar", "two.jar"):
        merge([part], tmp_path / name, "a.Main")
    assert sha256(tmp_path / "one.jar") == sha256(tmp_path / "two.jar")
