"""Exit codes, and errors in one line with the nearest valid name."""

import errno

import pytest
from click.testing import CliRunner

from fedkd.errors import ClientFailure, ConfigError, DivergedError, RunFolderError, StopRun
from simulations.cli.exit_codes import one_line_errors
from simulations.cli.main import cli


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("rounds must be >= 1, got 0"), 2, "error: rounds must be >= 1, got 0"),
        (RunFolderError("unfinished: no metrics.csv"), 2, "error: unfinished"),
        (ClientFailure("client 3 failed"), 1, "remove the cause"),
        (ClientFailure("client 3 failed", is_transient=True), 1, "on disk; run the same command to continue"),
        (DivergedError("the loss is no longer finite"), 1, "The same command would diverge again."),
        (StopRun("early stopping"), 0, "stopped: early stopping"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/metrics.csv"), 1, "output must be a folder that can be written, got '/x/"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_error_of_the_user_has_its_code(error, code, words, capsys):
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise error
    captured = capsys.readouterr()
    assert end.value.code == code and words in captured.err and captured.out == ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("x"), "the run ended by KeyError: 'x'"),
        (AssertionError(), "AssertionError: no message"),
        (TypeError("a\nb"), "TypeError: a b"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), "'/x' must exist: No such file"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files; allow more open files (ulimit -n 4096)"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "output must be a folder that can be written, got '/x': No space left"),
        (OSError("odd"), "odd"),
        (MemoryError(), "memory must suffice"),
        (NotImplementedError("FileLock"), "NotImplementedError: FileLock"),
    ],
    ids=repr,
)
def test_every_other_error_is_one_line_with_the_traceback_in_a_file_that_it_names(error, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise error
    (line,) = capsys.readouterr().err.splitlines()
    (log,) = tmp_path.iterdir()
    assert end.value.code == 1 and line.startswith("error: ") and words in line and line.endswith(f"(traceback: {log})")
    assert log.read_text().startswith("Traceback") and type(error).__name__ in log.read_text()


def test_a_user_s_own_mistake_needs_no_log_and_code_behind_it_does(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit), one_line_errors():
        raise ConfigError("rounds must be >= 1, got 0")
    assert capsys.readouterr().err == "error: rounds must be >= 1, got 0\n" and not list(tmp_path.iterdir())
    with pytest.raises(SystemExit), one_line_errors():
        raise DivergedError("client 0 diverged") from FloatingPointError("nan")
    assert "traceback" not in capsys.readouterr().err and not list(tmp_path.iterdir()), "the remedy is another value"
    with pytest.raises(SystemExit), one_line_errors():
        raise ConfigError("data: odd") from KeyError("odd")
    assert "(traceback: " in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 1


def test_without_a_place_for_the_log_the_line_remains(monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    with pytest.raises(SystemExit), one_line_errors():
        raise KeyError("x")
    assert capsys.readouterr().err == "error: the run ended by KeyError: 'x'\n"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["rnu"], "did you mean 'run'?"),
        (["run", "strateg=fedgen"], "strateg must be a key of the configuration, got 'fedgen'; did you mean 'strategy'?"),
        (["run", "strategy=fedgn"], "strategy must be an option of conf/strategy, got 'fedgn'; did you mean 'fedgen'?"),
        (["run", "partition.alhpa=1"], "did you mean 'partition.alpha'?"),
        (["run", "alpha=1"], "did you mean 'partition.alpha' or 'strategy.alpha'?"),
        (["run", "experiment=fedgen_mnst"], "did you mean 'fedgen_mnist'?"),
        (["run", "rounds=two"], "rounds must be of the type Integer, got 'two'"),
        (["run", "rounds=null"], "rounds must not be null"),
        (["run", "rounds=1,2"], "rounds must be one value, got '1,2'"),
        (["run", "rounds"], "a word must be KEY=VALUE"),
        (["run", "--confg", "job"], "did you mean '--cfg'?"),
        (["run", "searchpath=/nonexistent"], "searchpath must be an existing folder, got '/nonexistent'"),
        (["distill", "distiler=kd"], "did you mean 'distiller'?"),
        (["distill", "student=resnet9"], "model must be an option of conf/model, got 'resnet9'; did you mean 'resnet"),
        (["sweep", "--job", "2", "seed=0,1"], "did you mean '--jobs'?"),
        (["sweep", "seed=0,1", "strategy=fedavg,fedgn"], "did you mean 'fedgen'?"),
        (["sweep", "--jobs", "0", "seed=0"], "0 is not in the range"),
        (["tune", "--grid", "a,b"], "must be numbers with commas between"),
        (["report"], "FOLDER must be given"),
        (["report", ".", "report=two_colum"], "did you mean 'two_column'?"),
        (["report", ".", "--metric", "local"], "metric must be one of"),
        (["report", "/nonexistent"], "got '/nonexistent'"),
        (["list", "/nonexistent"], "folder must exist, got '/nonexistent'"),
        (["list", "--jsn"], "'--json'"),
        (["describe", "stratgy"], "did you mean 'strategy'?"),
        (["describe", "strategy", "fedgn"], "did you mean 'fedgen'?"),
        (["export", "/nonexistent"], "/nonexistent"),
        (["reproduce", "fedgen_table"], "did you mean 'fedgen_table"),
        (["reproduce", "fedgen_table1_mnist", "--plan", "--strategies", "FedGan"], "did you mean 'FedGen'?"),
        (["reproduce", "fedgen_table1_mnist", "--plan", "--table-only"], "--plan must be given without --table-only"),
        (["bench", "engin"], "did you mean 'engine'?"),
        (["heterogeneity", "num_client=3"], "did you mean 'num_clients'?"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
        (["new", "strategy", "fedmax"], "<folder>/<name>"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_request_gives_one_line_and_code_2(words, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2, (result.exception, result.stderr)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and part in lines[0], result.stderr
    assert result.stdout == "" and not list(tmp_path.iterdir())
