"""The configuration: what is in force, and where each value came from.

Arguments win over the environment (`CENOTE_SECTION__FIELD`), that over a TOML file, that over the defaults.
An unknown key is an error wherever it stands. Secrets are printed masked; `.get_secret_value()` tells them.
A `Config` never changes; `load` makes another.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from cenote.errors import SetupError
from cenote.naming import DEFAULT, Names, check_namespace
from cenote.sections import (
    AdminConfig,
    CacheConfig,
    CheckpointsConfig,
    ConflictsConfig,
    EmbeddedConfig,
    FlushConfig,
    HealthConfig,
    KnowledgeConfig,
    KvConfig,
    MemoryConfig,
    MessagesConfig,
    RepairConfig,
    RetryConfig,
    RoutesConfig,
    SessionConfig,
    SqlConfig,
    StateConfig,
    TasksConfig,
    TelemetryConfig,
    Url,
)

__all__ = [
    "AdminConfig", "CacheConfig", "CheckpointsConfig", "Config", "ConflictsConfig", "EmbeddedConfig", "FlushConfig",
    "HealthConfig", "KnowledgeConfig", "KvConfig", "MemoryConfig", "MessagesConfig", "Names",
    "RepairConfig", "RetryConfig",
    "RoutesConfig", "SessionConfig", "SqlConfig", "StateConfig", "TasksConfig", "TelemetryConfig",
    "Url", "load", "origins", "shown",
]  # fmt: skip

TEMPORARY: Final = ":temporary:"
"""The data directory that vanishes at exit."""

RESERVED_ENVIRONMENT: Final = frozenset({"CENOTE_CRASH_AT", "CENOTE_TEST_POSTGRES_BIN", "CENOTE_TRACEBACK"})
"""Variables that are read elsewhere (`points.py`, `testing/`, `cli/`), hence no unknown settings."""

_PREFIX: Final = "CENOTE_"
_toml: ContextVar[Path | None] = ContextVar("cenote_toml", default=None)


class Config(BaseSettings):
    """All settings, e.g. `Config(flush={"interval_ms": 5})`, under which the environment is read.

    Raises:
        SetupError: names the field.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    namespace: str = Field(default=DEFAULT, description="prefixes all names; a tenant is a namespace")
    kv: KvConfig = Field(default_factory=KvConfig)
    sql: SqlConfig = Field(default_factory=SqlConfig)
    state: StateConfig = Field(default_factory=StateConfig)
    session: SessionConfig = Field(default_factory=SessionConfig)
    cache: CacheConfig = Field(default_factory=CacheConfig)
    checkpoints: CheckpointsConfig = Field(default_factory=CheckpointsConfig)
    repair: RepairConfig = Field(default_factory=RepairConfig)
    tasks: TasksConfig = Field(default_factory=TasksConfig)
    messages: MessagesConfig = Field(default_factory=MessagesConfig)
    knowledge: KnowledgeConfig = Field(default_factory=KnowledgeConfig)
    routes: RoutesConfig = Field(default_factory=RoutesConfig)
    memory: MemoryConfig = Field(default_factory=MemoryConfig)
    flush: FlushConfig = Field(default_factory=FlushConfig)
    conflicts: ConflictsConfig = Field(default_factory=ConflictsConfig)
    retry: RetryConfig = Field(default_factory=RetryConfig)
    health: HealthConfig = Field(default_factory=HealthConfig)
    embedded: EmbeddedConfig = Field(default_factory=EmbeddedConfig)
    admin: AdminConfig = Field(default_factory=AdminConfig)
    telemetry: TelemetryConfig = Field(default_factory=TelemetryConfig)

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        _check_environment()
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _setup_error(error) from None  # pydantic's own error may quote what was given
        except SettingsError as error:
            raise SetupError(f"{error}", hint=f"settings are read from {_PREFIX}SECTION__FIELD") from None
        self._origins = _trace(values)

    @field_validator("namespace")
    @classmethod
    def _legal_namespace(cls, value: str) -> str:
        try:
            return check_namespace(value)
        except SetupError as error:
            raise ValueError(str(error).removeprefix("namespace: ")) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, environment, TOML file: the first one that has a value wins."""
        path = _toml.get()
        if path is None:
            return init_settings, env_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, path)

    @property
    def names(self) -> Names:
        """What this namespace calls its buckets and schemas."""
        return Names(self.namespace)

    @property
    def migrates(self) -> bool:
        """Whether opening the store migrates the schema: unless told, only where the server is ours."""
        return (self.sql.migrate or ("check" if self.sql.url else "auto")) == "auto"


def load(
    config: Config | str | os.PathLike[str] | None = None, *, overrides: Mapping[str, Any] | None = None
) -> Config:
    """The effective configuration: a `Config` or the path of a TOML file, under `overrides`.

    Overrides are called `section__field`.

    Raises:
        SetupError: names the field or the file.
    """
    arguments = _nested(overrides or {})
    if isinstance(config, Config):
        loaded = _overridden(config, arguments)
    else:
        loaded = _from_file(None if config is None else Path(config), arguments)
    if loaded.sql.url is not None and loaded.kv.url is None and loaded.namespace == DEFAULT:
        # Two machines would each start a NATS of their own and flush into one schema (flow rule 8).
        raise SetupError(
            "namespace: an embedded NATS with a PostgreSQL elsewhere needs a namespace of its own",
            hint="give kv.url as well, or a namespace",
        )
    return loaded


def origins(config: Config) -> dict[str, str]:
    """Where each value came from, by `section.field`: "default", "argument", "environment …", "file …"."""
    return {name: config._origins.get(name, "default") for name, _ in _fields(config)}


def shown(config: Config) -> dict[str, Any]:
    """Each effective value as it may be printed: `section.field` → text, number, bool or None; no secret."""
    return {name: _printable(value) for name, value in _fields(config)}


def _fields(config: Config) -> Iterator[tuple[str, Any]]:
    yield "namespace", config.namespace
    for section in _SECTIONS:
        for field in _SECTIONS[section].model_fields:
            yield f"{section}.{field}", getattr(getattr(config, section), field)


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value)  # as the environment takes it
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{"kv__url": u}` → `{"kv": {"url": u}}`."""
    nested: dict[str, Any] = {}
    for name, value in overrides.items():
        section, separator, field = name.partition("__")
        if name == "namespace":
            nested[name] = value
        elif separator and section in _SECTIONS and field in _SECTIONS[section].model_fields:
            nested.setdefault(section, {})[field] = value
        else:
            raise _unknown(name, "settings are given as section__field=value")
    return nested


def _from_file(path: Path | None, arguments: dict[str, Any]) -> Config:
    if path is not None and not path.is_file():
        raise SetupError(f"config: there is no file {path}")
    token = _toml.set(path)
    try:
        return Config(**arguments)
    except (OSError, ValueError) as error:  # tomllib's errors are ValueErrors
        raise SetupError(f"config: {path}: {error}") from error
    finally:
        _toml.reset(token)


def _overridden(config: Config, arguments: dict[str, Any]) -> Config:
    """The same settings, whatever the environment says by now, under `arguments`."""
    if not arguments:
        return config
    values: dict[str, Any] = {section: {} for section in _SECTIONS}
    for name, value in _fields(config):
        section, _, field = name.partition(".")
        if field:
            values[section][field] = value
    for section, fields in arguments.items():
        values[section] = values[section] | fields if section in _SECTIONS else fields
    values.setdefault("namespace", config.namespace)
    loaded = Config(**values)
    loaded._origins.clear()
    loaded._origins.update(config._origins, **dict.fromkeys(_flat(arguments), "argument"))
    return loaded


def _trace(values: Mapping[str, Any]) -> dict[str, str]:
    """Who gave each value that is no default; the strongest source is written last."""
    path = _toml.get()
    found: dict[str, str] = {}
    if path is not None:
        found |= dict.fromkeys(_flat(TomlConfigSettingsSource(Config, path)()), f"file {path}")
    for name in os.environ:
        if os.environ[name] and name.upper().startswith(_PREFIX) and name not in RESERVED_ENVIRONMENT:
            section, separator, field = name[len(_PREFIX) :].lower().partition("__")
            if separator or section == "namespace":
                found[f"{section}.{field}" if separator else section] = f"environment {name}"
    return found | dict.fromkeys(_flat(values), "argument")


def _flat(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, BaseModel):
            yield from (f"{name}.{field}" for field in value.model_fields_set)
        elif isinstance(value, Mapping):
            yield from (f"{name}.{field}" for field in value)
        else:
            yield name


def _check_environment() -> None:
    """Refuse a misspelt variable; pydantic-settings notices only unknown fields of known sections."""
    for name in os.environ:
        if name.upper().startswith(_PREFIX) and name not in RESERVED_ENVIRONMENT:
            section, separator, _ = name[len(_PREFIX) :].lower().partition("__")
            if not (section == "namespace" and not separator) and not (separator and section in _SECTIONS):
                raise _unknown(name, f"settings are read from {_PREFIX}SECTION__FIELD and {_PREFIX}NAMESPACE")


def _unknown(name: str, hint: str) -> SetupError:
    return SetupError(f"{name}: there is no such setting", hint=hint)


def _setup_error(error: ValidationError) -> SetupError:
    """Pydantic's list of errors in one line, each under the name of its field, without the values."""
    lines = []
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        name = ".".join(str(part) for part in detail["loc"][:2])
        message = detail["msg"].removeprefix("Value error, ")
        unknown = detail["type"] == "extra_forbidden"
        lines.append(f"{name}: {'there is no such setting' if unknown else message[:1].lower() + message[1:]}")
    return SetupError("; ".join(dict.fromkeys(lines)))


_SECTIONS: Final[dict[str, type[BaseModel]]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
