"""Settings: which source counts, and what is said about those that are wrong."""

from __future__ import annotations

import json
import os
import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest
from pydantic import BaseModel

from understudy.actors.errors import ConfigurationError
from understudy.config.load import load_settings
from understudy.config.log_rules import LogRules
from understudy.config.settings import Settings


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable, file or context of whoever runs the tests."""
    for name in os.environ:
        if name.startswith(("UNDERSTUDY_", "NATS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)


def problems(**flags: object) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(flags={name.replace("__", "."): value for name, value in flags.items()})
    return caught.value.problems


def all_keys() -> list[str]:
    keys: list[str] = []
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            keys.extend(f"{name}.{inner}" for inner in group.model_fields)
        else:
            keys.append(name)
    return keys


def nats_context(tmp_path: Path, name: str, **values: str) -> Path:
    directory = tmp_path / "xdg" / "nats" / "context"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps(values))
    return path


def select(tmp_path: Path, name: str) -> None:
    (tmp_path / "xdg" / "nats" / "context.txt").write_text(name)


def test_the_defaults_hold_where_nothing_is_said() -> None:
    """And it is known that nobody named servers."""
    settings = load_settings()
    assert settings.nats.servers == ["nats://127.0.0.1:4222"]
    assert settings.nats_is_default
    assert (settings.http.host, settings.http.port) == ("127.0.0.1", 8400)
    assert (settings.log.level, settings.log.format) == ("info", "auto")
    assert settings.shutdown_timeout_seconds == 25
    assert settings.directory == Path(".understudy")


def test_each_source_counts_over_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags, UNDERSTUDY_ variables, NATS_URL, a named context, the file, a selected context, defaults."""

    def servers(**flags: object) -> list[str]:
        settings = load_settings(flags={name.replace("__", "."): value for name, value in flags.items()})
        return settings.nats.servers

    nats_context(tmp_path, "selected", url="nats://selected:4222")
    select(tmp_path, "selected")
    assert servers() == ["nats://selected:4222"]
    (tmp_path / "understudy.toml").write_text('nats.servers = ["nats://file:4222"]')
    assert servers() == ["nats://file:4222"]
    nats_context(tmp_path, "named", url="nats://named:4222")
    monkeypatch.setenv("NATS_CONTEXT", "named")
    assert servers() == ["nats://named:4222"]
    monkeypatch.setenv("NATS_URL", "nats://url:4222")
    assert servers() == ["nats://url:4222"]
    monkeypatch.setenv("UNDERSTUDY_NATS__SERVERS", "nats://variable:4222")
    assert servers() == ["nats://variable:4222"]
    assert servers(nats__servers=["nats://flag:4222"]) == ["nats://flag:4222"]
    assert not load_settings().nats_is_default


def test_the_fast_lane_is_on_unless_a_source_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every process is told so with the connection."""
    assert load_settings().connection().fast_lane
    (tmp_path / "understudy.toml").write_text("nats.fast_lane = false")
    assert not load_settings().connection().fast_lane
    monkeypatch.setenv("UNDERSTUDY_NATS__FAST_LANE", "true")
    assert load_settings().connection().fast_lane
    assert problems(nats__fast_lane="sometimes")


def test_sources_are_merged_key_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable for one key leaves the file's others alone."""
    (tmp_path / "understudy.toml").write_text('http = {host = "localhost", port = 1}\nlog.level = "debug"')
    monkeypatch.setenv("UNDERSTUDY_HTTP__PORT", "2")
    settings = load_settings(flags={"log.format": "json", "http.port": None})
    assert (settings.http.host, settings.http.port) == ("localhost", 2)
    assert (settings.log.level, settings.log.format) == ("debug", "json")
    assert settings.nats_is_default


def test_servers_may_be_a_list_by_commas_and_lack_their_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the `nats` command takes them."""
    monkeypatch.setenv("NATS_URL", "one:4222, tls://two:4223")
    assert load_settings().nats.servers == ["nats://one:4222", "tls://two:4223"]


@pytest.mark.parametrize(
    ("variable", "value", "key", "shown"),
    [
        (
            "NATS__SERVERS",
            '["nats://me:secret@a:4222", "nats://b:4222"]',
            "nats.servers",
            '["nats://***@a:4222", "nats://b:4222"]',
        ),
        ("NATS__SERVERS", "[a:4222,b:4222]", "nats.servers", "[a:4222, b:4222]"),
        ("LOG__REDACT", '["iban", "email"]', "log.redact", repr('["iban", "email"]')),
        ("LOG__REDACT", "[]", "log.redact", "'[]'"),
    ],
)
def test_a_list_in_a_variable_has_no_brackets(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, key: str, shown: str
) -> None:
    """They would be taken for part of the names, and what is to be hidden would be logged."""
    monkeypatch.setenv(f"UNDERSTUDY_{variable}", value)
    assert problems() == (
        f"{key} = {shown}: several are written with commas between them, without brackets and quotes "
        f"(environment variable UNDERSTUDY_{variable})",
    )


def test_an_address_in_brackets_is_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """An IPv6 address has them."""
    monkeypatch.setenv("UNDERSTUDY_NATS__SERVERS", "[::1],[fe80::1]:4222")
    assert load_settings().nats.servers == ["nats://[::1]", "nats://[fe80::1]:4222"]


def test_what_is_left_out_of_the_log_crosses_to_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names by commas or as a list; what is limited can be left unlimited."""
    assert load_settings().log.rules() == LogRules()
    monkeypatch.setenv("UNDERSTUDY_LOG__REDACT", "iban, card-number")
    monkeypatch.setenv("UNDERSTUDY_LOG__REPEATS", "3")
    rules = load_settings().log.rules()
    assert (rules.redact, rules.repeats) == (("iban", "card-number"), 3)
    monkeypatch.delenv("UNDERSTUDY_LOG__REDACT")
    (tmp_path / "understudy.toml").write_text('[log]\nredact = ["pin"]\nlimit_repeats = false\n')
    rules = load_settings().log.rules()
    assert (rules.redact, rules.repeats) == (("pin",), None)
    assert len(problems(log__repeats=0, log__repeat_window_seconds=0, log__redact="a,")) == 3


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Container files often set a variable to nothing."""
    monkeypatch.setenv("UNDERSTUDY_HTTP__PORT", "")
    monkeypatch.setenv("NATS_URL", "")
    assert load_settings().http.port == 8400
    assert load_settings().nats_is_default


def test_a_path_in_a_file_is_meant_from_where_the_file_stands(tmp_path: Path) -> None:
    """So a file may be named from any working directory."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "app.creds").touch()
    (tmp_path / "etc" / "app.toml").write_text('directory = "var"\nnats.credentials = "app.creds"')
    settings = load_settings(config_file=Path("etc/app.toml"))
    assert settings.directory == Path("etc/var")
    assert settings.connection().credentials == str(tmp_path / "etc" / "app.creds")


def test_all_problems_come_at_once_each_with_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody fixes a configuration one run at a time."""
    (tmp_path / "understudy.toml").write_text('[log]\nlevel = "loud"\n[http]\nprot = 1\n')
    monkeypatch.setenv("UNDERSTUDY_SHUTDOWN_TIMEOUT_SECONDS", "-1")
    monkeypatch.setenv("UNDERSTUDY_HTTP_PORT", "1")
    assert set(problems(http__port=70000)) == {
        "http.prot is no setting; did you mean http.port? (understudy.toml: http.prot)",
        "UNDERSTUDY_HTTP_PORT is no setting; did you mean UNDERSTUDY_HTTP__PORT? "
        "(environment variable UNDERSTUDY_HTTP_PORT)",
        "log.level = 'loud': should be 'debug', 'info', 'warning' or 'error' (understudy.toml: log.level)",
        "shutdown_timeout_seconds = '-1': should be greater than 0 "
        "(environment variable UNDERSTUDY_SHUTDOWN_TIMEOUT_SECONDS)",
        "http.port = 70000: should be less than or equal to 65535 (flag --http-port)",
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("http = 3", "http is a group: set http.host and the like (understudy.toml: http)"),
        ("zzz = 3", "zzz is no setting (understudy.toml: zzz)"),
        ("[http]\nport.number = 1", "http.port.number is no setting; did you mean http.port?"),
        ("http.port = 'x'", "http.port = 'x': should be an integer (understudy.toml: http.port)"),
        ("nats.servers = []", "nats.servers = : should not be empty (understudy.toml: nats.servers)"),
        ("directory = 3", "directory = 3: should be a path (understudy.toml: directory)"),
        ("nats.tls_ca = [1]", "nats.tls_ca = [1]: should be a path (understudy.toml: nats.tls_ca)"),
        (
            "embedded.sync_interval = '2 minutes'",
            "embedded.sync_interval = '2 minutes': should be 'always', or a number and one of ms, s, m, like "
            "'500ms' or '2m' (understudy.toml: embedded.sync_interval)",
        ),
        ("= 3", "understudy.toml is no valid TOML: Invalid statement (at line 1, column 1)"),
        ("nats.user = 'me'", "nats.user and nats.password go together"),
        (
            "[nats]\nuser='me'\npassword='x'\ntoken='x'",
            "nats.user and nats.token are both set; one way",
        ),
        ("nats.tls_cert = 'understudy.toml'", "nats.tls_cert and nats.tls_key go together"),
        (
            "nats.tls_ca = 'none.pem'",
            "nats.tls_ca = 'none.pem': does not point to a file",
        ),
        ("nats.servers = ['http://x']", "nats.servers = http://x: each should be like nats://host:4222"),
        ("shutdown_timeout_seconds = inf", "shutdown_timeout_seconds = inf: should be a finite number"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, problem: str) -> None:
    """Key, value, what is allowed, and the file."""
    (tmp_path / "understudy.toml").write_text(text)
    (found,) = problems()
    assert found.startswith(problem)


@pytest.mark.parametrize("key", all_keys())
def test_whatever_is_wrong_is_said_in_words_of_an_operator(tmp_path: Path, key: str) -> None:
    """Neither Python's nor those of who reads the values: no class, no pattern, no parsing."""
    said: list[str] = []
    for value in ("[[1]]", "5", "-1", "1.5", "true", "nan", "''", "'a b'", "'1x'", "1979-05-27"):
        (tmp_path / "understudy.toml").write_text(f"{key} = {value}")
        try:
            load_settings()
        except ConfigurationError as error:
            said.extend(error.problems)
    assert said
    for problem in said:
        assert not re.search(r"<class|pattern|pars|valid|at least|interpret", problem), problem


def test_true_and_false_are_no_numbers(tmp_path: Path) -> None:
    """Of no setting: TOML has booleans of its own, which Python would take for 1 and 0."""
    words = {"int": "an integer", "float": "a number"}
    numbers: dict[str, str] = {}
    for key in all_keys():
        group, _, name = key.rpartition(".")
        model = Settings.model_fields[group].annotation if group else Settings
        kind = re.search(r"\b(int|float)\b", str(model.model_fields[name].annotation))  # type: ignore[union-attr]
        if kind:
            numbers[key] = words[kind[1]]
    assert {"http.port", "shutdown_timeout_seconds", "log.repeats"} <= numbers.keys()
    for written in ("true", "false"):
        (tmp_path / "understudy.toml").write_text("".join(f"{key} = {written}\n" for key in numbers))
        assert set(problems()) == {
            f"{key} = {written.capitalize()}: should be {word} (understudy.toml: {key})"
            for key, word in numbers.items()
        }


def test_a_variable_for_a_group_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than ignored, or read as JSON."""
    monkeypatch.setenv("UNDERSTUDY_HTTP", "8400")
    assert problems() == (
        "UNDERSTUDY_HTTP is a group: set UNDERSTUDY_HTTP__HOST and the like "
        "(environment variable UNDERSTUDY_HTTP)",
    )


def test_variables_of_ours_that_are_no_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The binary and the run directory are looked at elsewhere."""
    monkeypatch.setenv("UNDERSTUDY_NATS_SERVER", "/usr/bin/nats-server")
    monkeypatch.setenv("UNDERSTUDY_RUN_DIRECTORY", "/dev/shm/x")
    assert load_settings().nats_is_default


def test_addresses_in_the_variable_for_the_binary_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is that of the setting but for two letters; else nobody would hear of the servers."""
    monkeypatch.setenv("UNDERSTUDY_NATS_SERVER", "nats://me:hunter2@one:4222,nats://two:4222")
    assert problems() == (
        "UNDERSTUDY_NATS_SERVER = 'nats://***@one:4222,nats://two:4222': names the nats-server program to "
        "start, not servers to connect to; put addresses into UNDERSTUDY_NATS__SERVERS "
        "(environment variable UNDERSTUDY_NATS_SERVER)",
    )


def test_a_file_that_was_named_must_exist() -> None:
    """While `understudy.toml` of the working directory need not."""
    with pytest.raises(ConfigurationError, match=r"^no\.toml: no such file \(flag --config\)$"):
        load_settings(config_file=Path("no.toml"))


def test_secrets_appear_nowhere(tmp_path: Path) -> None:
    """Neither in a problem, nor in what is printed of the settings; only in what connects."""
    (tmp_path / "understudy.toml").write_text(
        '[nats]\nservers = ["nats://me:hunter2@host:4222", "ftp://me:hunter2@host"]\npassword = ["hunter2"]\n'
    )
    text = "\n".join(problems())
    assert "hunter2" not in text
    assert "nats.servers = nats://***@host:4222, ftp://***@host: each should be like" in text
    assert "nats.password = ***: " in text

    (tmp_path / "understudy.toml").write_text(
        '[nats]\nservers = ["nats://me:hunter2@host:4222"]\nuser = "me"\npassword = "hunter2"\n'
    )
    settings = load_settings()
    assert "hunter2" not in f"{settings!r} {settings} {settings.nats} {settings.connection()!r}"
    assert settings.connection().password == "hunter2"


def test_a_contexts_credentials_never_go_to_servers_named_elsewhere(tmp_path: Path) -> None:
    """A context counts as a whole or not at all."""
    nats_context(tmp_path, "production", url="nats://production:4222", user="me", password="hunter2")
    select(tmp_path, "production")
    assert load_settings().connection().user == "me"
    elsewhere = load_settings(flags={"nats.servers": ["nats://localhost:4222"]}).connection()
    assert (elsewhere.servers, elsewhere.user, elsewhere.password) == (("nats://localhost:4222",), None, None)


def test_credentials_named_elsewhere_replace_a_contexts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that two ways to sign in don't clash."""
    nats_context(tmp_path, "production", url="nats://production:4222", user="me", password="hunter2")
    select(tmp_path, "production")
    monkeypatch.setenv("UNDERSTUDY_NATS__TOKEN", "t")
    connection = load_settings().connection()
    assert (connection.servers, connection.user, connection.token) == (("nats://production:4222",), None, "t")


def test_what_a_context_asks_for_and_is_not_supported_is_refused(tmp_path: Path) -> None:
    """Rather than connecting in another way than the `nats` command does."""
    path = nats_context(tmp_path, "c", url="nats://h:1", nkey="/k")
    select(tmp_path, "c")
    assert problems() == (
        "NATS context c uses nkey, which isn't supported; "
        f"name servers and credentials by UNDERSTUDY_NATS__… instead ({path})",
    )


def test_a_context_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was asked for by name."""
    monkeypatch.setenv("NATS_CONTEXT", "none")
    path = tmp_path / "xdg" / "nats" / "context" / "none.json"
    assert problems() == (f"NATS context none can't be read: No such file or directory ({path})",)


def test_a_file_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    """What the system says of it names it, too."""
    (tmp_path / "understudy.toml").mkdir()
    assert problems() == ("understudy.toml can't be read: Is a directory",)


def test_other_servers_can_be_put_in_and_are_named_from_then_on() -> None:
    """As `--embedded` does; the rest stays, and the original too."""
    settings = load_settings(flags={"http.port": 0})
    changed = settings.with_servers("nats://127.0.0.1:4333")
    assert changed.connection().servers == ("nats://127.0.0.1:4333",)
    assert not changed.nats_is_default
    assert changed.http.port == 0
    assert settings.nats_is_default


def test_settings_cannot_be_changed_in_place() -> None:
    """What was validated is what is used."""
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.http.port = 1  # type: ignore[misc]


def test_the_defaults_file_names_every_setting() -> None:
    """It is what users copy; optional ones stand in it as comments."""
    text = resources.files("understudy.config").joinpath("defaults.toml").read_text()
    written = tomllib.loads(text)
    assert set(written) == set(Settings.model_fields)
    for group in ("nats", "http", "log"):
        for name in Settings.model_fields[group].annotation.model_fields:  # type: ignore[union-attr]
            assert name in written[group] or f"\n# {name} = " in text, f"{group}.{name}"
