"""What an operator sets, validated in one go before anything is started."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FilePath,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from understudy.config.connection import ConnectionSpec, redact_url
from understudy.config.log_rules import LogRules

Name = Annotated[str, StringConstraints(min_length=1)]
Secret = Annotated[SecretStr, Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# A list in brackets, as JSON has it; an IPv6 address begins with one, too.
_BRACKETED = re.compile(r"\s*\[(?![0-9a-fA-F]*:[0-9a-fA-F]*:)")
_INTERVAL = re.compile(r"always|[1-9][0-9]*(ms|s|m)", re.ASCII)


class _Strict(BaseModel):
    """Has a number that is set to true or false refused, which pydantic reads as 1 or 0."""

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and field.annotation in (int, float):
            raise PydanticKnownError("int_type" if field.annotation is int else "float_type")
        return value


class _Group(_Strict):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NatsSettings(_Group):
    """How to reach the broker."""

    # NoDecode: the environment's value is a list by commas, not JSON.
    servers: Annotated[list[str], NoDecode, Field(min_length=1)]
    credentials: FilePath | None = None
    user: Name | None = None
    password: Secret | None = None
    token: Secret | None = None
    tls_ca: FilePath | None = None
    tls_cert: FilePath | None = None
    tls_key: FilePath | None = None
    connect_timeout_seconds: Seconds
    fast_lane: bool

    @field_validator("servers", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _by_commas(value)

    @field_validator("servers")
    @classmethod
    def _check_servers(cls, value: list[str]) -> list[str]:
        return [_checked_url(url) for url in value]

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("nats.user and nats.password go together")
        ways = {"credentials": self.credentials, "user": self.user, "token": self.token}
        given = [f"nats.{name}" for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both set; one way to sign in is enough")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("nats.tls_cert and nats.tls_key go together")
        return self

    def __repr_args__(self) -> Any:
        """Show no user information inside a URL."""
        for name, value in super().__repr_args__():
            yield name, [redact_url(url) for url in self.servers] if name == "servers" else value


class HttpSettings(_Group):
    """Where probes listen; port 0 takes any free one."""

    host: Name
    port: Annotated[int, Field(ge=0, le=65535)]


class LogSettings(_Group):
    """How much is logged, in which form, and what is left out."""

    level: Literal["debug", "info", "warning", "error"]
    format: Literal["auto", "console", "json"]
    # NoDecode: as with `servers`.
    redact: Annotated[list[Name], NoDecode]
    limit_repeats: bool
    repeats: Annotated[int, Field(ge=1)]
    repeat_window_seconds: Seconds

    @field_validator("level", "format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("redact", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _by_commas(value)

    def rules(self) -> LogRules:
        """Return what every process is told beside level and format, as plain values."""
        return LogRules(
            redact=tuple(self.redact),
            repeats=self.repeats if self.limit_repeats else None,
            repeat_window_seconds=self.repeat_window_seconds,
        )


class TracesSettings(_Group):
    """How spans of OpenTelemetry hang together; the rest is set by its own variables."""

    relation: Literal["parent", "link"]


class EmbeddedSettings(_Group):
    """The nats-server that `run --embedded` starts."""

    sync_interval: str

    @field_validator("sync_interval")
    @classmethod
    def _check_interval(cls, value: str) -> str:
        if not _INTERVAL.fullmatch(value):
            raise ValueError("should be 'always', or a number and one of ms, s, m, like '500ms' or '2m'")
        return value


class Settings(_Strict, BaseSettings):
    """All settings; made by `understudy.config.load.load_settings`, which knows each value's origin."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="UNDERSTUDY_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
    )

    directory: Path
    shutdown_timeout_seconds: Seconds
    nats: NatsSettings
    http: HttpSettings
    log: LogSettings
    traces: TracesSettings
    embedded: EmbeddedSettings
    _nats_is_default: bool = PrivateAttr(default=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the parent's signature
        init_settings: PydanticBaseSettingsSource,
        *_args: PydanticBaseSettingsSource,
        **_kwargs: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only what is handed in: the loader has read the other sources, each with its origin."""
        return (init_settings,)

    @property
    def nats_is_default(self) -> bool:
        """Whether nobody named servers, so that the default address is only a guess."""
        return self._nats_is_default

    def with_servers(self, *urls: str) -> Settings:
        """Return these settings with other servers, named from now on: the embedded server's, say.

        Args:
            urls: NATS URLs.
        """
        changed = self.model_copy(update={"nats": self.nats.model_copy(update={"servers": list(urls)})})
        changed._nats_is_default = False
        return changed

    def connection(self) -> ConnectionSpec:
        """Return what a process needs to connect, as plain values."""
        nats = self.nats
        return ConnectionSpec(
            servers=tuple(nats.servers),
            credentials=_text(nats.credentials),
            user=nats.user,
            password=nats.password.get_secret_value() if nats.password else None,
            token=nats.token.get_secret_value() if nats.token else None,
            tls_ca=_text(nats.tls_ca),
            tls_cert=_text(nats.tls_cert),
            tls_key=_text(nats.tls_key),
            connect_timeout_seconds=nats.connect_timeout_seconds,
            fast_lane=nats.fast_lane,
        )


def _text(path: Path | None) -> str | None:
    # Absolute: the processes that read the file need not share our working directory for ever.
    return None if path is None else str(path.absolute())


def _by_commas(value: object) -> object:
    """Return the list that a text amounts to, as an environment variable has it."""
    if not isinstance(value, str):
        return value
    if _BRACKETED.match(value):
        # Else the brackets and quotes would be taken for part of the values.
        raise ValueError("several are written with commas between them, without brackets and quotes")
    return [part.strip() for part in value.split(",")]


def _checked_url(url: str) -> str:
    """Return the URL with its scheme; a bare `host:port` is a NATS URL too."""
    full = url if "://" in url else f"nats://{url}"
    try:
        parts = urlsplit(full)
        usable = parts.scheme in {"nats", "tls", "ws", "wss"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("each should be like nats://host:4222 (or tls, ws, wss)")
    return full
