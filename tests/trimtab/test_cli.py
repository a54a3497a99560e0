import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from trimtab.cli import COMMANDS, cli


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_help_names_every_command() -> None:
    code, text = run("--help")

    assert code == 0
    assert all(f"\n  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_with_an_example(name: str) -> None:
    code, text = run(name, "--help")

    assert code == 0
    assert "Example" in text
    assert f"trimtab {name}" in text


def test_an_unknown_command_names_those_that_exist() -> None:
    code, text = run("serv")

    assert code == 2
    assert "serve" in text


def test_an_interrupt_while_a_command_is_loaded_is_no_answer_of_its(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "interrupted_while_loaded.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(COMMANDS, "drift", ("interrupted_while_loaded", "drift", ""))

    found = CliRunner().invoke(cli, ["drift", "a.parquet", "b.parquet"])

    # 1 would be drift.
    assert (found.exit_code, found.stdout, found.stderr) == (130, "", "Error: interrupted\n")


def test_a_wrong_settings_file_is_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "trimtab.toml"
    path.write_text("[serving]\nprot = 1\n")

    code, text = run("status", "--settings", str(path))

    assert code == 1
    assert "prot" in text
    assert "Traceback" not in text


def test_status_of_nothing_says_how_to_start_it(tmp_path: Path) -> None:
    path = tmp_path / "trimtab.toml"
    ports = {"alerts": "port = 13", "serving": "port = 14", "dashboard": "port = 15"}
    sections = ["[collector]\nintake_port = 11\nquery_port = 12"] + [
        f"[{name}]\n{line}" for name, line in ports.items()
    ]
    path.write_text("\n".join(sections))

    code, text = run("status", "--settings", str(path))
    _, as_json = run("status", "--settings", str(path), "--json")

    assert code == 1
    assert "trimtab up" in text
    assert [state["ready"] for state in json.loads(as_json)] == [False] * 4


def test_a_rule_file_with_a_mistake_fails_the_check(tmp_path: Path) -> None:
    path = tmp_path / "rules.yml"
    path.write_text("groups:\n- name: g\n  rules:\n  - alert: A\n    expr: up ==\n")

    code, text = run("rules", "check", str(path))

    assert code == 1
    assert str(path) in text


def test_a_query_without_a_stack_says_how_to_start_it(tmp_path: Path) -> None:
    path = tmp_path / "trimtab.toml"
    path.write_text('[query]\nurl = "http://127.0.0.1:9"\n')

    code, text = run("query", "up", "--settings", str(path))

    assert code == 1
    assert "trimtab status" in text


def test_modules_of_the_working_folder_are_found_and_data_may_take_no_argument(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from training import TabularTask\n"
        "def task():\n"
        "    return TabularTask(model='mine', categorical=(), numeric=('x',), label='y', group='g', output='p',\n"
        "                       network=lambda encoding: None)\n"
        "def table():\n"
        "    raise RuntimeError('the table was asked for')\n"
    )
    (tmp_path / "trimtab.toml").write_text('[models.mine]\ntask = "mine:task"\ndata = "mine:table"\n')

    # -P: as the console script has it, without the working folder on the path.
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from trimtab.cli import main; main(['train', 'mine'])"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert "RuntimeError: the table was asked for" in done.stderr
