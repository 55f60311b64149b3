"""The command line: dispatch, messages and exit codes."""

from __future__ import annotations

import errno
import importlib
import subprocess
import sys
import time
import types

import pytest

from unialign_jax import __version__, cli
from unialign_jax.errors import Interrupted, UsageError, UserError


@pytest.fixture
def command(monkeypatch):
    """Puts a module with the given `run` in the place of the command `train`."""

    def install(run):
        module = types.ModuleType("unialign_jax.commands.train")
        module.HELP = "a command for tests"

        def add_arguments(parser):
            parser.add_argument("--workdir")
            parser.add_argument("--config")

        module.add_arguments = add_arguments
        module.run = run
        monkeypatch.setitem(sys.modules, "unialign_jax.commands.train", module)

    return install


def raiser(error):
    def run(args, extra):
        raise error

    return run


def test_help_lists_every_command_without_importing_jax():
    script = (
        "import sys; from unialign_jax import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'jax', 'flax', 'numpy', 'tensorflow_datasets', 'absl'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    for name, purpose in cli.COMMANDS.items():
        assert name in done.stdout
        assert purpose in done.stdout
    # Well above what it takes alone (0.05 s), for a machine that is busy with other tests.
    assert seconds < 2


def test_the_module_runs_as_the_command_line_does():
    done = subprocess.run(
        [sys.executable, "-m", "unialign_jax", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.strip() == f"unialign_jax {__version__}"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_listed_command_can_be_called_for_help(name, capsys):
    module = importlib.import_module(f"unialign_jax.commands.{name}")
    assert module.HELP
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: unialign {name}" in shown
    assert f"unialign {name}" in shown.split("usage:")[1].split("\n", 1)[1], "no example is given"


def test_a_mistyped_command_names_the_nearest(capsys):
    assert cli.main(["trian"]) == 2
    error = capsys.readouterr().err
    assert "'trian'" in error
    assert "'train'" in error


def test_a_call_without_a_command_says_which_there_are(capsys):
    assert cli.main([]) == 2
    assert "doctor" in capsys.readouterr().err


def test_a_mistyped_option_names_the_nearest(capsys):
    assert cli.main(["doctor", "--jsn"]) == 2
    assert "'--json'" in capsys.readouterr().err


def test_a_missing_value_is_a_wrong_call(command, capsys):
    command(lambda args, extra: 0)
    assert cli.main(["train", "--workdir"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("unialign train: ")
    assert "--workdir" in error


def test_config_options_reach_the_command_in_order(command):
    got = []
    command(lambda args, extra: got.extend([args.config, *extra]) or 0)
    call = ["--config", "photos", "--config.seed=3", "--config.train.steps", "9", "--noconfig.x.y"]
    assert cli.main(["train", *call]) == 0
    assert got == ["photos", "--config.seed=3", "--config.train.steps", "9", "--noconfig.x.y"]


@pytest.mark.parametrize("stray", [["--confg.seed=3"], ["stray"], ["--config.seed=3", "stray"]])
def test_config_commands_refuse_other_strangers(command, stray, capsys):
    command(lambda args, extra: 0)
    assert cli.main(["train", *stray]) == 2
    assert repr(stray[-1].split("=")[0]) in capsys.readouterr().err


def test_other_commands_take_no_config_options(capsys):
    assert cli.main(["doctor", "--config.seed=3"]) == 2
    assert "'--config.seed'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("records.jsonl:3: no caption"), 1),
        (UsageError("records.jsonl:3: no caption"), 2),
        (Interrupted("records.jsonl:3: no caption"), 75),
    ],
)
def test_a_users_error_is_a_message_and_its_exit_code(command, error, code, capsys):
    command(raiser(error))
    assert cli.main(["train"]) == code
    assert capsys.readouterr().err == "unialign train: records.jsonl:3: no caption\n"


def test_the_switch_shows_the_traceback_of_a_users_error(command, monkeypatch):
    monkeypatch.setenv("UNIALIGN_TRACEBACK", "1")
    command(raiser(UserError("no")))
    with pytest.raises(UserError):
        cli.main(["train"])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.ENOENT, "no such file"),
    ],
)
def test_an_error_of_the_system_names_the_path(command, number, words, capsys):
    command(raiser(OSError(number, "said the system", "some/where")))
    assert cli.main(["train"]) == 1
    error = capsys.readouterr().err
    assert "some/where" in error
    assert words in error
    assert "Traceback" not in error


def test_a_system_error_without_a_path_names_the_output_folder(command, capsys):
    command(raiser(OSError(errno.ENOSPC, "No space left on device")))
    assert cli.main(["train", "--workdir", "runs/a"]) == 1
    assert "runs/a: no space left" in capsys.readouterr().err


def test_a_full_disk_is_recognised_inside_a_librarys_error(command, capsys):
    command(raiser(ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device")))
    assert cli.main(["train", "--workdir", "runs/a"]) == 1
    assert "runs/a: no space left" in capsys.readouterr().err


def test_a_missing_package_is_named(command, capsys):
    command(raiser(ModuleNotFoundError("No module named 'grain'", name="grain")))
    assert cli.main(["train"]) == 1
    error = capsys.readouterr().err
    assert "'grain'" in error
    assert "unialign doctor" in error


def test_a_defect_of_the_program_keeps_its_traceback(command):
    def run(args, extra):
        try:
            raise FileNotFoundError(errno.ENOENT, "handled", "elsewhere")
        except FileNotFoundError:
            raise KeyError("a defect")  # noqa: B904 - the implicit context is what is tested

    command(run)
    with pytest.raises(KeyError):
        cli.main(["train"])


def test_ctrl_c_exits_with_75_and_no_traceback(command, capsys):
    command(raiser(KeyboardInterrupt()))
    assert cli.main(["train"]) == 75
    assert "interrupted" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error_message():
    call = [sys.executable, "-m", "unialign_jax", "doctor"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_absl_flags_are_parsed_before_a_command_runs(command):
    def run(args, extra):
        from absl import flags

        assert flags.FLAGS.is_parsed()
        return 0

    command(run)
    assert cli.main(["train"]) == 0


def test_every_command_module_has_the_three_names():
    for name in cli.COMMANDS:
        module = importlib.import_module(f"unialign_jax.commands.{name}")
        for attribute in ("HELP", "add_arguments", "run"):
            assert hasattr(module, attribute), f"{module.__name__} lacks {attribute}"


def test_the_parser_type_carries_over_to_sub_commands():
    parser = cli._Parser(prog="unialign prepare")
    inner = parser.add_subparsers().add_parser("jsonl")
    inner.add_argument("--image-root")
    assert "--image-root" in cli._options(parser)
    with pytest.raises(UsageError, match="unialign prepare jsonl --help"):
        parser.parse_args(["jsonl", "--image-root"])
