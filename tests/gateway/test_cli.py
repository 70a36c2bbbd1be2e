"""The command: it starts, it says where, it stops, and refuses what cannot be in one line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess

import httpx
import pytest
from click.testing import CliRunner
from servers import command_line, until_brace
from test_front import CHAT, post

from recollect.cli.gateway import gateway as command


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_stop(upstream, upstream_server, tmp_path):
    arguments = command_line("--upstream", upstream_server[1], "--port", "0", "--json")
    environment = {**os.environ, "RECOLLECT_ADMIN_KEY": ""}
    bodies = []
    for _ in range(2):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=tmp_path, env=environment)
        try:
            told = json.loads(until_brace(process.stdout))
            key = told["dashboard"].partition("#key=")[2]
            bodies.append(post(told["address"], CHAT).content)
            headers = {"authorization": f"Bearer {key}"}
            figures = httpx.get(f"{told['address']}/recollect/figures", headers=headers)
            process.send_signal(signal.SIGTERM)
            process.wait(20)
            assert figures.json()["answers"]["entries"] == 1
        finally:
            process.kill()
    assert bodies[0] == bodies[1], "the store was lost"
    assert upstream.total == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no upstream given"),
        (["--upstream", "nowhere"], "no address"),
        (["--config", "missing.yaml"], "No such file"),
        (["--upstream", "http://up", "--recipe", "exat"], "unknown recipe 'exat'"),
        (["--upstream", "http://up", "--store", "mongodb://x"], "mongodb"),
        (["--upstream", "http://up", "--store", "memory", "--host", "256.1.1.1"], "cannot listen"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(arguments, words, tmp_path):
    from recollect.cli.common import Group

    group = Group(commands={"gateway": command})
    runner = CliRunner()
    with runner.isolated_filesystem(tmp_path):
        result = runner.invoke(group, ["gateway", "--port", "0", *arguments])
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


def test_a_port_that_is_taken_is_told():
    from recollect.cli.common import Group

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        arguments = ["gateway", "--upstream", "http://up", "--store", "memory", "--port", port]
        result = CliRunner().invoke(Group(commands={"gateway": command}), arguments)
    assert result.exit_code == 2
    assert "try another --port" in result.output


def test_help_has_an_example():
    assert "--upstream http://localhost:8000" in CliRunner().invoke(command, ["--help"]).output
