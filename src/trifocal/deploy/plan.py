"""What is deployed: how many of each role, with which share of a machine. Plain values, and YAML of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from trifocal.api.settings import ServerSettings, read_keys
from trifocal.engines import PASSED_ON
from trifocal.engines.base import STEP_LIMIT
from trifocal.engines.roster import OVERLOAD
from trifocal.errors import UnknownName, UsageError
from trifocal.model.settings import FIELDS, Settings

__all__ = ["Front", "Language", "Plan", "Seeing"]

Role = TypeVar("Role")
SLOTS = 32  # answers at once that a front lets to each replica of the language model
_KEPT_APART = ("host", "port", "legacy_port", "keys", "replicas", "step_limit", "memory_bytes", "log_format")
SERVER = [each.name for each in fields(ServerSettings) if each.name not in _KEPT_APART]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeing:
    """The replicas that see: from ``least`` to ``most``, as many as ``target`` requests under way each ask for.

    ``cpus``, ``gpus`` (a fraction, too) and ``resources`` are one replica's share of a machine.
    """

    least: int = 1
    most: int = 1
    target: float = 8.0
    cpus: float = 0.25
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check("seeing", self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """The replicas of the language model: ``least`` of them always run, up to ``most`` where positions wait.

    One more is woken when each that runs has more than ``overload`` positions before it, and sleeps again after
    ``idle`` seconds without a request. ``step_limit`` is how many seconds a step may take. ``cpus``, ``gpus`` and
    ``resources`` are one replica's share of a machine; a model over several GPUs has all of them on one.
    """

    least: int = 1
    most: int = 1
    overload: int = OVERLOAD
    idle: float = 300.0
    step_limit: float = STEP_LIMIT
    cpus: float = 0.5
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check("language", self)

    @property
    def names(self) -> list[str]:
        """What the replicas' deployments are called."""
        return [f"language-{number}" for number in range(self.most)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The replicas that speak HTTP. ``server`` are settings of `ServerSettings`.

    ``api_key_file`` lies on every machine where a front may be; without it the variable TRIFOCAL_API_KEY is read there.
    """

    least: int = 1
    most: int = 1
    target: float = 64.0
    cpus: float = 0.25
    page: bool = True
    api_key_file: str | None = None
    server: Mapping[str, Any] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check("front", self)
        for name in self.server:
            if name not in SERVER:
                raise UnknownName("setting of front.server", name, SERVER)

    def settings(self, language: Language) -> ServerSettings:
        """The server's settings; it is Ray Serve that listens. Who names hosts is reached by others.

        Raises:
            UsageError: a value of the wrong type, or others reach it without a key.
        """
        told = {name: tuple(each) if isinstance(each, list) else each for name, each in self.server.items()}
        values: dict[str, Any] = {"slots": SLOTS * language.most, **told}
        keys = read_keys(Path(self.api_key_file) if self.api_key_file else None, os.environ)
        try:
            return ServerSettings(**values, host="0.0.0.0" if values.get("public_hosts") else "127.0.0.1", keys=keys)
        except TypeError as error:
            raise UsageError(f"front.server: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A model and its three roles. ``model`` are settings as in trifocal.toml (`Settings`)."""

    model: Mapping[str, Any] = field(default_factory=dict)
    seeing: Seeing = field(default_factory=Seeing)
    language: Language = field(default_factory=Language)
    front: Front = field(default_factory=Front)

    def __post_init__(self) -> None:
        settings = self.settings
        if settings.is_elsewhere:
            raise UsageError(f"model.vision: {settings.vision} sees already; the role seeing is for what is loaded")
        if settings.engine == PASSED_ON:
            raise UsageError(f"model.engine: {PASSED_ON} has a whole model elsewhere, there is nothing to deploy")

    @property
    def settings(self) -> Settings:
        """The model's settings.

        Raises:
            UnknownName: one that there is not.
            UsageError: a value of the wrong type.
        """
        return Settings().with_values(self.model)

    @classmethod
    def read(cls, args: Mapping[str, Any]) -> Plan:
        """The plan that ``args`` of a file tell; what they don't tell is as above.

        Raises:
            UnknownName: a field that there is not.
            UsageError: a value of the wrong type.
        """
        roles: dict[str, type] = {"seeing": Seeing, "language": Language, "front": Front}
        for name in args:
            if name not in ("model", *roles):
                raise UnknownName("part of a plan", name, ["model", *roles])
        made: dict[str, Any] = {name: _role(name, kind, args.get(name) or {}) for name, kind in roles.items()}
        model = _table("model", args.get("model") or {})
        for name in model:
            if name not in FIELDS:
                raise UnknownName("setting of model", name, FIELDS)
        return cls(model=model, **made)

    def args(self) -> dict[str, Any]:
        """What `read` makes this plan of."""
        return asdict(self)

    def to_yaml(self, host: str = "127.0.0.1", port: int = 8000) -> str:
        """A ``serve.yaml`` for ``serve run`` and ``serve deploy``. JSON's values are YAML's."""
        lines = ["# serve run serve.yaml, or serve deploy serve.yaml on a cluster; docs/scaling.md tells the fields"]
        lines += ["proxy_location: EveryNode", "http_options:", f"  host: {json.dumps(host)}", f"  port: {port}"]
        lines += ["applications:", "  - name: trifocal", "    route_prefix: /"]
        lines += ["    import_path: trifocal.deploy:build", "    args:"]
        for name, role in self.args().items():
            lines.append(f"      {name}:" if role else f"      {name}: {{}}")
            for each, value in role.items():
                told = f"  # {COMMENTS[name, each]}" if (name, each) in COMMENTS else ""
                lines.append(f"        {each}: {json.dumps(value)}{told}")
        return "\n".join(lines) + "\n"


COMMENTS = {
    ("seeing", "least"): "replicas that always run",
    ("seeing", "target"): "requests under way for which there is one replica",
    ("seeing", "gpus"): "a fraction, too: 0.25 puts four on a card",
    ("language", "least"): "replicas that always run",
    ("language", "most"): "replicas while positions wait",
    ("language", "overload"): "positions before each replica at which another one is woken",
    ("language", "idle"): "seconds without a request after which it sleeps again",
    ("language", "gpus"): "as many as tensor_parallel times pipeline_parallel, or a fraction",
    ("front", "least"): "several keep conversations of /v1/responses apart",
    ("front", "server"): "as public_hosts, per_key, deadline: the server's settings",
}


def _check(role: str, told: Any) -> None:
    """Refuses numbers that no deployment has."""
    for each in fields(told):
        value = getattr(told, each.name)
        if each.name in ("least", "most", "overload") and type(value) is not int:
            raise UsageError(f"{role}.{each.name}: {value!r} is no whole number")
        if each.name in ("cpus", "gpus", "target", "idle", "step_limit"):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise UsageError(f"{role}.{each.name}: {value!r} is no number from 0 on")
            if not value and each.name in ("target", "idle", "step_limit"):
                raise UsageError(f"{role}.{each.name}: {value!r} is not above 0")
        if each.name == "page" and type(value) is not bool:
            raise UsageError(f"{role}.{each.name}: {value!r} is neither true nor false")
        if each.name == "api_key_file" and not isinstance(value, str | None):
            raise UsageError(f"{role}.{each.name}: {value!r} is no file")
        if each.name in ("resources", "server"):
            _table(f"{role}.{each.name}", value)
    if not 1 <= told.least <= told.most:
        raise UsageError(f"{role}: least is {told.least} and most is {told.most}; 1 <= least <= most was expected")
    if role == "language" and told.overload < 1:
        raise UsageError(f"language.overload: {told.overload} is not above 0")


def _role(name: str, kind: type[Role], told: Any) -> Role:
    known = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    for each in _table(name, told):
        if each not in known:
            raise UnknownName(f"field of {name}", each, known)
    return kind(**told)


def _table(name: str, told: Any) -> Mapping[str, Any]:
    if not isinstance(told, Mapping):
        raise UsageError(f"{name}: {told!r} is no table of names and values")
    return told
