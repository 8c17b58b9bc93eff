"""The models of a study: their names, where they come from, how they were trained, where their files lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamcca.errors import InputError
from streamcca.multiplicity.models.methods import Method, derived_seed
from streamcca.multiplicity.models.sources import Factory, StoredAnswers, StudyModel, TrainedFile, models_from
from streamcca.multiplicity.study.config import GroupSettings, StudyConfig

CHUNK = 1 << 20


def models_of(config: StudyConfig, classes: int) -> list[StudyModel]:
    """Return all models of a study, group after group.

    Raises
    ------
    InputError, MissingFileError
        A method that cannot be trained; files that are missing; layers that do not go with those of other groups.
    """
    models = [model for group in config.groups for model in _models_of_group(config, group, classes)]
    if len(models) < 2:
        raise InputError(f"models: got {len(models)}, expected at least 2, since pairs are compared")
    owners: dict[str, str] = {}
    for model in models:
        other = owners.setdefault(file_name(model.name), model.name)
        if other != model.name:
            raise InputError(
                f"models {other!r} and {model.name!r} would share the files {file_name(model.name)}; give their groups "
                "other names"
            )
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two models are called {name!r}; give their groups other names")
    counts = {model.group: len(model.layers) for model in models}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{group}: {count}" for group, count in counts.items())
        raise InputError(
            f"layers: got {told}, expected as many in every group, since layers are compared by their place; give "
            "layers = [...], or the same depth"
        )
    return models


def method_of(group: GroupSettings) -> Method:
    """Return how the models of a group are trained.

    Raises
    ------
    InputError
    """
    return Method.from_dict({**group.method, "name": group.name})


def member_seed(config: StudyConfig, group: str, member: int) -> int:
    """Return the seed of one member; no two models of a study share theirs."""
    return derived_seed("member", config.seed, group, member) % 2**31


def file_name(name: str) -> str:
    """Return what a model's files are called."""
    return name.replace(" ", "-")


def captured_folder(folder: Path, name: str) -> Path:
    """Return where the answers of a model lie."""
    return folder / "captured" / file_name(name)


def weights_file(folder: Path, name: str) -> Path:
    """Return where the weights of a model that is trained here lie."""
    return folder / "models" / f"{file_name(name)}.safetensors"


def answers_of(folder: Path, model: StudyModel) -> dict[str, Path]:
    """Return the files of a model's answers: logits, scores, and the features of both halves of the data."""
    stored = model.stored
    where = Path(stored.logits).parent if stored is not None and stored.logits else captured_folder(folder, model.name)
    return {
        "logits": where / "logits.safetensors",
        "scores": where / "scores.safetensors",
        "train": where / "features-train.npy",
        "test": where / "features-test.npy",
    }


def _models_of_group(config: StudyConfig, group: GroupSettings, classes: int) -> list[StudyModel]:
    if group.source == "trained":
        return _trained(config, group)
    about = {"architecture": group.name, **group.method}
    trained_on = group.trained_on or config.data.source
    layers, features = _layers_of(group)
    if group.source == "stored":
        return [
            StudyModel(f"{group.name} {i}", group.name, about, trained_on, layers, _stored(Path(path)), features)
            for i, path in enumerate(group.given["stored"])
        ]
    if group.source == "factory":
        found = models_from(
            group.given["factory"],
            group=group.name,
            data_set=trained_on,
            layers=layers,
            features=features,
            checkpoints=group.given["checkpoints"],
            method=about,
            arguments=group.given.get("arguments"),
            folder=".",
        )
    else:
        found = tuple(
            model
            for name in group.given[group.source]
            for model in models_from(
                f"{group.source}:{name}",
                group=group.name,
                data_set=trained_on,
                layers=layers,
                features=features,
                checkpoints=group.given.get("checkpoints", ()),
                method=about,
                classes=classes,
            )
        )
    return [
        StudyModel(f"{group.name} {i}", group.name, one.method, one.data_set, one.layers, one.source, one.features)
        for i, one in enumerate(found)
    ]


def _trained(config: StudyConfig, group: GroupSettings) -> list[StudyModel]:
    method = method_of(group)
    layers = group.layers or (*(f"stage{i}" for i in range(1, method.depth + 1)), "features")
    data_set = training_set_name(config, group)
    return [
        StudyModel(
            f"{group.name} {i}",
            group.name,
            method,
            data_set,
            layers,
            TrainedFile(str(weights_file(config.folder, f"{group.name} {i}"))),
            group.features or "features",
        )
        for i in range(group.members)
    ]


def training_set_name(config: StudyConfig, group: GroupSettings) -> str:
    """Return what the training data of a group is called: models of other data are on the last rung of the ladder."""
    source = group.data.get("source", config.data.source)
    changes = [
        str(value) if key == "shift" else f"{key} {value}"
        for key, value in sorted(group.data.items())
        if key != "source" and value != getattr(config.data, key, None)
    ]
    return ", ".join([str(source), *changes])


def _layers_of(group: GroupSettings) -> tuple[tuple[str, ...], str]:
    if not group.layers:
        raise InputError(
            f"group {group.name!r}: it has no layers, expected layers = [...] of models that are not trained here"
        )
    return group.layers, group.features or group.layers[-1]


def _stored(folder: Path) -> StoredAnswers:
    source = StoredAnswers(str(folder / "logits.safetensors"), {"probe": str(folder / "scores.safetensors")})
    source.check()
    return source


def identity_of(model: StudyModel) -> Any:
    """Return plain values that change when a model that was not trained here does: hashes of its files."""
    plain = model.to_dict()["source"]
    files = _paths(plain)
    if isinstance(model.source, Factory):
        module = Path(model.source.folder or ".", *model.source.function.partition(":")[0].split("."))
        files |= {
            str(path): str(path) for path in (module.with_suffix(".py"), module / "__init__.py") if path.is_file()
        }
    if model.stored is not None:  # stored beside the logits, or not at all
        features = {half: answers_of(Path(), model)[half] for half in ("train", "test")}
        files |= {f"features {half}": str(path) for half, path in features.items() if path.is_file()}
    return {"source": plain, "files": {key: _hash(Path(value)) for key, value in files.items()}}


def _paths(plain: Mapping[str, Any]) -> dict[str, str]:
    """Return the files that a source names; of a folder of Hugging Face all of its weights."""
    found: dict[str, str] = {}
    for key, value in plain.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{name}": path for name, path in _paths(value).items()}
        elif isinstance(value, str) and Path(value).is_file():
            found[key] = value
        elif isinstance(value, str) and key == "name" and Path(value).is_dir():
            found |= {str(path): str(path) for path in sorted(Path(value).iterdir()) if path.is_file()}
    return found


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
