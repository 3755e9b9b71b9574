"""The keys of a training file, and the values that each of them takes.

An unknown key or a value out of range is refused with a message that names the key and the values allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from nequip_md.errors import NequIPMDError
from nequip_md.files import FileKind, refuse_other
from nequip_md.model.config import AllegroConfig, NequIPConfig, PotentialConfig, preset
from nequip_md.public_models import is_public_name
from nequip_md.training.data.units import ENERGY, FORCE, LENGTH, SIGN, STRESS
from nequip_md.training.step_config import (
    ConstantSchedule,
    CosineSchedule,
    LossConfig,
    Names,
    OptimizerConfig,
    PlateauSchedule,
    Schedule,
    Section,
    StopConfig,
    as_list,
)

AUTO_VALUES = {
    "avg_num_neighbors": ("auto", "auto_by_type"),
    "energy_scales": ("auto", "force_rms", "force_rms_by_type"),
    "energy_shifts": ("auto", "isolated_atoms", "least_squares"),
}
"""For some keys of the model section, values that are computed from the training data; the first is the default."""

__all__ = [
    "ConstantSchedule",
    "CosineSchedule",
    "DataConfig",
    "LossConfig",
    "OptimizerConfig",
    "PlateauSchedule",
    "StopConfig",
    "TrainingConfig",
    "check_config",
    "load_config",
]

_KINDS = {"allegro": AllegroConfig, "nequip": NequIPConfig}


Files = Annotated[list[str], BeforeValidator(as_list)]
"""One path or several; relative paths start at the folder of the training file."""


def _one_of(names: Iterable[str]) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"is one of {', '.join(names)}, not {value!r}")
        return value

    return AfterValidator(check)


class DataConfig(Section):
    """Labelled structures, in the formats of :mod:`nequip_md.training.data.readers` or as stores of finished graphs."""

    train: Files
    validation: Files | None = None
    validation_split: PositiveFloat | None = None
    """Without ``validation``: part of the training frames to hold out, a fraction below 1 or a number of frames."""
    test: Files | None = None
    test_split: PositiveFloat | None = None
    split_seed: int = Field(0, ge=0)
    isolated_atoms: Files | None = None
    """Frames of one atom each, with the energy of the isolated atom; frames with ``config_type=IsolatedAtom`` in other
    files are added to them."""
    energy_key: Names | None = None
    force_key: Names | None = None
    stress_key: Names | None = None
    """Names of labels in ``Atoms.info``, ``Atoms.arrays`` or ASE's results; None means ASE's own results."""
    virial_key: Names | None = None
    """Names of the virial, positive under compression; the stress of a frame that has one is computed from it."""
    weight_key: str | None = "config_weight"
    """Name in ``Atoms.info`` of a frame's weight in the loss; None means that all frames weigh the same."""
    energy_unit: Annotated[str, _one_of(ENERGY)] | None = None
    """Unit of energies and virials in files that do not state their units; None means eV."""
    length_unit: Annotated[str, _one_of(LENGTH)] | None = None
    """Unit of positions and cells in such files; None means angstrom."""
    force_unit: Annotated[str, _one_of(FORCE)] | None = None
    """Unit of forces in such files; None means ``energy_unit/length_unit``."""
    stress_unit: Annotated[str, _one_of(STRESS)] | None = None
    """Unit of stresses in such files; None means eV/angstrom^3."""
    stress_sign: Annotated[str, _one_of(SIGN)] | None = None
    """Meaning of a positive stress in such files: ``tension`` (as in ASE, the default) or ``compression`` (as in VASP)."""
    workers: int | None = Field(None, ge=0)
    """Processes that read batches; None means none for data in memory, some for a store."""
    batch_size: PositiveInt = 8
    """Frames in one training step of each process. The default is no limit if ``max_atoms`` or ``max_edges`` is given."""
    max_atoms: PositiveInt | None = None
    max_edges: PositiveInt | None = None
    """Largest numbers of atoms and of edges in one training step of each process; a larger frame is a step by itself."""
    passes_per_epoch: PositiveInt = 1
    """How often one epoch goes over the training frames. Validation, saving and the schedule follow each epoch; for few frames
    they take as long as the steps, and more passes save time."""
    evaluation_batch_size: PositiveInt | None = None
    """Frames in one validation or test batch; None means ``batch_size``."""
    keep_on_device: Literal["auto", True, False] = "auto"
    """Keep the graphs on the training device; auto: when they take less than a quarter of its free memory."""

    @property
    def frames_in_batch(self) -> int | None:
        """Largest number of frames in one training step of each process; None means no limit."""
        by_size = self.max_atoms is not None or self.max_edges is not None
        return None if by_size and "batch_size" not in self.model_fields_set else self.batch_size

    @field_validator("train", "validation", "test", "isolated_atoms")
    @classmethod
    def _not_empty(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and not value:
            raise ValueError("names no file")
        return value

    @field_validator("energy_key", "force_key", "stress_key", "virial_key")
    @classmethod
    def _some_name(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and (not value or "" in value):
            raise ValueError("names no label")
        return value

    @field_validator("stress_key")
    @classmethod
    def _no_virial(cls, value: list[str] | None) -> list[str] | None:
        for name in value or []:
            if "virial" in name.lower() and "stress" not in name.lower():
                raise ValueError(f"{name!r} seems to be a virial (eV), which is no stress (eV/Å³); give virial_key")
        return value

    @field_validator("validation_split", "test_split")
    @classmethod
    def _fraction_or_count(cls, value: float | None) -> float | None:
        if value is not None and value >= 1 and value != int(value):
            raise ValueError(f"is a fraction below 1 or a whole number of frames, not {value}")
        return value

    @model_validator(mode="after")
    def _one_source(self):
        if (self.validation is None) == (self.validation_split is None):
            raise ValueError(
                "give exactly one of validation (files) and validation_split (part of the training frames)"
            )
        if self.test is not None and self.test_split is not None:
            raise ValueError("give at most one of test (files) and test_split (part of the training frames)")
        return self


def _yes_or_no(value: Any) -> Any:
    """The words for what YAML makes of an unquoted yes or no."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


class TrainingConfig(Section):
    """A training file."""

    model: dict[str, Any]
    """``preset`` or ``kind``, and the options of that model, of which those in :data:`AUTO_VALUES` can be computed from the data;
    or ``checkpoint``, see :mod:`nequip_md.training.fine_tuning`."""
    data: DataConfig
    output: str = "run"
    """Folder of checkpoints and logs; a relative path starts at the current folder."""
    seed: int = Field(0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: Annotated[Literal["auto", "yes", "no"], BeforeValidator(_yes_or_no)] = "auto"
    """Whether a step runs as compiled code; auto: if the run may take 2,000 steps or more, or an earlier run has compiled it."""
    precision: Literal["fp32", "tf32", "fp64"] | None = None
    """Precision of the model in training: fp32 and fp64 set the model's ``dtype``; tf32 is fp32 with matrix products in TF32 on a GPU,
    in steps and validation, while the final errors are those of fp32. None leaves the ``dtype`` of the model section."""
    deterministic: bool = False
    """Take deterministic algorithms only, so that a run of the same file gives the same digits; steps are eager unless ``compile``
    is ``yes``."""
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Schedule = PlateauSchedule()
    stop: StopConfig = StopConfig()
    loggers: list[Literal["csv", "tensorboard", "wandb", "mlflow"]] | None = None
    """Loggers of the metrics of each epoch; every run writes a CSV table as well. None means TensorBoard if it is installed."""
    report_page: bool = True
    """Write ``report.html`` and its pictures at the end."""

    @model_validator(mode="after")
    def _one_dtype(self):
        if self.precision is None:
            return self
        if self.model.get("dtype", self._dtype) != self._dtype:
            raise ValueError(
                f"precision: {self.precision} is {self._dtype}, but model.dtype is {self.model['dtype']}; leave one out"
            )
        return self

    @model_validator(mode="after")
    def _repeats(self):
        if not self.deterministic:
            return self
        if isinstance(self.schedule, CosineSchedule) and self.stop.max_time is not None:
            raise ValueError(
                "deterministic: with stop.max_time the cosine schedule follows the clock; leave max_time out, or take"
                " another schedule"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _schedule_free(cls, content: Any) -> Any:
        optimizer = content.get("optimizer") if isinstance(content, dict) else None
        if not isinstance(optimizer, dict) or optimizer.get("kind") != "schedule_free":
            return content
        schedule = content.get("schedule", {"kind": "constant"})
        if schedule != {"kind": "constant"}:
            raise ValueError("schedule: optimizer.kind: schedule_free needs none; leave schedule out")
        return {**content, "schedule": schedule}

    @property
    def _dtype(self) -> str:
        return "float64" if self.precision == "fp64" else "float32"

    def potential(self, statistic: Callable[[str, str], Any] = lambda key, word: None) -> PotentialConfig:
        """The model section with every automatic value replaced.

        Args:
            statistic: function of a key and a value of :data:`AUTO_VALUES` that returns the number it stands for. By
                default, those of an untrained model are used; types, cutoffs and widths do not depend on them.

        Raises:
            NequIPMDError: the model does not have an option, or an option has a value that is not allowed.
        """
        options = dict(self.model)
        if "checkpoint" in options:
            from nequip_md.training.fine_tuning import continued  # imports PyTorch

            found = continued(options)
            return found if self.precision is None else found.model_copy(update={"dtype": self._dtype})
        if self.precision is not None:
            options["dtype"] = self._dtype
        name = options.pop("preset", None)
        if name is None and options.get("kind") not in _KINDS:
            raise NequIPMDError(
                f"model.kind is {options.get('kind')!r}; it must be one of {', '.join(_KINDS)}, or give model.preset"
            )
        for key, words in AUTO_VALUES.items():
            value = options.setdefault(key, words[0])
            if isinstance(value, str):
                if value not in words:
                    raise NequIPMDError(
                        f"model.{key} is {value!r}; it must be a number, a number for each type,"
                        f" or one of {', '.join(words)}"
                    )
                options[key] = statistic(key, value)
        try:
            if name is None:
                kind = _KINDS[options["kind"]]
                return kind(**options)
            if "kind" in options:
                raise NequIPMDError("model has both preset and kind: a preset has its own kind, leave kind out")
            kind = type(preset(name, type_names=["H"], cutoff=1.0)) if isinstance(name, str) else None
            return preset(name, **options)
        except ValidationError as error:
            raise NequIPMDError(describe(error, kind, "model")) from None
        except (ValueError, TypeError) as error:
            raise NequIPMDError(f"model.preset: {error}") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses a key that is given twice."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines:
                raise NequIPMDError(f"line {line}: {key.value!r} is given again, first in line {lines[name]}; keep one")
            lines[name] = line
        return node


def load_config(path: str | Path) -> TrainingConfig:
    """Read and check a training file; paths of data files in the result are absolute.

    Raises:
        NequIPMDError: the file is of another kind, cannot be read or is not YAML, or a key or value is refused.
    """
    path = Path(path)
    refuse_other(path, FileKind.TRAINING_FILE)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise NequIPMDError(f"cannot read the training file {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2024-13-01
        raise NequIPMDError(f"{path} is not a YAML file: {error}") from None
    except NequIPMDError as error:
        raise NequIPMDError(f"{path} is not a valid training file\n  {error}") from None
    if not isinstance(content, dict):
        raise NequIPMDError(
            f"{path} must hold keys and values ({', '.join(TrainingConfig.model_fields)}); it holds {content!r}"
        )
    if "training_module" in content:
        raise NequIPMDError(
            f"{path} is a training file of nequip-train, which has other keys (training_module.model is model here,"
            " data.split_dataset is data.train and data.validation_split; docs/training.md has the table). Convert it"
            f" with: nequip-md-train --from-nequip {path} > train.yaml"
        )
    try:
        return check_config(content, path.parent.resolve())
    except NequIPMDError as error:
        raise NequIPMDError(f"{path} is not a valid training file\n{error}") from None


def check_config(content: dict[str, Any], folder: Path) -> TrainingConfig:
    """Check the content of a training file as :func:`load_config` does; relative paths start at ``folder``."""
    try:
        config = TrainingConfig.model_validate(_with_path(content, folder))
    except ValidationError as error:
        raise NequIPMDError(describe(error, TrainingConfig)) from None
    config.potential()  # so that the model section is checked before any data is read
    files = {
        key: [str(folder / name) for name in value]
        for key in ("train", "validation", "test", "isolated_atoms")
        if (value := getattr(config.data, key)) is not None
    }
    return config.model_copy(update={"data": config.data.model_copy(update=files)})


def _with_path(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The content of a training file with the path of ``model.checkpoint`` made absolute."""
    model = content.get("model")
    path = model.get("checkpoint") if isinstance(model, dict) else None
    if not isinstance(path, str) or is_public_name(path):
        return content
    return {**content, "model": {**model, "checkpoint": str(folder / path)}}


def describe(error: ValidationError, model: type[BaseModel] | None, prefix: str = "") -> str:
    """One line for each error: the key, the reason, and the values allowed."""
    lines = []
    for item in error.errors():
        path = [p for k, p in enumerate(item["loc"]) if not _is_tag(model, item["loc"][:k], p)]
        key = ".".join(str(p) for p in ([prefix] if prefix else []) + path)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"no such key; allowed are {', '.join(_classes(model, item['loc'][:-1])[0].model_fields)}"
        elif item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            kinds = [repr(c.model_fields["kind"].default) for c in _classes(model, item["loc"])]
            message = f"kind must be one of {', '.join(kinds)}"
        elif item["type"] == "missing":
            message = "is required"
        elif item["type"] != "value_error" and not isinstance(item["input"], dict):
            message = f"{message}; it is {item['input']!r}"
        lines.append(f"  {key}: {message}" if key else f"  {message}")
    return "\n".join(lines)


def _classes(model: type[BaseModel] | None, location: tuple) -> list[type[BaseModel]]:
    """The configuration classes that may stand at a location of ``model``."""
    found = [model] if model is not None else []
    for part in location:
        if isinstance(part, int):  # place in a list of such classes
            continue
        tagged = [c for c in found if "kind" in c.model_fields and c.model_fields["kind"].default == part]
        if tagged:
            found = tagged
            continue
        found = [c for m in found if part in m.model_fields for c in _in_annotation(m.model_fields[part].annotation)]
    return found


def _in_annotation(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [c for a in get_args(annotation) for c in _in_annotation(a)]


def _is_tag(model: type[BaseModel] | None, location: tuple, part: Any) -> bool:
    """Whether this part of the location is the tag of a union, which pydantic adds and the file does not have."""
    if not isinstance(part, str) or part.startswith(("function-", "list[", "constrained-")):
        return isinstance(part, str)
    candidates = _classes(model, location)
    return len(candidates) > 1 and part in {
        c.model_fields["kind"].default for c in candidates if "kind" in c.model_fields
    }
