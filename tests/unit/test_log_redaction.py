"""Redaction: no secret gets through, by its form, by its name, however deep it is."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from understudy.runtime.telemetry.redaction import _BY_FORM, HIDDEN, MAX_TEXT, Redaction

SECRET = "hunter2"
# As an nkey's is, a hundred bits of nothing.
SEED = "SU" + "A2B7" * 14

TEXTS = [
    f"nats://clerk:{SECRET}@broker:4222",
    f"nats://{SECRET}@broker:4222",
    f"nats://a:x@one:4222,nats://b:{SECRET}@two:4222 are away",
    f"https://clerk:a/b?c#d@e'{SECRET}@shop.example/",
    f"password={SECRET}",
    f"db_password: {SECRET}, user: clerk",
    f"PASSWORD = '{SECRET}'",
    f"Login(user='clerk', password='{SECRET}')",
    f"Login(user='clerk', password='it\\'s {SECRET}')",
    f'{{"user": "clerk", "api_key": "{SECRET}"}}',
    f'"{{\\"api-key\\": \\"my {SECRET}\\"}}"',
    f"https://shop.example/?access_token={SECRET}&page=1",
    f"aws_secret_access_key={SECRET}",
    f"secret_key: {SECRET}",
    f"Authorization: Digest user=clerk, response={SECRET}",
    f"b'NATS/1.0\\r\\nAuthorization: Basic {SECRET}\\r\\n'",
    f"[(b'x-auth-token', b'{SECRET}')]",
    f"Set-Cookie: session={SECRET}; id={SECRET}",
    f"sent with Bearer {SECRET}",
    f"password='{SECRET} and no more of it",
    f"credentials: {SECRET}",
    f"{{'X-Auth-Token': ['{SECRET}']}}",
    f"login(password=('{SECRET}', 1))",
    f'"{{\\"password\\": \\"a\\\\\\"{SECRET}\\"}}"',
    *(f"{name}={SECRET}" for name in ("pass", "db_pass", "DB_PASS", "dbPass", "db_pwd", "userNkey", "jwt")),
    f"user: clerk\npass: {SECRET}",
    f"{{'pass': '{SECRET}'}}",
    f"https://shop.example/?user=clerk&pass={SECRET}",
    *(f"{name}={SECRET}" for name in ("passphrase", "apikey", "api-keys", "access_key", "private_key")),
    *(f"{name}={SECRET}" for name in ("client_secret", "credential", "passwords", "secrets", "seed")),
    f"the seed: {SECRET}",
    f"get(url, cookies={{'session': '{SECRET}', 'id': '{SECRET}'}})",
    f"login(password={{'clerk': '{SECRET}'}})",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_secret_in_a_text_is_hidden(text: str) -> None:
    """In URLs, assignments, JSON, reprs, headers and query strings."""
    redacted = Redaction().text(text)
    assert SECRET not in redacted
    assert HIDDEN in redacted


@pytest.mark.parametrize(
    "text",
    [
        f"the seed is {SEED}",
        "-----BEGIN NATS USER JWT-----\neyJ0eXAiOi.hunter2hunter2.x\n------END NATS USER JWT------",
        "-----BEGIN PRIVATE KEY-----\nhunter2\n",
        "got eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjbGVyayJ9.c2lnbmF0dXJl here",
    ],
)
def test_what_only_secrets_look_like_is_hidden(text: str) -> None:
    """An nkey's seed, a credentials file, a key, a JWT: without any name before them."""
    redacted = Redaction().text(text)
    assert not any(part in redacted for part in (SEED, "hunter2", "eyJ"))
    assert HIDDEN in redacted


@pytest.mark.parametrize(
    "text",
    [
        "handler failed",
        "cannot reach nats://broker:4222",
        "max_tokens=512 tokens: 3",
        "monkey=5",
        "write to clerk@shop.example",
        "the password is wrong",
        "KeyError: 'carrier'",
        "a token of thanks",
        "passenger=17 bypass=yes compass: north passed=3 passes: 2 password_policy",
        "author=Ada authors: 2 seeded=yes seeds: 3 linseed=oil",
        "seed=42, seed: -7",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """A log that hides what it is about is of no use."""
    assert Redaction().text(text) == text


def test_only_the_secret_of_a_text_is_hidden() -> None:
    """The host tells where it failed, what comes after it why."""
    text = f"nats://clerk:{SECRET}@broker:4222: password={SECRET}; timeout"
    assert Redaction().text(text) == "nats://***@broker:4222: password=***; timeout"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "password",
            "Password",
            "dbPassword",
            "db_password",
            "PGPASSWORD",
            "passwd",
            "pwd",
            "secret",
            "client-secret",
        ),
        *("token", "X-Auth-Token", "accessToken", "api_key", "apiKey", "X-API-Key", "apikey", "private_key"),
        *(
            "Authorization",
            "Proxy-Authorization",
            "Cookie",
            "Set-Cookie",
            "credentials",
            "nkey",
            "passphrase",
        ),
        *("pass", "db_pass", "dbPass", "DB-PASS", "jwt", "idJwt", "access_key", "accessKey", "AccessKeyId"),
        *("credential", "cookies", "passwords", "api_keys", "nkey_seed_token"),
    ],
)
def test_a_value_under_a_secrets_name_is_hidden(name: str) -> None:
    """Whatever it is, unless that says only whether there is one."""
    redaction = Redaction()
    for value in (SECRET, b"x", 1234, [SECRET], {"a": SECRET}):
        assert redaction.fields({name: value}) == {name: HIDDEN}
    assert redaction.fields({name: None}) == {name: None}
    assert redaction.fields({name: True}) == {name: True}


def test_a_seed_is_a_secret_unless_it_is_a_number() -> None:
    """A random generator's is what one needs to see the same again."""
    seeds = {"seed": 42, "fault_seed": -7, "user_seed": "SUAB", "walletSeed": [1, 2]}
    assert Redaction().fields(seeds) == {
        "seed": 42,
        "fault_seed": -7,
        "user_seed": HIDDEN,
        "walletSeed": HIDDEN,
    }


def test_a_secret_in_a_key_is_hidden() -> None:
    """Servers are counted by their URLs."""
    servers = {f"nats://clerk:{SECRET}@broker:4222": 1}
    hidden = {"nats://***@broker:4222": 1}
    assert Redaction().fields({**servers, "servers": servers}) == {**hidden, "servers": hidden}


@pytest.mark.parametrize(
    "name",
    [
        *("tokens", "max_tokens", "key", "keyboard", "author", "subject", "secretary", "passenger", "passed"),
        *("bypass", "compass", "pass_rate", "passport", "seeded", "seeds", "linseed", "seed_rows", "monkey"),
    ],
)
def test_a_value_under_another_name_stays(name: str) -> None:
    """A name only counts by its words."""
    assert Redaction().fields({name: "x"}) == {name: "x"}


def test_a_secret_is_hidden_however_deep_it_is() -> None:
    """In mappings of any kind, in lists, and in pairs of name and value."""
    value = {"a": [{"b": MappingProxyType({"X-Token": SECRET})}, ("Cookie", SECRET), (b"x-token", SECRET)]}
    assert Redaction().value(value) == {
        "a": [{"b": {"X-Token": "***"}}, ["Cookie", "***"], ["x-token", "***"]]
    }


def test_an_object_is_hidden_by_its_text() -> None:
    """What can't be looked into is looked at."""

    class Login:
        def __str__(self) -> str:
            return f"Login(password={SECRET!r})"

    assert Redaction().value([Login()]) == ["Login(password='***')"]


def test_names_of_ones_own_are_secret_too() -> None:
    """As fields, in any case and with any dash, and in texts."""
    redaction = Redaction(["iban", "card-number"])
    assert redaction.fields({"IBAN": "CH93", "card_number": "4111"}) == {"IBAN": "***", "card_number": "***"}
    assert redaction.text("iban: CH93, card-number=4111") == "iban: ***, card-number=***"


def test_a_long_text_is_cut_in_the_middle_and_never_within_a_secret() -> None:
    """What is left of one, at the cut, would no longer be known."""
    redaction = Redaction()
    half = MAX_TEXT // 2
    for before in range(half - 30, half + 10, 3):
        secret = f" password={SECRET} "
        text = "x" * before + secret + "y" * MAX_TEXT + secret + "z" * before
        cut = redaction.text(text)
        assert "hun" not in cut
        assert "ter2" not in cut
        assert f"… cut, of {len(text)} characters …" in cut
        assert len(cut) < MAX_TEXT + 100


def test_names_that_are_made_from_data_are_not_kept_for_ever() -> None:
    """Memory is bounded."""
    redaction = Redaction()
    for number in range(5000):
        redaction.fields({f"order-{number}": 1})
    assert len(redaction._known) <= 1024


def test_a_text_full_of_what_begins_a_token_is_searched_once() -> None:
    """Each may begin one, but none is looked for through all that follows."""
    (form,) = [form for hint, form, _ in _BY_FORM if hint == "eyJ"]
    assert form.search("eyJ" + "a" * 1001 + ".hunter2hunter2.x") is None
    assert form.search("eyJ" + "a" * 1000 + ".hunter2hunter2.x") is not None
