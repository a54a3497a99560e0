"""The Prometheus file that `collector.scrape_config` names."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.commands.collector import scrape_file
from trimtab.settings import Settings, load


def settings_with(folder: Path, scrape_config: str) -> Settings:
    path = folder / "trimtab.toml"
    path.write_text(f'[collector]\nscrape_config = "{scrape_config}"\n')
    return load(path, {})


def test_the_file_that_is_named_is_checked(tmp_path: Path) -> None:
    config = tmp_path / "prometheus.yml"
    config.write_text("global: {scrape_interval: 4s}\nscrape_configs: [{job_name: a}, {job_name: b}]\n")

    assert scrape_file(settings_with(tmp_path, str(config))) == config
    assert scrape_file(settings_with(tmp_path, "")) is None


def test_a_file_that_cannot_be_used_ends_the_command_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "prometheus.yml"
    config.write_text("scrape_configs:\n  - job_name: a\n    scrape_intervall: 5s\n")

    with pytest.raises(SystemExit):
        scrape_file(settings_with(tmp_path, str(config)))

    assert "prometheus.yml:3: scrape_configs[0].scrape_intervall: unknown field" in capsys.readouterr().err
