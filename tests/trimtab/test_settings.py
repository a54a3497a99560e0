from pathlib import Path

import msgspec
import pytest

from trimtab.settings import (
    ActionSettings,
    CacheSettings,
    GuardSettings,
    ModelSettings,
    Settings,
    SettingsError,
    Target,
    dump,
    load,
)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "trimtab.toml"
    path.write_text("")

    assert load(path, {}) == Settings()


def test_what_is_dumped_loads_to_the_same_settings(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(
        Settings(),
        collector=msgspec.structs.replace(
            Settings().collector, targets=[Target(job="mine", url="http://h:1/metrics", labels={"team": 'a"b'})]
        ),
        alerts=msgspec.structs.replace(
            Settings().alerts, actions={"retrain": ActionSettings(mode="approve", command=["x", "{model}"])}
        ),
        models={"flights": ModelSettings(task="m:f")},
    )
    path = tmp_path / "trimtab.toml"
    path.write_text(dump(settings))

    assert load(path, {}) == settings


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    path = tmp_path / "trimtab.toml"
    path.write_text("[serving]\nport = 8000\n")

    settings = load(path, {"TRIMTAB_SERVING_PORT": "8001", "TRIMTAB_TRIMTAB_SECRET": "s"})

    assert settings.serving.port == 8001
    assert settings.secret == b"s"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[serving]\nprot = 1\n", "prot"),
        ("[serving]\nport = 'x'\n", "serving.port"),
        ("[serving\n", "not valid TOML"),
        ("[alerts.actions.rollback]\nmode = 'maybe'\n", "actions\\[...\\].mode"),
        ("[alerts.actions.reboot]\n", "no such action"),
        ("[serving]\nport = 9090\n", "a port of its own"),
        ("[dashboard]\nport = 0\n", "1 to 65535"),
        ("[models.m]\ntask = 'm:t'\nranks = 0\n", "models.m.ranks must be at least 1, it is 0"),
        ("[models.m]\ntask = 'm:t'\nholdout_ratio = 2.0\n", "holdout_ratio must be in .0, 1."),
        ("[models.m]\ntask = 'm:t'\ncanary_weight = -0.5\n", "canary_weight in .0, 1."),
        ("[models.m]\ntask = 'm:t'\ntrace_sample_ratio = 1.5\n", "trace_sample_ratio must be in .0, 1., it is 1.5"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "trimtab.toml"
    path.write_text(text)

    with pytest.raises(SettingsError, match=words):
        load(path, {})


def test_a_missing_file_and_a_bad_variable_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such settings file"):
        load(tmp_path / "none.toml", {})
    with pytest.raises(SettingsError, match="TRIMTAB_SERVING_PORT='x'"):
        load(None, {"TRIMTAB_SERVING_PORT": "x"})


def test_an_address_to_bind_to_is_turned_into_one_to_call() -> None:
    settings = msgspec.structs.replace(Settings(), trimtab=msgspec.structs.replace(Settings().trimtab, host="0.0.0.0"))

    assert settings.serving_url == "http://127.0.0.1:8080"


@pytest.mark.parametrize("host", ["::", "::1"])
def test_addresses_of_ipv6_stand_in_brackets(host: str) -> None:
    settings = msgspec.structs.replace(Settings(), trimtab=msgspec.structs.replace(Settings().trimtab, host=host))

    assert settings.serving_url == "http://[::1]:8080"


def test_the_document_has_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    fields = (
        {
            field
            for section in msgspec.structs.fields(Settings)
            for field in getattr(section.type, "__struct_fields__", ())
        }
        | set(ActionSettings.__struct_fields__)
        | set(CacheSettings.__struct_fields__)
        | set(GuardSettings.__struct_fields__)
        | set(ModelSettings.__struct_fields__)
        | set(Target.__struct_fields__)
    )

    assert [field for field in sorted(fields) if f"| `{field}` |" not in page] == []
