"""What all commands share: an error is one line and exit status 2, and options are read alike."""

import errno
import io
import sys

import pytest
import typer

from ddcat.cli_support import EXIT_USAGE, parse_size, run
from ddcat.errors import BundleError, DdcatError


def failing(error: Exception) -> None:
    raise error


def test_what_ends_well_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(lambda: print("done"))
    assert ended.value.code == 0
    assert capsys.readouterr() == ("done\n", "")


def test_what_we_raise_is_one_line_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(lambda: failing(BundleError("x is no bundle: export again")))
    assert ended.value.code == EXIT_USAGE == 2
    assert capsys.readouterr() == ("", "error: x is no bundle: export again\n")


def test_a_fault_of_the_program_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: failing(ZeroDivisionError()))


def test_an_exit_status_of_the_application_is_its_own() -> None:
    with pytest.raises(SystemExit) as ended:
        run(lambda: failing(SystemExit(130)))
    assert ended.value.code == 130


def test_a_size_is_height_by_width() -> None:
    assert parse_size("180x240") == (180, 240)


@pytest.mark.parametrize("text", ["", "180", "x240", "180x", "0x240", "180x-1", "180x240x3", "180X240", "1.5x2"])
def test_another_size_is_refused_with_one_that_would_be_right(text: str) -> None:
    with pytest.raises(DdcatError, match=f"--size {text}: use HEIGHTxWIDTH, such as 180x240, or dynamic"):
        parse_size(text, otherwise=" or dynamic")


def test_what_an_error_repeats_of_others_never_acts_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(lambda: failing(BundleError("x\x1b[2J\nerror: y")))
    assert capsys.readouterr().err == "error: x\\x1b[2J\\x0aerror: y\n"


def an_app() -> typer.Typer:
    app = typer.Typer(no_args_is_help=True)

    @app.command()
    def paint(colour: str, *, thickness: int = 1, fails: int = 0) -> None:
        print(f"{colour}, {thickness}")
        if fails:
            raise typer.Exit(fails)

    app.command(name="wash")(lambda: None)
    return app


def run_with(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["artist", *arguments])
    with pytest.raises(SystemExit) as ended:
        run(an_app())
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["paint", "red", "--thicknes", "2"], "no such option: --thicknes; did you mean --thickness? see artist paint --help"),
        (["paint", "red", "--xyzzy"], "no such option: --xyzzy; see artist paint --help"),
        (["paint"], "missing argument 'colour'; see artist paint --help"),
        (["paint", "red", "blue"], "got unexpected extra argument (blue); see artist paint --help"),
        (["pain", "red"], "no such command 'pain'. Did you mean 'paint'? see artist --help"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run_with(monkeypatch, *arguments) == EXIT_USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.replace("argument(s)", "argument").replace("COLOUR", "colour") == f"error: {said}\n"


@pytest.mark.parametrize("arguments", [["paint", "red", "--thickness", "x\n\x1b[2J"], ["paint", "red", "--x\n\x1b[2J"]])
def test_a_wrong_value_is_one_line_that_acts_on_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run_with(monkeypatch, *arguments) == EXIT_USAGE
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_a_command_says_its_own_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(monkeypatch, "paint", "red") == 0
    assert run_with(monkeypatch, "paint", "red", "--fails", "3") == 3
    assert capsys.readouterr() == ("red, 1\nred, 1\n", "")


def test_no_command_is_answered_with_the_help_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(monkeypatch) == EXIT_USAGE
    out, err = capsys.readouterr()
    assert "paint" in out + err
    assert "error" not in (out + err).lower()


def test_output_that_nobody_reads_is_not_the_status_of_a_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Closed())
        assert run_with(patched, "paint", "red") == EXIT_USAGE
    assert capsys.readouterr().err.startswith("error: the output was closed")
