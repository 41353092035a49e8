"""``dcmpl serve``: what is refused, in one sentence, and a service that listens until a signal."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

import dcmpl
from conftest import Capture, refused
from dcmpl.cli import serve
from dcmpl.cli.main import main
from serving import running

KEY = "a-long-random-word"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    return file


# What is refused


@pytest.mark.parametrize("port", [-1, 65536, 70000])
def test_port_that_is_none_is_wrong_usage(capsys: Capture, trained_run: Path, port: int) -> None:
    words = ["serve", "--model", trained_run, f"--port={port}"]
    assert refused(capsys, 2, *words) == f"expected --port from 0 to 65535, got {port}"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.com", ""])
def test_other_hosts_need_a_key(capsys: Capture, trained_run: Path, host: str) -> None:
    told = refused(capsys, 2, "serve", "--model", trained_run, "--host", host)
    assert told == (
        f"expected --key-file where others can reach the service, got --host {host} alone: "
        "write a long random word into a file and name it"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"short",
        b"x" * 15,
        b"x" * 1025,
        b"two words of a key",
        "ä".encode() * 16,
        b"a\tb",
    ],
)
def test_key_that_is_none_is_wrong_usage(
    capsys: Capture, trained_run: Path, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    told = refused(capsys, 2, "serve", "--model", trained_run, "--key-file", file)
    count = len(content.decode().strip())
    assert told == (
        f"expected a key of 16 to 1024 letters without blanks in {file}, got {count} letters"
    )


def test_key_that_is_no_text_is_wrong_usage(
    capsys: Capture, trained_run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"\xff" * 32)
    told = refused(capsys, 2, "serve", "--model", trained_run, "--key-file", file)
    assert told.startswith(f"expected a key in the file {file}, got ")


def test_key_file_that_is_not_there_is_wrong_usage(
    capsys: Capture, trained_run: Path, tmp_path: Path
) -> None:
    for file, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        told = refused(capsys, 2, "serve", "--model", trained_run, "--key-file", file)
        assert told.startswith(f"expected a key in the file {file}, got {reason}")


def test_missing_model_is_wrong_usage(capsys: Capture) -> None:
    assert refused(capsys, 2, "serve", "--model", "nowhere") == (
        "expected a run folder or an exported model at --model, got none at nowhere"
    )


def test_folder_that_is_no_run_fails(capsys: Capture, tmp_path: Path) -> None:
    assert refused(capsys, 1, "serve", "--model", tmp_path, "--port", 0) == (
        f"expected a run folder made by dcmpl train at {tmp_path}, got no run.json in it"
    )


@pytest.mark.parametrize(
    ("flag", "value", "got"),
    [
        ("--max-images", 0, "256 and 0"),
        ("--max-images", -5, "256 and -5"),
        ("--max-upload", 0, "0 and 1000"),
    ],
)
def test_bounds_of_nothing_are_wrong_usage(
    capsys: Capture, trained_run: Path, flag: str, value: int, got: str
) -> None:
    told = refused(capsys, 2, "serve", "--model", trained_run, f"{flag}={value}")
    assert told == f"expected --max-upload and --max-images of at least 1, got {got}"


@pytest.mark.parametrize("workers", [-1, 0, 10**6])
def test_wrong_count_of_workers_is_wrong_usage(
    capsys: Capture, trained_run: Path, workers: int
) -> None:
    told = refused(capsys, 2, "serve", "--model", trained_run, f"--workers={workers}", "--port=0")
    assert told == f"expected 1 to 1024 --workers, got {workers}"


@pytest.mark.parametrize("words", [["--device", "tpu"], ["--port", "http"], ["--ports", "1"]])
def test_words_that_are_none_are_wrong_usage(capsys: Capture, words: list[str]) -> None:
    refused(capsys, 2, "serve", *words)


def test_port_in_use_is_wrong_usage(capsys: Capture, trained_run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refused(capsys, 2, "serve", "--model", trained_run, "--port", port)
    wanted = f"expected an address of this machine and a free port at 127.0.0.1:{port}, got "
    assert told.startswith(f"{wanted}Address already in use")
    assert told.endswith(": take another --host or --port")


def test_handlers_of_logs_are_left_open(capsys: Capture, trained_run: Path) -> None:
    closed = []

    class Handler(logging.Handler):
        def close(self) -> None:
            closed.append(self)
            super().close()

    kept = Handler()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(capsys, 2, "serve", "--model", trained_run, "--port", taken.getsockname()[1])
    assert not closed
    kept.close()


@pytest.mark.parametrize("host", ["203.0.113.7", "2001:db8::7", "no such host", "x" * 70, "a..b"])
def test_address_of_no_machine_is_wrong_usage(
    capsys: Capture, trained_run: Path, key_file: Path, host: str
) -> None:
    words = ["--model", trained_run, "--key-file", key_file, "--host", host, "--port", 0]
    told = refused(capsys, 2, "serve", *words)
    assert told.startswith("expected an address of this machine and a free port at ")


@pytest.mark.parametrize("name", serve.NEEDED)
def test_missing_package_is_wrong_usage(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, trained_run: Path, name: str
) -> None:
    found = serve.find_spec
    monkeypatch.setattr(serve, "find_spec", lambda n: None if n == name else found(n))
    assert refused(capsys, 2, "serve", "--model", trained_run) == (
        f"expected the packages of the service, got no {name}: pip install 'dcmpl-agiqa[serve]'"
    )


def test_help_names_every_flag(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["serve", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for flag in serve.FLAGS for name in flag.names)


# What listens


def asked(address: str, path: str, **headers: str) -> Any:
    with urlopen(Request(address + path, headers=headers), timeout=60) as answer:
        return json.load(answer)


def ended(process: "subprocess.Popen[str]", number: int) -> tuple[int, str, str]:
    """Exit code of a service after a signal, and what it printed and said since it listens."""
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGTERM")
def test_service_answers_until_it_is_ended(trained_run: Path) -> None:
    with running("--model", trained_run, "--device", "cpu") as (address, process):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
        assert asked(address, "/healthz") == {"status": "ok"}
        found = asked(address, "/v1/model")
        assert (found["version"], found["about"]["model"]) == (dcmpl.__version__, trained_run.name)
        assert found["targets"] == ["quality", "alignment"]
        assert ended(process, signal.SIGTERM) == (0, "", "")


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT for one process")
def test_service_with_a_key_logs_requests_and_ends_by_ctrl_c(
    trained_run: Path, key_file: Path
) -> None:
    words = ["--model", trained_run, "--device", "cpu", "--key-file", key_file, "--log-json"]
    with running(*words, "--host", "0.0.0.0") as (address, process):
        address = address.replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(HTTPError, match="401") as caught:
            asked(address, "/v1/model")
        caught.value.close()
        assert asked(address, "/v1/model", Authorization=f"Bearer {KEY}")["engine"] == "torch"
        code, out, err = ended(process, signal.SIGINT)
    assert (code, err) == (0, "")
    entries = [json.loads(line) for line in out.splitlines()]
    assert [(entry["path"], entry["status"]) for entry in entries] == [("/v1/model", 200)]
    assert set(entries[0]) == {"time", "path", "status", "seconds"}
    assert KEY not in out
