"""What `serve run zweave.integrations.ray:app NAME=VALUE ...` takes."""

import argparse
from pathlib import Path

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from ...names import DEFAULT_MODEL, LORA_COMPONENTS, MAX_SEQUENCES, SLOTS


class Arguments(BaseModel):
    """The options of `zweave serve` under their names, but for those of a single process; and the replicas.

    model, experts, dispatcher, load: paths mean the same files on all machines, so they are absolute.
    alias, load, api_key: one, or in a Serve config file a list.
    min_replicas, max_replicas: Ray starts a replica more when each has more than `max_sequences` requests, and stops
        one when they have fewer.
    num_cpus: of a replica, which computes with as many threads.
    num_gpus: of a replica; 1 for device=cuda.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = DEFAULT_MODEL
    served_model_name: str | None = None
    experts: Path | None = None
    load: list[str] = Field(default_factory=list)
    alias: list[str] = Field(default_factory=list)
    dispatcher: Path | None = None
    api_key: list[str] = Field(default_factory=list)
    dtype: str = "bfloat16"
    weights: str = "auto"
    device: str = "cpu"
    max_model_len: PositiveInt | None = None
    kv_tokens: PositiveInt | None = None
    slots: PositiveInt = SLOTS
    lora_components: NonNegativeInt = LORA_COMPONENTS
    max_sequences: PositiveInt = MAX_SEQUENCES
    no_prefix_cache: bool = False
    max_waiting: PositiveInt = 512
    request_timeout: PositiveFloat = 600.0
    drain_timeout: PositiveFloat = 30.0
    max_body_mb: PositiveInt = 8
    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt = 1
    num_cpus: PositiveFloat = 1.0
    num_gpus: NonNegativeFloat = 0.0

    @field_validator("load", "alias", "api_key", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("experts", "dispatcher")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_absolute():
            raise ValueError(f"{path} is no absolute path: a replica may run in another directory or machine")
        return path

    def options(self) -> argparse.Namespace:
        """As `zweave serve` has parsed them."""
        return argparse.Namespace(**self.model_dump(), admin_key=None)
