"""The event files that are written without TensorFlow, against those of clu's writer."""

import errno
import io
import logging
import subprocess
import sys

import numpy as np
import pytest
from absl import logging as absl_logging
from clu import metric_writers
from etils import epath
from PIL import Image
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.util import tensor_util

from ofa_jax.evaluation import event_files, event_writer
from ofa_jax.evaluation.event_files import EventFile
from ofa_jax.evaluation.event_writer import EventWriter

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), np.uint8)
TEXT = "| a | ü &lt;b> |\n| - | - |"


def write(writer):
    """Writes what a run writes, of every kind of number."""
    writer.write_scalars(1, {"train/loss": 2.5, "rate": 1e-30, "steps per second/α": 7})
    writer.write_scalars(2, {"a": np.float32(0.1), "b": np.float64(0.1), "c": np.int32(-3)})
    writer.write_scalars(3, {"nan": float("nan"), "inf": float("-inf")})
    writer.write_images(2**40, {"gallery/a": PIXELS, "gallery/b": PIXELS[:1]})
    writer.write_texts(5, {"gallery/a/table": TEXT, "empty": ""})
    writer.flush()
    writer.close()


def events_of(folder):
    (path,) = folder.glob("events.out.tfevents.*")
    assert path.name.endswith(".v2")
    return list(event_file_loader.RawEventFileLoader(str(path)).Load()), list(
        event_file_loader.EventFileLoader(str(path)).Load()
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(our events, clu's), each raw and as TensorBoard reads them."""
    ours, theirs = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("theirs")
    write(EventFile(str(ours / "new" / "folder")))
    write(metric_writers.SummaryWriter(str(theirs)))
    return events_of(ours / "new" / "folder"), events_of(theirs)


def decoded(value):
    """Replaces PNGs, which two programs compress differently, by their pixels."""
    found = value.tensor.string_val
    if value.metadata.plugin_data.plugin_name == "images":
        sizes, images = list(found[:2]), found[2:]
        return sizes, [np.asarray(Image.open(io.BytesIO(x))).tolist() for x in images]
    return tensor_util.make_ndarray(value.tensor)


def test_the_records_are_those_of_clus_writer(both):
    (ours, _), (theirs, _) = both
    assert len(ours) == len(theirs) == 1 + 8 + 2 + 2


def test_the_events_are_those_of_clus_writer(both):
    (_, ours), (_, theirs) = both
    assert len(ours) == len(theirs)
    for own, other in zip(ours, theirs, strict=True):
        assert (own.step, own.file_version) == (other.step, other.file_version)
        assert own.source_metadata == other.source_metadata
        assert abs(own.wall_time - other.wall_time) < 600
        for value, expected in zip(own.summary.value, other.summary.value, strict=True):
            assert value.tag == expected.tag and value.metadata == expected.metadata
            assert value.tensor.dtype == expected.tensor.dtype
            np.testing.assert_equal(decoded(value), decoded(expected), value.tag)


def test_nothing_of_tensorflow_is_imported(tmp_path):
    program = (
        "import sys, numpy as np\nfrom etils import epath\n"
        "from ofa_jax.evaluation.event_writer import EventWriter\n"
        "writer = EventWriter(epath.Path(sys.argv[1]))\n"
        "writer.write_scalars(1, {'loss': 1.0})\n"
        "writer.write_images(1, {'shown': np.zeros((1, 4, 4, 3), np.uint8)})\n"
        "writer.write_texts(1, {'shown': 'a'})\nwriter.close()\n"
        "print(*{'tensorflow', 'clu', 'keras'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert not done.stdout.strip()
    assert len(list(tmp_path.iterdir())) == 1


def test_after_an_error_a_new_file_goes_on(tmp_path, monkeypatch, caplog):
    writer = EventWriter(epath.Path(tmp_path))
    writer.write_scalars(1, {"loss": 1.0})
    full = OSError(errno.ENOSPC, "No space left on device")
    write_record = event_files.EventFile._write

    def fail(self, **fields):
        with self._closed_after_errors():
            raise full

    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(event_files.EventFile, "_write", fail)
        writer.write_scalars(2, {"loss": 2.0})
        monkeypatch.setattr(event_files.EventFile, "_write", write_record)
        writer.write_scalars(3, {"loss": 3.0})
    writer.close()
    assert "No space left on device" in caplog.text
    # A file of each opening; that of step 2 is the first one, which was closed.
    found = [path.name for path in tmp_path.iterdir()]
    assert len(found) == 2 == len(set(found))


def test_a_bucket_is_written_by_clu(monkeypatch):
    opened = []
    monkeypatch.setattr(
        metric_writers,
        "create_default_writer",
        lambda *arguments, **options: opened.append((arguments, options)),
    )
    event_writer.open_tensorboard("gs://bucket/run")
    assert opened == [(("gs://bucket/run",), {"asynchronous": False})]


def test_later_hosts_write_no_file(tmp_path, caplog):
    writer = event_writer.open_tensorboard(str(tmp_path), writes=False)
    absl_logging.set_verbosity(absl_logging.INFO)
    with caplog.at_level(logging.INFO):
        write(writer)
    assert not list(tmp_path.iterdir())
    assert "[1] rate=1e-30, steps per second/α=7, train/loss=2.5" in caplog.text
