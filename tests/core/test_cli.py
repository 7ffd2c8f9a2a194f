"""The command `ddcat`: all commands under one name, each loaded when it is asked for, and the older names."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ddcat import __version__, cli
from ddcat.cli import PARTS, app


def start(monkeypatch: pytest.MonkeyPatch, function: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [f"ddcat-{function}", *arguments])
    with pytest.raises(SystemExit) as ended:
        getattr(cli, function)()
    return int(ended.value.code or 0)


def loaded(line: str) -> set[str]:
    """Packages of ours, and torch, that a command has loaded at its end."""
    program = (
        "import sys\nfrom ddcat.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *line.split()], capture_output=True, text=True, check=True)
    return set(done.stderr.split()) & {"ddcat", "ddcat_train", "ddcat_export", "ddcat_bench", "ddcat_serve", "torch"}


def test_every_command_of_every_package_has_a_name() -> None:
    there = set()
    for module in {part.module for part in PARTS.values()}:
        commands = importlib.import_module(module).app.registered_commands
        names = {command.name or command.callback.__name__.replace("_", "-") for command in commands}
        whole = (module, "") in {part[:2] for part in PARTS.values()}
        there |= {(module, "")} if whole else {(module, name) for name in names}
    assert there == {part[:2] for part in PARTS.values()}


@pytest.mark.parametrize("name", PARTS)
def test_a_command_explains_itself_by_either_option(name: str) -> None:
    answers = [CliRunner().invoke(app, [name, option], prog_name="ddcat") for option in ("--help", "-h")]
    assert [answer.exit_code for answer in answers] == [0, 0]
    assert answers[0].output == answers[1].output
    assert f"Usage: ddcat {name}" in answers[0].output


def test_the_help_names_every_command_and_the_version_is_ours() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    assert all(f" {name} " in text for name in PARTS)
    assert CliRunner().invoke(app, ["--version"]).output == f"ddcat {__version__}\n"


def test_a_wrong_name_is_told_the_nearest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ddcat", "serv"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "error: no such command 'serv'. Did you mean 'serve'? see ddcat --help\n"


@pytest.mark.parametrize(
    ("line", "packages"),
    [
        ("--version", {"ddcat"}),
        ("train --help", {"ddcat", "ddcat_train"}),
        ("serve --help", {"ddcat", "ddcat_serve"}),
        ("export --help", {"ddcat", "ddcat_export"}),
        ("inspect nowhere", {"ddcat", "ddcat_serve"}),
    ],
)
def test_only_what_is_asked_for_is_loaded(line: str, packages: set[str]) -> None:
    assert loaded(line) == packages


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        ("train", ["--list"], ["train", "--list"]),
        ("data", ["check", "x"], ["data", "check", "x"]),
        ("export", ["x", "--engine", "trt"], ["export", "x", "--engine", "trt"]),
        ("bench", ["gate", "x"], ["gate", "x"]),
        ("bench", ["drift", "x"], ["drift", "x"]),
        ("serve", ["run", "x", "--port", "0"], ["serve", "x", "--port", "0"]),
        ("serve", ["inspect", "x"], ["inspect", "x"]),
    ],
)
def test_an_older_name_is_a_command(
    function: str, arguments: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def note(application: typer.Typer, extras: str) -> None:
        ran.append(sys.argv)
        sys.exit(0)

    monkeypatch.setattr(cli, "_run", note)
    assert start(monkeypatch, function, *arguments) == 0
    assert ran == [["ddcat", *words]]


@pytest.mark.parametrize("function", ["bench", "serve"])
def test_an_older_name_of_several_commands_lists_them(
    function: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(monkeypatch, function, "--help") == 0
    assert {"bench": " gate ", "serve": " inspect "}[function] in capsys.readouterr().out
    assert start(monkeypatch, function, "train") == 2
    assert "no such command 'train'" in capsys.readouterr().err


def test_a_fault_of_the_program_is_no_refusal_of_the_gate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "run", lambda application, extras: 1 // 0)
    assert start(monkeypatch, "bench", "gate", "x") == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_python_runs_it_as_a_module_and_a_shell_completes_it(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "ddcat", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ddcat {__version__}\n"
    environment = {**os.environ, "_DDCAT_COMPLETE": "complete_bash", "COMP_WORDS": "ddcat ga", "COMP_CWORD": "1"}
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'ddcat'; from ddcat.cli import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.stdout.split() == ["gate"]
