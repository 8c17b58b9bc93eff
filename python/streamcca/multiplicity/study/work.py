"""What the workers of a study do for each model: train it, and keep its answers. torch comes in lazily."""

from __future__ import annotations

import functools
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from streamcca.errors import InputError, ProcessError
from streamcca.multiplicity.images.data_sets import DataSet, ImageSet, load_data
from streamcca.multiplicity.images.shifts import shifted
from streamcca.multiplicity.study.config import StudyConfig
from streamcca.multiplicity.study.members import (
    answers_of,
    captured_folder,
    file_name,
    member_seed,
    method_of,
    models_of,
    weights_file,
)
from streamcca.multiplicity.study.workers import asked_to_stop
from streamcca.store import remove_unfinished, write_atomically

SETTINGS = "settings.json"


@functools.lru_cache(maxsize=1)
def _settings(folder: Path, _: int) -> StudyConfig:
    return StudyConfig.from_dict(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))


def settings_of(folder: Path) -> StudyConfig:
    """Return the settings that the study's folder holds."""
    return _settings(folder, (folder / SETTINGS).stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _data(text: str) -> DataSet:
    return load_data(**json.loads(text))


def data_of(config: StudyConfig, overrides: dict[str, Any] | None = None) -> DataSet:
    """Return the images and labels of a study, read once in a process."""
    return _data(json.dumps({**asdict(config.data), **(overrides or {})}))


def set_names(config: StudyConfig) -> list[str]:
    """Return the test sets: "iid", and KIND-STRENGTH of every shift."""
    return ["iid", *(f"{kind}-{strength}" for kind in config.shifts.kinds for strength in config.shifts.strengths)]


def shifted_file(folder: Path, name: str) -> Path:
    """Return where the images of a shifted test set lie."""
    return folder / "data" / f"{name}.npy"


def write_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write a .npy file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path.parent, path.name)
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_atomically(path, content.getvalue())


def make_shift(folder: Path, kind: str, strength: int, seed: int) -> dict[str, Any]:
    """Write one shifted version of the test set; returns by how much pixels moved."""
    images = data_of(settings_of(folder)).test.images
    moved = shifted(images, kind, strength, seed=seed)
    write_array(shifted_file(folder, f"{kind}-{strength}"), moved)
    return {"root_mean_square": float(np.sqrt(np.mean((moved.astype(np.float64) - images) ** 2)))}


def training_data(config: StudyConfig, group: Any) -> ImageSet:
    """Return what the models of a group are trained on: the study's training images, shifted, or those of another set.

    Raises
    ------
    InputError
        Images or classes are others than those of the study.
    """
    own = data_of(config)
    overrides = {key: value for key, value in group.data.items() if key != "shift"}
    if overrides.get("source", config.data.source) != config.data.source:  # how to cut the study's is not its matter
        overrides = {"test_share": None, "test_count": None, "layout": None} | overrides
    found = data_of(config, overrides) if overrides else own
    if found.train.images.shape[1:] != own.train.images.shape[1:] or len(found.classes) != len(own.classes):
        raise InputError(
            f"group {group.name!r}: its data has images {found.train.images.shape[1:]} in {len(found.classes)} "
            f"classes, expected {own.train.images.shape[1:]} in {len(own.classes)} as the study"
        )
    if "shift" not in group.data:
        return found.train
    kind, _, strength = str(group.data["shift"]).partition(":")
    if not strength.isdigit():
        raise InputError(f"group {group.name!r}: data.shift: got {group.data['shift']!r}, expected 'KIND:STRENGTH'")
    # Another draw of the shift than the test set's.
    moved = shifted(found.train.images, kind, int(strength), seed=config.shifts.seed + 1)
    return ImageSet(moved, found.train.labels)


def train_member(folder: Path, group: str, member: int) -> dict[str, Any]:
    """Train one model, or go on with it."""
    from streamcca.multiplicity.models.training import train

    config = settings_of(folder)
    own = next(one for one in config.groups if one.name == group)
    rows = training_data(config, own)
    path = weights_file(folder, f"{group} {member}")
    path.parent.mkdir(parents=True, exist_ok=True)
    trained = train(
        method_of(own),
        member_seed(config, group, member),
        rows.images,
        rows.labels,
        path,
        classes=len(data_of(config).classes),
        study_seed=config.seed,
        progress=False,
        should_stop=asked_to_stop,
    )
    if trained is None:
        raise ProcessError(f"{group} {member}: stopped; start the study again, and it goes on there")
    return {"key": trained.key, "train_accuracy": trained.train_accuracy, "loss": trained.loss}


def capture_member(folder: Path, name: str) -> dict[str, Any]:
    """Ask one model all test sets, and keep logits, features and the scores of its layers on the probe set."""
    from streamcca.multiplicity.answers.logit_files import save_logits
    from streamcca.multiplicity.models.capture import Batches, capture
    from streamcca.scores import subspace_scores

    config = settings_of(folder)
    data = data_of(config)
    classes = len(data.classes)
    model = next(one for one in models_of(config, classes) if one.name == name)
    files = answers_of(folder, model)
    if model.stored is not None:
        return _stored_answers(config, data, files)
    how = config.representation
    net = model.load()
    captured_folder(folder, name).mkdir(parents=True, exist_ok=True)
    logits = {}
    for half, images in (("train", data.train.images), ("test", data.test.images)):
        found = capture(
            net, images, how.batch_size, features=model.features, classes=classes, rows=how.rows, progress=False
        )
        logits[half] = found.logits
        write_array(files[half], np.asarray(found.features))
    answers = {"iid": logits["test"]}
    for one in set_names(config)[1:]:
        images = np.load(shifted_file(folder, one), mmap_mode="r")
        answers[one] = capture(net, images, how.batch_size, features=None, classes=classes, progress=False).logits
    save_logits(files["logits"], answers, about={"model": name})
    probe = data.test if how.probe == "test" else data.train
    scores = subspace_scores(
        net,
        Batches(probe.images, how.batch_size),
        model.layers,
        name=name,
        variance=how.variance,
        nuclear=how.nuclear,
        rank=how.rank,
        ridge=how.ridge,
        rows=how.rows,
        precision="float64",  # float32 leaves the rank of one in thousands of pairs to rounding, which is refused
        threads=1,
        progress=False,
    )
    scores.save(files["scores"])
    return {
        "train_accuracy": float(np.mean(np.argmax(logits["train"], axis=1) == data.train.labels)),
        "ranks": list(scores.ranks.values()),
        "parameters": int(sum(p.numel() for p in net.parameters())),
    }


def _stored_answers(config: StudyConfig, data: DataSet, files: dict[str, Path]) -> dict[str, Any]:
    """Check answers that were stored before against the study's test sets."""
    from streamcca.multiplicity.answers.logit_files import saved_sets
    from streamcca.scores import SubspaceScores

    sets = saved_sets(files["logits"])
    shape = (len(data.test.labels), len(data.classes))
    for name in set_names(config):
        if sets.get(name) != shape:
            raise InputError(
                f"{files['logits']}: got {sets.get(name, 'no logits')} for test set {name!r}, expected {shape}; store "
                "answers to the same test sets, or leave the set out"
            )
    for half, labels in (("train", data.train.labels), ("test", data.test.labels)):
        if files[half].is_file() and len(np.load(files[half], mmap_mode="r")) != len(labels):
            raise InputError(
                f"{files[half]}: got features of {len(np.load(files[half], mmap_mode='r'))} images, expected "
                f"{len(labels)}, those of the study's data; take the file away, or store others"
            )
    return {"train_accuracy": None, "ranks": list(SubspaceScores.load(files["scores"]).ranks.values()), "parameters": 0}


__all__ = [
    "capture_member",
    "data_of",
    "file_name",
    "make_shift",
    "set_names",
    "settings_of",
    "shifted_file",
    "train_member",
    "training_data",
    "write_array",
]
