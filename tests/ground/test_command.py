"""What all commands share: an error is one line and exit status 2, and options are read alike."""

import pytest

from ddcat.command import REFUSED, parse_choice, parse_size, run
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
    assert ended.value.code == REFUSED == 2
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
    with pytest.raises(DdcatError, match=f"--size {text}: HEIGHTxWIDTH, such as 180x240, or dynamic would be right"):
        parse_size(text, otherwise=" or dynamic")


def test_a_choice_is_one_of_those_there_are() -> None:
    colours = ("red", "green", "blue")
    assert [parse_choice("--colour", colour, colours) for colour in colours] == list(colours)
    for text in ("", "Red", "re"):
        with pytest.raises(DdcatError, match=rf"^--colour {text}: red, green or blue would be right$"):
            parse_choice("--colour", text, colours)


def test_what_an_error_repeats_of_others_never_acts_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(lambda: failing(BundleError("x\x1b[2J\nerror: y")))
    assert capsys.readouterr().err == "error: x\\x1b[2J\\x0aerror: y\n"
