"""Settings: one frozen model per service, from a YAML file and the environment; wrong ones stop the start."""

import os
import stat
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import structlog
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cohortium_kit.errors import ConfigurationError

log = structlog.get_logger(__name__)

ENV_PREFIX = "COHORTIUM_"


class SecretText(str):
    """Text that does not show itself in a `repr`: settings are printed, secrets in them are not."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Settings(BaseModel):
    """The settings every service has. A service adds its own by inheriting; an unknown field is an error.

    `amqp_url` and `database_url` may hold a password: keep the file private, or give them in the environment.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    amqp_url: Annotated[str, Field(pattern=r"^(amqps?|memory)://"), AfterValidator(SecretText)]
    database_url: Annotated[str, Field(pattern=r"^(postgresql|sqlite)[a-z+]*://"), AfterValidator(SecretText)]
    db_schema: Annotated[str, Field(alias="schema", pattern=r"^[a-z_][a-z0-9_]{0,62}$")]
    broker_check: Literal["strict", "trial"] = "strict"
    """`strict` refuses a broker that is open wider than it must be. `trial` is for one machine: it warns, no more."""
    namespace: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")] = "cohortium"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    operator_token_file: Path | None = None
    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://[^/?#@]+(/[^?#]*)?$")] | None = None
    """Send traces to this OpenTelemetry collector, by OTLP over HTTP; `/v1/traces` is added."""
    trace_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Which part of the windows is traced. The same in all services, or traces have holes."""

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """Read the file (None: the environment alone), then `COHORTIUM_<FIELD>` over it.

        Raises `ConfigurationError` that names every fault at once, with the field and the way out.
        """
        values = _read_yaml(path) if path is not None else {}
        values.update(_from_environment(cls))
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            source = str(path) if path is not None else "the environment"
            raise ConfigurationError(_all_faults(error, source)) from None


def read_secret_file(path: Path, *, development: bool = False) -> str:
    """The secret in a file, without the line end. Raises `ConfigurationError` if others than its owner could read it.

    In development an open file is warned about instead, each time.
    """
    try:
        mode = path.stat().st_mode
        secret = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"secret file {path}: {type(error).__name__}; check path and rights") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        if not development:
            raise ConfigurationError(f"secret file {path} is open to others: chmod 600 {path}")
        log.warning("secret_file_open", path=str(path))
    if not secret:
        raise ConfigurationError(f"secret file {path} is empty: write the secret into it")
    return SecretText(secret)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; give an existing settings file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigurationError(f"{path}: not YAML{where}; write one `field: value` a line") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: not a mapping; write one `field: value` a line")
    return values


def _from_environment(model: type[BaseModel]) -> dict[str, Any]:
    """Only fields of this model are looked for: the environment may hold other services' variables too."""
    found = {}
    for name, info in model.model_fields.items():
        field = info.alias or name
        text = os.environ.get(ENV_PREFIX + field.upper())
        if text is not None:
            found[field] = text if info.annotation is str else yaml.safe_load(text)
    return found


def _all_faults(error: ValidationError, source: str) -> str:
    lines = [f"{source} has {error.error_count()} fault(s):"]
    for fault in error.errors(include_input=False, include_url=False, include_context=False):
        field = ".".join(str(part) for part in fault["loc"])
        match fault["type"]:
            case "missing":
                advice = f"missing; set it, or {ENV_PREFIX}{field.upper()}"
            case "extra_forbidden":
                advice = "unknown; remove it or correct its name"
            case _:
                advice = fault["msg"]
        lines.append(f"  {field}: {advice}")
    return "\n".join(lines)
