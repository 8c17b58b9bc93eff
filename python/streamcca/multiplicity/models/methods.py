"""How a model is trained: all that decides its weights, a key for it, and how far two such ways are apart."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from streamcca.errors import InputError
from streamcca.views import check_option, unknown_name

Architecture = Literal["mlp", "convnet", "resnet", "vit"]
Augmentation = Literal["none", "translate", "rotate", "noise", "flip", "cutout", "strong"]
Optimizer = Literal["adamw", "adam", "sgd"]
Framework = Literal["supervised", "contrastive"]
Source = Literal["initialization", "order", "dropout", "augmentation", "subset", "label noise"]
Rung = Literal["reinit", "hyper-parameter", "architecture", "framework", "data set"]

SOURCES: tuple[Source, ...] = get_args(Source)
LADDER: tuple[Rung, ...] = get_args(Rung)

# Counts up with any change of nets or training that changes weights, so that older files are trained anew.
RECIPE = 1
# What makes a net another one; `name` and `varies` say how members of a group differ, not how one is trained.
_ARCHITECTURE = ("architecture", "width", "depth")
_NO_SETTING = ("name", "varies")


@dataclass(frozen=True)
class Method:
    """A training method: its members differ by the random sources in `varies`, and by nothing else.

    Attributes
    ----------
    name : str
        What the group is called.
    architecture : 'mlp', 'convnet', 'resnet' or 'vit'
        See `streamcca.multiplicity.models.nets.make_net`, also for `width`, `depth` and `dropout`.
    width, depth : int
        Channels of the first stage, and number of stages.
    dropout : float
        Probability of dropping an activation, in [0, 1).
    weight_decay : float
        Decoupled for 'adamw', an L2 penalty for the others; of all parameters.
    optimizer : 'adamw', 'adam' or 'sgd'
        PyTorch's, with their default moments; 'sgd' with Nesterov momentum 0.9.
    learning_rate : float
        Its peak: it rises linearly over the first twentieth of all steps and falls to zero as a cosine.
    batch_size, epochs : int
        An epoch is cut into batches of this size or one less, as evenly as possible, so that no batch is a stray row.
    augmentation : 'none', 'translate', 'rotate', 'noise', 'flip', 'cutout' or 'strong'
        See `streamcca.multiplicity.models.augment.augmented`.
    subset : float
        Share of the training rows that are used, in (0, 1].
    label_noise : float
        Share of the rows used whose label is replaced by another class, in [0, 1).
    framework : 'supervised' or 'contrastive'
        'contrastive' learns the features without labels and then a linear head on them; it needs an augmentation.
    varies : tuple of str
        Which random sources differ between members: any of 'initialization', 'order', 'dropout', 'augmentation',
        'subset' and 'label noise', by default all. Those not named follow the seed of the study.

    Examples
    --------
    >>> Method("data order", varies=("order",))
    Method('data order', convnet 32 x 3, varies order)
    >>> Method.from_dict({"name": "wide", "width": 64}).width
    64
    """

    name: str
    architecture: Architecture = "convnet"
    width: int = 32
    depth: int = 3
    dropout: float = 0.0
    weight_decay: float = 0.0
    optimizer: Optimizer = "adamw"
    learning_rate: float = 2e-3
    batch_size: int = 64
    epochs: int = 15
    augmentation: Augmentation = "none"
    subset: float = 1.0
    label_noise: float = 0.0
    framework: Framework = "supervised"
    varies: tuple[Source, ...] = SOURCES

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises
        ------
        InputError
        """
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError(f"method: got the name {self.name!r}, expected a text that is not empty")
        where = f"method {self.name!r}: "
        for option, known in _OPTIONS.items():
            check_option(f"{where}{option}", getattr(self, option), known)
        for count, least in (("width", 1), ("depth", 1), ("batch_size", 2), ("epochs", 1)):
            object.__setattr__(self, count, _whole(getattr(self, count), where + count, least))
        for share, (low, high, meaning) in _RANGES.items():
            object.__setattr__(self, share, _real(getattr(self, share), where + share, low, high, meaning))
        object.__setattr__(self, "varies", _checked_sources(self.varies, where))
        if self.framework == "contrastive" and self.augmentation == "none":
            raise InputError(
                f"{where}augmentation: got 'none', but framework 'contrastive' learns from two versions of each image; "
                "use 'strong'"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Method:
        """Return the method of a mapping such as `to_dict` gives; what is left out has its default.

        `varies` may also be ``"all"``.

        Raises
        ------
        InputError
            An unknown setting, no name, or a value that cannot be used.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"method: got {type(values).__name__}, expected a mapping with at least 'name'")
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise InputError(f"method {values.get('name', '')!r}: " + unknown_name("setting", key, known))
        if "name" not in values:
            raise InputError("method: it has no name; give name = '...'")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {**asdict(self), "varies": list(self.varies)}

    def settings(self) -> dict[str, Any]:
        """Return what decides the weights of a member, beside its seed and the data."""
        return {key: value for key, value in asdict(self).items() if key not in _NO_SETTING}

    def used_sources(self) -> tuple[Source, ...]:
        """Return the random sources that this method draws from at all."""
        idle = {
            "dropout": self.dropout == 0,
            "augmentation": self.augmentation == "none",
            "subset": self.subset == 1,
            "label noise": self.label_noise == 0,
        }
        return tuple(source for source in SOURCES if not idle.get(source, False))

    def source_seed(self, source: Source, seed: int, study_seed: int = 0) -> tuple[str, int]:
        """Return whose seed a source follows, and the seed: the member's if the source varies, else the study's.

        Members and study never share randomness, also where their seeds are the same number.
        """
        return ("member", int(seed)) if source in self.varies else ("study", int(study_seed))

    def key(self, fingerprint: str, seed: int, study_seed: int = 0) -> str:
        """Return a hash (32 hexadecimal digits) of everything that decides a member's weights, and of nothing else.

        Parameters
        ----------
        fingerprint : str
            Of the training rows and labels.
        seed, study_seed : int
            Of the member and of the study; each counts only if a source that is used follows it.

        Returns
        -------
        str
            Neither the name nor what varies without being used changes it. It does not cover the version of torch,
            the processor and the number of threads, which can move the last bits.

        Raises
        ------
        InputError
            A seed is no whole number of at least 0.
        """
        check_seed("seed", seed)
        check_seed("study_seed", study_seed)
        sources = {source: self.source_seed(source, seed, study_seed) for source in self.used_sources()}
        text = {"recipe": RECIPE, "settings": self.settings(), "sources": sources, "data": fingerprint}
        return hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()[:32]

    def __repr__(self) -> str:
        kind = "" if self.framework == "supervised" else f"{self.framework}, "
        varied = "everything" if self.varies == SOURCES else " and ".join(self.varies) or "nothing"
        return f"Method({self.name!r}, {kind}{self.architecture} {self.width} x {self.depth}, varies {varied})"


_OPTIONS: dict[str, tuple[str, ...]] = {
    "architecture": get_args(Architecture),
    "optimizer": get_args(Optimizer),
    "augmentation": get_args(Augmentation),
    "framework": get_args(Framework),
}
_RANGES = {
    "dropout": (0.0, 1.0, "at least 0 and below 1"),
    "label_noise": (0.0, 1.0, "at least 0 and below 1"),
    "weight_decay": (0.0, math.inf, "at least 0"),
    "learning_rate": (math.ulp(0.0), math.inf, "above 0"),
    "subset": (math.ulp(0.0), math.nextafter(1.0, 2.0), "above 0 and at most 1"),
}


def check_seed(what: str, seed: object) -> None:
    """Refuse what is no whole number of at least 0.

    Raises
    ------
    InputError
    """
    _whole(seed, what, 0)


def _whole(value: Any, what: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{what}: got {value!r}, expected a whole number of at least {least}")
    return int(value)


def _real(value: Any, what: str, low: float, below: float, meaning: str) -> float:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not low <= value < below:
        raise InputError(f"{what}: got {value!r}, expected a number {meaning}")
    return float(value) + 0.0  # no -0.0, which would be another key


def _checked_sources(varies: Any, where: str) -> tuple[Source, ...]:
    if varies == "all":
        return SOURCES
    if isinstance(varies, str) or not isinstance(varies, Sequence):
        raise InputError(f"{where}varies: got {varies!r}, expected 'all' or a list of {', '.join(map(repr, SOURCES))}")
    for source in varies:
        if source not in SOURCES:
            raise InputError(f"{where}varies: " + unknown_name("random source", source, SOURCES))
    return tuple(source for source in SOURCES if source in varies)


def derived_seed(*words: Any) -> int:
    """Return a seed below 2^63 for one purpose: a hash of what it is for.

    With a seed for each (member, source, epoch, step) no state of a generator has to be kept to go on after a kill.

    >>> derived_seed("order", 3, 0) != derived_seed("order", 3, 1)
    True
    """
    return int.from_bytes(hashlib.sha256(json.dumps(words).encode()).digest()[:8], "big") >> 1


def distance_on_ladder(a: tuple[Method | Mapping[str, Any], str], b: tuple[Method | Mapping[str, Any], str]) -> Rung:
    """Return the highest rung on which two models differ in how they were made.

    The rungs are those of Gontijo-Lopes et al. 2021 (arXiv 2110.12899): another random state only, hyper-parameters,
    architecture, framework, data set. Where the paper does not say, ours: width and depth are architecture;
    augmentation, `subset` and `label_noise` are hyper-parameters, since the data set is the same.

    Parameters
    ----------
    a, b : (Method or mapping, str)
        How each was trained, and the name (or fingerprint) of its data set. A mapping describes a model that was not
        trained here and must have 'architecture'; 'framework' is 'supervised' unless said; any other key that only
        one of the two records counts as a difference of hyper-parameters.

    Raises
    ------
    InputError
        A mapping has no 'architecture'.

    Examples
    --------
    >>> base = Method("base")
    >>> distance_on_ladder((base, "digits"), (Method("seeds", varies=("order",)), "digits"))
    'reinit'
    >>> distance_on_ladder((base, "digits"), (Method("wide", width=64, dropout=0.1), "digits"))
    'architecture'
    """
    (first, first_data), (second, second_data) = (_described(a[0]), a[1]), (_described(b[0]), b[1])
    if first_data != second_data:
        return "data set"
    missing = object()
    differing = {key for key in first | second if first.get(key, missing) != second.get(key, missing)}
    if "framework" in differing:
        return "framework"
    if differing & set(_ARCHITECTURE):
        return "architecture"
    return "hyper-parameter" if differing else "reinit"


def _described(method: Method | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(method, Method):
        return method.settings()
    if not isinstance(method, Mapping) or "architecture" not in method:
        raise InputError(
            f"method: got {method!r}, expected a Method or a mapping with 'architecture', so that its distance from "
            "other models can be told"
        )
    return {"framework": "supervised", **{key: value for key, value in method.items() if key not in _NO_SETTING}}
