"""Further writers of a run's metrics, beside TensorBoard: a CSV file, Weights & Biases.

    train.metric_writers = [@CsvWriter(), @WandbWriter()]
    WandbWriter.project = 'my_project'

Each gets what TensorBoard gets. One that fails costs its own events alone: one sentence says so,
training goes on, and the next event tries again. A class of your own derives from `MetricWriter`.
"""

import ast
import contextlib
import csv
import dataclasses
import html
import importlib.util
import io
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from ofa_jax.evaluation.event_writer import EventWriter, Writers
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

__all__ = ["CsvWriter", "MetricWriter", "WandbWriter", "make_writer"]

WANDB_ID = "wandb_id.txt"
_CONFIG = "config.gin"
_STEP = "step"


class MetricWriter:
    """Options of a further writer; `open` makes one with the methods of clu's writers."""

    @property
    def what(self) -> str:
        """What is no longer written if it fails, for the message."""
        raise NotImplementedError

    def check(self, directory: epath.Path) -> None:
        """Raises ValueError if it cannot be used for a run in a directory."""

    def open(self, directory: epath.Path) -> Any:
        """Opens it for a run, with its first event; MODEL_DIR is there."""
        raise NotImplementedError


MetricWriters = Annotated[
    Sequence[MetricWriter],
    options.Help("Give a list of writers, e.g. [@CsvWriter(), @WandbWriter()]."),
]


def make_writer(directory: epath.Path, further: Sequence[MetricWriter]) -> Any:
    """Returns the writer of a run: TensorBoard's and further ones; only the first host writes.

    Args:
      directory: MODEL_DIR; nothing is written before the first event.
      further: options of the others.

    Raises:
      ValueError: one of them cannot be used.
    """
    for one in further:
        one.check(directory)
    events = EventWriter(directory)
    if not further or jax.process_index() > 0:
        return events
    others = [
        EventWriter(directory, what=one.what, open_writer=_opener(one, directory))
        for one in further
    ]
    return Writers([events, *others])


def _opener(one: MetricWriter, directory: epath.Path) -> Any:
    return lambda: one.open(directory)


# ----------------------------------------------------------------------------------------- CSV


@checked
@dataclasses.dataclass(frozen=True)
class CsvWriter(MetricWriter):
    """Writes all scalars to a CSV file: a row for each step, a column for each metric.

    Attributes:
      name: of the file in MODEL_DIR.
    """

    name: options.Name = "metrics.csv"

    def __post_init__(self) -> None:
        """Raises ValueError if the name leads elsewhere."""
        if os.path.basename(self.name) != self.name or self.name in (".", ".."):
            raise ValueError(
                f"CsvWriter.name is {self.name}; give the name of a file, without folders: it is "
                "written to MODEL_DIR."
            )

    @property
    def what(self) -> str:
        """What is no longer written if it fails."""
        return f"The rows of {self.name}"

    def open(self, directory: epath.Path) -> "_Csv":
        """Opens the file; one that is there is continued."""
        return _Csv(epath.Path(directory) / self.name)


class _Csv:
    """The rows of a CSV file; those after the step from which a run continues are replaced."""

    def __init__(self, path: epath.Path) -> None:
        self._path = path
        self._columns: list[str] = [_STEP]
        self._rows: list[dict[str, Any]] = []
        self._start: int | None = None  # of the last row in the file, where it can be replaced
        self._continues = True
        if path.exists():
            self._read()

    def _read(self) -> None:
        """Reads the rows of an earlier start. Raises ValueError if the file is another one."""
        reader = csv.reader(io.StringIO(self._path.read_text()))
        header = next(reader, [_STEP])
        if header[0] != _STEP or len(set(header)) < len(header):
            raise ValueError(f"{self._path} is no file of metrics: move it elsewhere")
        self._columns = header
        for values in reader:
            # The last line may have been cut off.
            if len(values) == len(header) and values[0].isdigit():
                found = zip(header, values, strict=True)
                row: dict[str, Any] = {name: value for name, value in found if value}
                self._rows.append(row | {_STEP: int(values[0])})

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the values of a step to its row."""
        rewrite = False
        if self._continues:
            kept = [row for row in self._rows if row[_STEP] <= step]
            self._continues, self._rows, rewrite = False, kept, True
        is_same = bool(self._rows) and self._rows[-1][_STEP] == step
        if not is_same:
            self._rows.append({_STEP: step})
        self._rows[-1] |= {name: float(value) for name, value in scalars.items()}
        new = [name for name in scalars if name not in self._columns]
        self._columns += new
        if rewrite or new or "://" in str(self._path):  # object stores have no appending
            self._write_all()
        else:
            self._write_last(is_same)

    def _write_all(self) -> None:
        lines = [_line(self._columns)]
        lines += [_line(row.get(name, "") for name in self._columns) for row in self._rows]
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        temporary.write_text("".join(lines))
        temporary.replace(self._path)
        self._start = sum(len(line.encode()) for line in lines[:-1])

    def _write_last(self, replaces: bool) -> None:
        """Writes the last row to the end of the file, in the place of that of the same step."""
        with open(os.fspath(self._path), "r+b") as file:
            if replaces:
                file.truncate(self._start)
            self._start = file.seek(0, os.SEEK_END)
            row = self._rows[-1]
            file.write(_line(row.get(name, "") for name in self._columns).encode())

    def write_images(self, step: int, images: Any) -> None:
        """Does nothing: there are no images in the file."""

    def write_texts(self, step: int, texts: Any) -> None:
        """Does nothing: there are no texts in the file."""

    def flush(self) -> None:
        """Does nothing: every row is in the file already."""

    def close(self) -> None:
        """Does nothing: the file is closed."""


def _line(values: Any) -> str:
    output = io.StringIO()
    csv.writer(output, lineterminator="\n").writerow(values)
    return output.getvalue()


# ---------------------------------------------------------------------------- Weights & Biases


@checked
@dataclasses.dataclass(frozen=True)
class WandbWriter(MetricWriter):
    """Writes scalars, images and texts to Weights & Biases; needs the extra `wandb`.

    A run that is continued continues there too: its id is kept in MODEL_DIR/wandb_id.txt. The
    parameters in config.gin become its configuration.

    Attributes:
      project: that the run belongs to.
      entity: user or team; that of your account if None.
      name: of the run; that of MODEL_DIR if None.
      group: of runs that belong together.
      tags: of the run.
      mode: "offline" writes files alone, which `wandb sync` uploads; "online" sends everything
        while the run trains, after `wandb login`.
      directory: of the files, on a local disk; MODEL_DIR if None.
    """

    project: options.Name = "ofa_jax"
    entity: options.Name | None = None
    name: options.Name | None = None
    group: options.Name | None = None
    tags: Sequence[options.Name] = ()
    mode: Annotated[str, options.OneOf(("offline", "online"))] = "offline"
    directory: options.Path | None = None

    @property
    def what(self) -> str:
        """What is no longer written if it fails."""
        return "The metrics for Weights & Biases"

    def check(self, directory: epath.Path) -> None:
        """Raises ValueError if the package is missing, or the files have no local place."""
        if importlib.util.find_spec("wandb") is None:
            raise ValueError(
                "WandbWriter needs the package wandb: pip install 'ofa_jax[wandb]', or leave it "
                "out of train.metric_writers."
            )
        if "://" in (place := self.directory or str(directory)):
            raise ValueError(
                f"Weights & Biases keeps its files on a local disk, not in {place}: set "
                "WandbWriter.directory."
            )

    def open(self, directory: epath.Path) -> "_Wandb":
        """Begins the run there, or continues it."""
        import wandb

        place = self.directory or os.fspath(directory)
        os.makedirs(place, exist_ok=True)
        is_online = self.mode == "online"
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.name or epath.Path(directory).name,
            group=self.group,
            tags=list(self.tags) or None,
            id=_run_id(directory),
            resume="allow" if is_online else None,  # `wandb sync --append` joins offline files
            mode="online" if is_online else "offline",
            dir=place,
            config=_parameters(epath.Path(directory) / _CONFIG),
            settings=wandb.Settings(console="off", silent=True),
        )
        run.define_metric(_STEP)
        run.define_metric("*", step_metric=_STEP)
        return _Wandb(run)


class _Wandb:
    """A run of Weights & Biases. Its steps are a metric, so that a run may go back to one."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs the values of a step."""
        self._run.log({**{name: float(value) for name, value in scalars.items()}, _STEP: step})

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "n h w 3"]]) -> None:
        """Logs the images of a step."""
        import wandb

        made = {name: [wandb.Image(one) for one in batch] for name, batch in images.items()}
        self._run.log({**made, _STEP: step})

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Logs the texts of a step, in Markdown, as they are."""
        import wandb

        shown = {
            name: wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)
            for name, text in texts.items()
        }
        self._run.log({**shown, _STEP: step})

    def flush(self) -> None:
        """Does nothing: a process of its own writes."""

    def close(self) -> None:
        """Ends the run, and waits until everything is written."""
        self._run.finish()


def _run_id(directory: epath.Path) -> str:
    """Returns the id of the run in a directory; a new one is kept there."""
    path = epath.Path(directory) / WANDB_ID
    if path.exists() and re.fullmatch(r"[0-9a-f]{8,64}", found := path.read_text().strip()):
        return found
    made = uuid.uuid4().hex[:16]
    path.write_text(made + "\n")
    return made


def _parameters(path: epath.Path) -> dict[str, Any]:
    """Returns the parameters of a config.gin; what is no literal stays text."""
    if not path.exists():
        return {}
    text = re.sub(r"\\\n\s*", "", path.read_text())
    found: dict[str, Any] = {}
    name = ""
    for line in text.splitlines():
        if match := re.match(r"([\w./]+) = (.*)", line):
            name = match[1]
            found[name] = match[2]
        elif name and line.startswith(" "):  # a list or a dict of several lines
            found[name] += line.strip()
        else:
            name = ""
    for name, value in found.items():
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found[name] = ast.literal_eval(value)
    return found
