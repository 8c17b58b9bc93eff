"""A whole study: models trained, asked, compared, reported; what has been done is not done again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from streamcca._backend import VERSION
from streamcca.errors import ProcessError
from streamcca.multiplicity.models.sources import StudyModel
from streamcca.multiplicity.study.analysis import check_downstream, groups_of
from streamcca.multiplicity.study.assemble import assemble
from streamcca.multiplicity.study.config import StudyConfig
from streamcca.multiplicity.study.members import (
    answers_of,
    identity_of,
    member_seed,
    method_of,
    models_of,
    weights_file,
)
from streamcca.multiplicity.study.rungs import chosen_pairs, ladder_pairs
from streamcca.multiplicity.study.tables import text_of, write_tables
from streamcca.multiplicity.study.tasks import Task, run_tasks
from streamcca.multiplicity.study.work import SETTINGS, data_of, set_names, shifted_file, training_data
from streamcca.multiplicity.study.workers import Workers
from streamcca.store import write_atomically

_WORK, _ANALYSIS = "streamcca.multiplicity.study.work", "streamcca.multiplicity.study.analysis"
Receipts = dict[str, dict[str, Any]]


@dataclass(frozen=True, eq=False, repr=False)
class Study:
    """A finished study.

    Attributes
    ----------
    folder : Path
        With report.html, results.json, and tables as .csv; models and their answers, too.
    results : dict
        What results.json holds.
    """

    folder: Path
    results: dict[str, Any] = field(repr=False)

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return self.results

    def table(self) -> str:
        """Return groups and findings as text."""
        return text_of(self.results, self.report)

    def __repr__(self) -> str:
        return f"Study({len(self.results['models'])} models in {len(self.results['groups'])} groups, {self.report})"


def run_study(
    config: StudyConfig | str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    progress: Any = "auto",
) -> Study:
    """Carry out a study, or go on with it.

    Trains what is not trained yet, asks every model all test sets, measures representational and predictive
    multiplicity, what one tells about the other, and what differently trained models know, and writes report.html,
    results.json and tables. Every step is kept in the folder when it is done; a study that was interrupted or killed
    goes on there, and ends with the same numbers.

    Parameters
    ----------
    config : StudyConfig or path
        Settings, or a TOML file of them; ``streamcca study --example`` prints a commented one.
    folder : path, optional
        Where everything goes; it goes before what the file says.
    jobs : int
        Worker processes, each with one thread. They change no bit. A script that calls this needs
        ``if __name__ == "__main__":``, since workers import it.
    progress : 'auto', True or False

    Returns
    -------
    Study

    Raises
    ------
    InputError, MissingFileError
        Settings that do not fit, before anything is trained.
    ProcessError
        A worker was killed, or another study runs in the folder.
    """
    if not isinstance(config, StudyConfig):
        config = StudyConfig.load(config, folder)
    elif folder is not None:
        config = StudyConfig.from_dict({**config.to_dict(), "folder": str(folder)})
    data = data_of(config)
    models = models_of(config, len(data.classes))
    check_downstream(config, len(data.classes))
    config.folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(config.folder), Workers(jobs) as workers:
        _write_settings(config)
        run = _Run(config, models, data.fingerprint, workers, progress)
        receipts = run.answers()
        receipts |= run.analysis(receipts)
        results = assemble(config, data, models, receipts) | {"version": VERSION}
        _write_results(config.folder, results)
    return Study(config.folder, results)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Refuse a second study in the same folder; the lock goes with the process, however it ends."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ProcessError(
                f"study: another one runs in {folder}; wait for it, or choose another folder (--folder)"
            ) from None
        yield


def _write_settings(config: StudyConfig) -> None:
    content = json.dumps(config.to_dict(), indent=1).encode()
    path = config.folder / SETTINGS
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def _write_results(folder: Path, results: dict[str, Any]) -> None:
    from streamcca.multiplicity.study.report import report_html

    content = json.dumps(results, indent=1, allow_nan=False).encode()
    path, page = folder / "results.json", folder / "report.html"
    if path.is_file() and page.is_file() and path.read_bytes() == content:
        return
    write_tables(results, folder)
    write_atomically(page, report_html(results).encode())
    write_atomically(path, content)


@dataclass
class _Run:
    """The tasks of one study, in the order in which they rest on each other."""

    config: StudyConfig
    models: list[StudyModel]
    fingerprint: str
    workers: Workers
    progress: Any

    def _do(self, tasks: Sequence[Task], description: str) -> Receipts:
        return run_tasks(tasks, self.config.folder, self.workers, description, self.progress)

    # ------------------------------------------------------------------ models and their answers

    def answers(self) -> Receipts:
        """Make test sets, train models, ask them."""
        first = self._do([*self._shift_tasks(), *self._training_tasks()], "test sets and training")
        return first | self._do(self._capture_tasks(first), "answers of the models")

    def _shift_tasks(self) -> list[Task]:
        shifts = self.config.shifts
        return [
            Task(
                f"shift/{kind}-{strength}",
                f"{_WORK}:make_shift",
                {"kind": kind, "strength": strength, "seed": shifts.seed},
                self.fingerprint,
                (shifted_file(self.config.folder, f"{kind}-{strength}"),),
            )
            for kind in shifts.kinds
            for strength in shifts.strengths
        ]

    def _training_tasks(self) -> list[Task]:
        from streamcca.multiplicity.models.training import fingerprint_of

        tasks = []
        for group in self.config.groups:
            if group.source != "trained":
                continue
            method, rows = method_of(group), training_data(self.config, group)
            data = fingerprint_of(rows.images, rows.labels)
            for member in range(group.members):
                name = f"{group.name} {member}"
                key = method.key(data, member_seed(self.config, group.name, member), self.config.seed)
                path = weights_file(self.config.folder, name)
                arguments = {"group": group.name, "member": member}
                tasks.append(Task(f"train/{name}", f"{_WORK}:train_member", arguments, key, (path,)))
        return tasks

    def _capture_tasks(self, receipts: Receipts) -> list[Task]:
        how = {key: value for key, value in asdict(self.config.representation).items() if key != "measure"}
        tasks = []
        for model in self.models:
            trained = receipts.get(f"train/{model.name}")
            identity = trained["answer"]["key"] if trained else identity_of(model)
            rests_on = [identity, self.fingerprint, how, model.layers, model.features, asdict(self.config.shifts)]
            files = tuple(answers_of(self.config.folder, model).values()) if model.stored is None else ()
            tasks.append(
                Task(f"answers of/{model.name}", f"{_WORK}:capture_member", {"name": model.name}, rests_on, files)
            )
        return tasks

    # ------------------------------------------------------------------ analysis

    def analysis(self, receipts: Receipts) -> Receipts:
        """Measure everything."""
        answered = [receipts[f"answers of/{model.name}"]["key"] for model in self.models]
        self._rests_on = [answered, asdict(self.config.statistics), [(m.name, m.group) for m in self.models]]
        sets = [self._task(f"answers/{name}", "answers", {"set_name": name}) for name in set_names(self.config)]
        inner = self._task("insides", "insides", {}, self.config.representation.measure)
        found = self._do([inner, self._task("calibration", "calibration", {}), *sets], "multiplicity")
        temperatures = {name: one["temperature"] for name, one in found["calibration"]["answer"].items()}
        accuracies = dict(
            zip((model.name for model in self.models), found["answers/iid"]["answer"]["accuracies"], strict=True)
        )
        return found | self._do(self._later_tasks(temperatures, accuracies), "pairs and features")

    def _task(self, name: str, function: str, arguments: dict[str, Any], more: Any = None) -> Task:
        return Task(name, f"{_ANALYSIS}:{function}", arguments, [self._rests_on, more])

    def _later_tasks(self, temperatures: dict[str, float], accuracies: dict[str, float]) -> list[Task]:
        config, features = self.config, self.config.features
        warm = {"temperatures": temperatures}
        ladder = ladder_pairs(config, self.models, accuracies)
        rungs = {rung: [[a, b] for a, b in pairs] for rung, pairs in ladder.pairs.items()}
        tasks = [self._task("ensembles", "ensembles", warm, config.predictions.ensemble)]
        shown = list(dict.fromkeys([*list(rungs)[:1], *list(rungs)[-1:]]))
        if rungs:
            tasks.append(self._task("confidences", "confidences", {**warm, "rungs": rungs, "shown": shown}))
        for start in _starts(config, self.models, accuracies):
            how = [config.predictions.ensemble, features.ensemble_size]
            tasks.append(self._task(f"greedy/{start}", "greedy", {**warm, "start": start}, how))
        rows = [count for count in (50, 100, 200, 400, 800, 1600, 3200) if count <= self._rows_of_curves()]
        about = [config.predictions.measure, config.representation.measure]
        if any(len(names) > 1 for names in groups_of(self.models).values()):
            tasks.append(self._task("foretelling", "foretelling", {"rows": rows}, about))
        shifted = set_names(config)[1:]
        for name, sets in (("iid", ["iid"]), *([("ood", shifted)] if shifted else [])):
            tasks.append(self._task(f"association/{name}", "associated", {"sets": sets}, about))
        if ladder.target is not None:
            known = {model.name for model in self.models if self._has_features(model)}
            probed = {rung: [p for p in pairs if known.issuperset(p)] for rung, pairs in ladder.pairs.items()}
            for pairs in chosen_pairs(probed, features.pairs).values():
                tasks += [task for a, b in pairs for task in self._pair_tasks(a, b, ladder.target)]
        return tasks

    def _pair_tasks(self, a: str, b: str, target: float) -> list[Task]:
        features, name, pair = self.config.features, f"{a} + {b}", {"base": a, "other": b}
        tasks = [
            self._task(f"mixed/{name}", "mixed", pair, [features.shares, features.draws]),
            self._task(f"curve/{name}", "curve", {**pair, "target": target}, [features.order, features.step]),
        ]
        if self.config.downstream:
            tasks.append(self._task(f"stacked/{name}", "stacked", pair, self.config.downstream))
        return tasks

    def _has_features(self, model: StudyModel) -> bool:
        files = answers_of(self.config.folder, model)
        return files["train"].is_file() and files["test"].is_file()

    def _rows_of_curves(self) -> int:
        """Return of how many rows both RM and PM can be measured on fewer; under a ridge RM cannot."""
        data = data_of(self.config)
        if self.config.representation.ridge:
            return 0
        own = data.test if self.config.representation.probe == "test" else data.train
        return min(len(own.labels), len(data.test.labels))


def _starts(config: StudyConfig, models: list[StudyModel], accuracies: dict[str, float]) -> list[str]:
    """Return where greedy ensembles start: the best model of all, and the first of the base group."""
    best = max((model.name for model in models), key=lambda name: accuracies[name])
    return list(dict.fromkeys([best, *[model.name for model in models if model.group == config.base][:1]]))
