"""The settings of a study: a TOML file into frozen dataclasses, checked before anything is trained."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from streamcca.errors import InputError, MissingFileError
from streamcca.multiplicity.study.limits import check_limits
from streamcca.multiplicity.study.sections import read_section
from streamcca.views import unknown_name

_GROUP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]*")
# Keys of a group that say where its models come from and how they are read; all others are of the training method.
_SOURCE_KEYS = ("factory", "checkpoints", "arguments", "huggingface", "timm", "stored")
_GROUP_KEYS = ("name", "members", "layers", "features", "data", "trained_on", "training", *_SOURCE_KEYS)


@dataclass(frozen=True)
class DataSettings:
    """`[data]`: images and labels; see `load_data`."""

    source: str = "digits"
    folder: str | None = None
    test_share: float | None = None
    test_count: int | None = None
    seed: int = 0
    size: int | None = None
    limit: int | None = None
    layout: str | None = None


@dataclass(frozen=True)
class ShiftSettings:
    """`[shifts]`: out-of-distribution versions of the test set, and own test sets; see `SHIFTS`."""

    kinds: tuple[str, ...] = ("noise", "rotation")
    strengths: tuple[int, ...] = (1, 2, 3, 4, 5)
    seed: int = 0


@dataclass(frozen=True)
class RepresentationSettings:
    """`[representation]`: how the insides of two models are compared."""

    measure: Literal["svcca", "pwcca", "cca"] = "svcca"
    variance: float | None = None
    nuclear: float | None = None
    rank: int | None = None
    ridge: float = 0.0
    rows: Literal["pool", "positions", "flatten", "tokens", "first", "cls", "last", "auto"] = "pool"
    probe: Literal["test", "train"] = "test"
    batch_size: int = 256


@dataclass(frozen=True)
class PredictionSettings:
    """`[predictions]`: which number stands for predictive multiplicity, and how ensembles average."""

    measure: Literal["probability variance", "disagreement"] = "probability variance"
    ensemble: Literal["probability", "logit", "geometric"] = "probability"


@dataclass(frozen=True)
class FeatureSettings:
    """`[features]`: overlapping features (arXiv 2110.12899)."""

    base: str | None = None
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    draws: int = 3
    pairs: int = 6
    order: str = "pivoted"
    step: int = 8
    target: float | None = None
    accuracy_band: float = 0.05
    ensemble_size: int = 6


@dataclass(frozen=True)
class StatisticsSettings:
    """`[statistics]`: intervals and permutations."""

    level: float = 0.95
    draws: int = 2000
    permutations: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class GroupSettings:
    """One `[[group]]`: models made in one way.

    Attributes
    ----------
    name : str
    members : int
        Models that are trained, or files that are given.
    source : str
        "trained", "factory", "huggingface", "timm" or "stored".
    method : dict
        Settings of the training method (`Method`); those of `[training]` where the group does not say otherwise. Of
        models from elsewhere what its table `training` tells; the ladder compares it.
    given : dict
        Where models that are not trained here come from: factory, arguments, checkpoints, ...
    layers : tuple of str, optional
        Layers to watch; those of other groups stand at the same place of their lists.
    features : str, optional
        Layer whose output is the representation that probes work on; default the last of `layers`.
    data : dict
        Settings of `[data]` that are others for the training of this group, and `shift = "KIND:STRENGTH"`.
    trained_on : str
        What a model that comes from elsewhere was trained on.
    """

    name: str
    members: int
    source: str
    method: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] | None = None
    features: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    trained_on: str = ""


@dataclass(frozen=True)
class StudyConfig:
    """All settings of a study; `StudyConfig.load` reads them from a TOML file."""

    name: str
    folder: Path
    seed: int
    members: int
    data: DataSettings
    shifts: ShiftSettings
    representation: RepresentationSettings
    predictions: PredictionSettings
    features: FeatureSettings
    statistics: StatisticsSettings
    downstream: dict[str, tuple[int, ...]]
    groups: tuple[GroupSettings, ...]

    @classmethod
    def load(cls, path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> StudyConfig:
        """Read and check a TOML file; `folder` goes before the file's own.

        Raises
        ------
        MissingFileError, InputError
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFileError(
                2,
                f"{path}: there is no such file, expected settings of a study; `streamcca study --example` shows some",
            )
        table = _parsed(path.read_text(encoding="utf-8"), str(path))
        # A folder that a file names lies beside the file; else results go where the user is.
        own = table.get("study", {}).get("folder") if isinstance(table.get("study", {}), Mapping) else None
        where = Path(folder) if folder is not None else path.parent / own if own else Path(f"study-{path.stem}")
        return cls.from_table(table, where, str(path), path.stem)

    @classmethod
    def from_table(
        cls, table: Mapping[str, Any], folder: str | os.PathLike[str], where: str = "settings", name: str = "study"
    ) -> StudyConfig:
        """Make settings of the tables of a TOML file.

        Raises
        ------
        InputError
        """
        known = {"study", "training", "downstream", "group", *_SECTIONS}
        for key in table:
            if key not in known:
                raise InputError(f"{where}: got section [{key}], expected one of {', '.join(sorted(known))}")
        study = read_section(_Study, table.get("study", {}), f"{where}: [study]")
        if study.members < 2:
            raise InputError(
                f"{where}: [study].members: got {study.members}, expected at least 2, since pairs are compared"
            )
        sections = {key: read_section(kind, table.get(key, {}), f"{where}: [{key}]") for key, kind in _SECTIONS.items()}
        defaults = table.get("training", {})
        groups = _groups(table.get("group", []), defaults, study.members, where)
        config = cls(
            name=study.name or name,
            folder=Path(folder),
            seed=study.seed,
            members=study.members,
            downstream=_classes_by_name(table.get("downstream", {}), f"{where}: [downstream]"),
            groups=groups,
            **sections,
        )
        config._check(where)
        return config

    def _check(self, where: str) -> None:
        names = [group.name for group in self.groups]
        base = self.features.base
        if base is not None and base not in names:
            raise InputError(f"{where}: [features].base: got {base!r}, expected a group: {', '.join(names)}")
        representation = self.representation
        rules = [key for key in ("variance", "nuclear", "rank") if getattr(representation, key) is not None]
        if len(rules) > 1:
            raise InputError(f"{where}: [representation]: got {' and '.join(rules)}, expected one of them")
        if not self.shifts.strengths or any(not 1 <= s <= 5 for s in self.shifts.strengths):
            raise InputError(
                f"{where}: [shifts].strengths: got {list(self.shifts.strengths)}, expected numbers from 1 to 5"
            )
        if not 0.5 <= self.statistics.level < 1:
            raise InputError(f"{where}: [statistics].level: got {self.statistics.level:g}, expected 0.5 to below 1")
        check_limits(self, where)
        for key in ("draws", "permutations"):
            if getattr(self.statistics, key) < 100:
                raise InputError(f"{where}: [statistics].{key}: got {getattr(self.statistics, key)}, expected >= 100")

    @property
    def base(self) -> str:
        """The group that the ladder starts from."""
        return self.features.base or self.groups[0].name

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; `from_dict` takes them."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self) | {"folder": str(self.folder)}))
        return found

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> StudyConfig:
        """Make settings of what `to_dict` returned."""
        return cls(
            name=plain["name"],
            folder=Path(plain["folder"]),
            seed=plain["seed"],
            members=plain["members"],
            downstream={name: tuple(classes) for name, classes in plain["downstream"].items()},
            groups=tuple(
                read_section(GroupSettings, {key: value for key, value in group.items() if value is not None}, "group")
                for group in plain["groups"]
            ),
            **{
                key: read_section(kind, {k: v for k, v in plain[key].items() if v is not None}, key)
                for key, kind in _SECTIONS.items()
            },
        )


@dataclass(frozen=True)
class _Study:
    name: str | None = None
    folder: str | None = None
    seed: int = 0
    members: int = 5


_SECTIONS: dict[str, Any] = {
    "data": DataSettings,
    "shifts": ShiftSettings,
    "representation": RepresentationSettings,
    "predictions": PredictionSettings,
    "features": FeatureSettings,
    "statistics": StatisticsSettings,
}


def example() -> str:
    """Return a commented example of settings, those of `examples/digits.toml`."""
    return files("streamcca.multiplicity.study").joinpath("digits.toml").read_text(encoding="utf-8")


def _parsed(text: str, where: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            raise ImportError("studies on Python 3.10 need tomli; install streamcca[study]") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where}: it is not TOML ({error}); mend that line") from None


def _groups(tables: Any, defaults: Any, members: int, where: str) -> tuple[GroupSettings, ...]:
    if not isinstance(tables, list) or not tables:
        raise InputError(f"{where}: there is no [[group]], expected at least one group of models")
    if not isinstance(defaults, Mapping):
        raise InputError(f"{where}: [training]: got {defaults!r}, expected a table")
    groups = tuple(_group(table, defaults, members, f"{where}: [[group]] {i + 1}") for i, table in enumerate(tables))
    names = [group.name for group in groups]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: two groups are called {name!r}; give each a name of its own")
    return groups


def _group(table: Any, defaults: Mapping[str, Any], members: int, where: str) -> GroupSettings:
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise InputError(f'{where}: it has no name, expected name = "..."')
    name = table["name"]
    if not _GROUP_NAME.fullmatch(name):
        raise InputError(
            f"{where}: name {name!r}: expected letters, digits, spaces and ._+- (it becomes part of file names)"
        )
    where = f"{where} ({name})"
    sources = [key for key in ("factory", "huggingface", "timm", "stored") if key in table]
    if len(sources) > 1:
        raise InputError(f"{where}: got {' and '.join(sources)}, expected one source of models")
    method = {key: value for key, value in table.items() if key not in _GROUP_KEYS}
    if sources and method:
        raise InputError(
            f"{where}: {', '.join(method)} belong to models that are trained here; {sources[0]} brings its own"
        )
    told = table.get("training")
    if told is not None and (not sources or not isinstance(told, Mapping)):
        raise InputError(
            f"{where}.training: got {told!r}, expected a table, of models that come from elsewhere; settings of models "
            "that are trained here stand in the group itself"
        )
    given = {key: table[key] for key in _SOURCE_KEYS if key in table}
    count = _count_of(given, table.get("members", members), where)
    layers = table.get("layers")
    if layers is not None and (not isinstance(layers, list) or not all(isinstance(one, str) for one in layers)):
        raise InputError(f"{where}.layers: got {layers!r}, expected a list of names")
    return GroupSettings(
        name,
        count,
        sources[0] if sources else "trained",
        dict(told or {}) if sources else {**defaults, **method},
        given,
        None if layers is None else tuple(layers),
        table.get("features"),
        _other_data(table.get("data", {}), f"{where}.data"),
        str(table.get("trained_on", "")),
    )


def _other_data(table: Any, where: str) -> dict[str, Any]:
    """Check what data a group is trained on instead of the study's."""
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: got {table!r}, expected a table such as {{ shift = 'rotation:2' }}")
    known = [one.name for one in fields(DataSettings)]
    for key in table:
        if key != "shift" and key not in known:
            raise InputError(f"{where}: {unknown_name('setting', key, [*known, 'shift'])}")
    own = {key: value for key, value in table.items() if key != "shift"}
    read_section(DataSettings, own, where)
    return own | {key: str(value) for key, value in table.items() if key == "shift"}


def _count_of(given: Mapping[str, Any], members: Any, where: str) -> int:
    """Return how many models a group has: those that are listed, or those that shall be trained."""
    for key in ("checkpoints", "huggingface", "timm", "stored"):
        listed = given.get(key)
        if listed is None:
            continue
        if not isinstance(listed, list) or not listed or not all(isinstance(one, str) for one in listed):
            raise InputError(f"{where}.{key}: got {listed!r}, expected a list of texts")
        return len(listed)
    if "factory" in given:
        raise InputError(f"{where}: factory goes with checkpoints = [...], the files of the models' weights")
    if not isinstance(members, int) or isinstance(members, bool) or members < 1:
        raise InputError(f"{where}.members: got {members!r}, expected a whole number of at least 1")
    return members


def _classes_by_name(table: Any, where: str) -> dict[str, tuple[int, ...]]:
    """Read the labels of a downstream task: names of attributes, each with the classes that have it."""
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: got {table!r}, expected a table: attribute = [classes that have it]")
    for name, classes in table.items():
        if not isinstance(classes, list) or not all(isinstance(one, int) and one >= 0 for one in classes):
            raise InputError(f"{where}.{name}: got {classes!r}, expected a list of class numbers")
    return {str(name): tuple(classes) for name, classes in table.items()}
