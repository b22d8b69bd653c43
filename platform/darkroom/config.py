"""What the environment says, read once into one frozen object. The only place that reads environment variables.

boto3 reads its own AWS_* names; every other name is listed here.
"""

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from darkroom.errors import ConfigError

CommaList = Annotated[tuple[str, ...], NoDecode]


def _also(*names: str) -> Any:
    """Let a field be set by the names that people expect, beside its own DARKROOM_ name."""
    return AliasChoices(*names)


class Settings(BaseSettings):
    """Every setting of every process. Seconds, bytes and days are in the names."""

    model_config = SettingsConfigDict(
        env_prefix="DARKROOM_", frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True
    )

    home: Path = Field(Path("~/.darkroom"), validate_default=True)
    database_url: str = Field("", validation_alias=_also("DARKROOM_DATABASE_URL", "DATABASE_URL"))
    redis_url: str = Field("redis://127.0.0.1:6379/0", validation_alias=_also("DARKROOM_REDIS_URL", "REDIS_URL"))
    s3_endpoint_url: str | None = Field(
        None, validation_alias=_also("DARKROOM_S3_ENDPOINT_URL", "S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
    )
    # where clients reach the same bucket, if they may: pictures are then fetched there, by signed addresses
    s3_public_endpoint_url: str | None = Field(
        None, validation_alias=_also("DARKROOM_S3_PUBLIC_ENDPOINT_URL", "S3_PUBLIC_ENDPOINT_URL")
    )
    s3_bucket: str = Field(
        "darkroom",
        pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$",
        validation_alias=_also("DARKROOM_S3_BUCKET", "S3_BUCKET"),
    )
    # boto3 itself knows only the last of these names, and AWS sets the one before it
    s3_region: str | None = Field(
        None, validation_alias=_also("DARKROOM_S3_REGION", "S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION")
    )
    s3_addressing_style: Literal["auto", "path", "virtual"] = "auto"

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535, validation_alias=_also("DARKROOM_PORT", "PORT"))
    allowed_hosts: CommaList = ()
    keyless_anywhere: bool = False
    secret_key: SecretStr | None = Field(None, validation_alias=_also("DARKROOM_SECRET_KEY", "SECRET_KEY"))
    # Requests served at once, and beside them the requests that wait for a job: streams, Prefer: wait.
    web_threads: int = Field(64, ge=1, le=4096)
    web_waiters: int = Field(512, ge=1, le=4096)
    stream_heartbeat_seconds: float = Field(15, gt=0, le=300)

    redis_server_bin: Path | None = Field(None, validation_alias=_also("DARKROOM_REDIS_SERVER_BIN", "REDIS_SERVER_BIN"))

    catalog: Path | None = None
    models_dir: Path | None = None

    embed_metadata: bool = True
    webhook_allow: CommaList = ()

    model_aliases: CommaList = ()
    compat_wait_seconds: float = Field(300, gt=0, le=3600)

    lease_seconds: float = Field(30, gt=0, le=3600)
    heartbeat_seconds: float = Field(5, gt=0, le=600)
    poll_seconds: float = Field(2, ge=0, le=60)
    sweep_seconds: float = Field(1, gt=0, le=60)
    relay_seconds: float = Field(1, gt=0, le=60)
    # Times that both databases can still add to today.
    job_ttl_seconds: float = Field(7 * 86400, gt=0, le=31536000)
    bulk_promotion_seconds: float = Field(600, gt=0, le=31536000)
    solo_wait_seconds: float = Field(60, gt=0, le=86400)
    upload_limit_seconds: float = Field(120, gt=0, le=86400)
    retention_succeeded_days: float = Field(30, gt=0, le=36500)
    retention_uploads_days: float = Field(1, gt=0, le=36500)
    retention_other_days: float = Field(7, gt=0, le=36500)

    worker_slots: int = Field(4, ge=1, le=256)
    worker_grace_seconds: float = Field(25, gt=0, le=3600)
    worker_device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    worker_threads: int | None = Field(None, ge=1, le=1024)
    worker_models: CommaList = ()
    worker_model_bytes: int | None = Field(None, ge=1)
    max_rows: int = Field(8, ge=1, le=256)

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] = "console"

    @field_validator("allowed_hosts", "worker_models", "webhook_allow", "model_aliases", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("home", "catalog", "models_dir", "redis_server_bin")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value else value

    @field_validator("database_url")
    @classmethod
    def _name_the_driver(cls, value: str) -> str:
        for prefix in ("postgres://", "postgresql://"):
            if value.startswith(prefix):
                value = "postgresql+psycopg://" + value.removeprefix(prefix)
        if value and not value.startswith(("postgresql+psycopg://", "sqlite:///")):
            raise ValueError("must begin with postgresql:// or sqlite:///")
        try:
            _ = make_url(value) if value else None
        except (ValueError, ArgumentError):  # its own words may repeat the password
            raise ValueError("is no URL; it looks like postgresql://USER:PASSWORD@HOST:PORT/NAME") from None
        return value

    @field_validator("redis_url")
    @classmethod
    def _refuse_other_brokers(cls, value: str) -> str:
        if value and not value.startswith(("redis://", "rediss://")):
            raise ValueError("must begin with redis:// or rediss://")
        try:
            _ = urlsplit(value).port
        except ValueError:
            raise ValueError("is no URL; it looks like redis://:PASSWORD@HOST:PORT/0") from None
        return value

    @field_validator("s3_endpoint_url", "s3_public_endpoint_url")
    @classmethod
    def _refuse_other_protocols(cls, value: str | None) -> str | None:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> "Settings":
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("DARKROOM_HEARTBEAT_SECONDS must be at most half of DARKROOM_LEASE_SECONDS")
        return self

    @property
    def database(self) -> str:
        """The SQLAlchemy URL: the one that was given, or SQLite at home."""
        return self.database_url or f"sqlite:///{self.home}/darkroom.db"


def load_settings(**overrides: Any) -> Settings:
    """Read the environment; overrides win. Raises ConfigError naming the variable and its limit."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        problems = [f"{_variable(fault['loc'])}{fault['msg']}" for fault in error.errors()]
        raise ConfigError("; ".join(problems)) from error


def _variable(location: tuple[int | str, ...]) -> str:
    if not location:
        return ""
    name = str(location[0])
    return f"{name if name.isupper() else 'DARKROOM_' + name.upper()}: "
