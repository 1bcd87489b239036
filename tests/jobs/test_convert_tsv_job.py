"""`python -m ofa_jax.jobs convert_tsv`: the records of the tool, also after a kill -9."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from beam_jobs import assert_checksums, contents
from official_files import write_faulty_files

from ofa_jax.data.sources.array_records import OfaArrayRecords
from ofa_jax.jobs import command
from tools import convert_tsv

pytest.importorskip("apache_beam", reason="needs the extra 'beam'")

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARD = 0.04  # megabytes


@pytest.fixture(scope="module")
def tsv(golden, tmp_path_factory):
    """Returns a file of pairs with some invalid lines."""
    folder = write_faulty_files(golden, tmp_path_factory.mktemp("original"))
    return folder / "vision_language_examples.tsv"


def arguments(tsv, output):
    return [
        "convert_tsv",
        "--kind=vision_language",
        f"--input={tsv}",
        f"--shard_megabytes={SHARD}",
        f"--output_dir={output}",
    ]


@pytest.fixture(scope="module")
def converted(tsv, tmp_path_factory):
    """Returns the folder after a job that was not disturbed."""
    output = tmp_path_factory.mktemp("beam") / "ofa"
    assert command.main(arguments(tsv, output)) == 0
    return output


def test_the_job_writes_the_records_of_the_tool(tsv, converted, tmp_path):
    single = tmp_path / "ofa"
    options = [f"--output_dir={single}", f"--vision_language={tsv}", "--num_workers=0"]
    assert convert_tsv.main(options) == 0
    for kind in ("captions", "questions", "regions", "pairs"):
        ours = OfaArrayRecords(str(converted)).records(kind, "train")
        theirs = OfaArrayRecords(str(single)).records(kind, "train")
        assert len(ours) == len(theirs) > 0
        for number in range(len(ours)):
            one, other = ours[number], theirs[number]
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
    about = OfaArrayRecords(str(converted)).description("vision_language", "train")
    expected = OfaArrayRecords(str(single)).description("vision_language", "train")
    for name in ("records", "skipped", "types"):
        assert about[name] == expected[name]
    folder = converted / "vision_language" / "train"
    assert len(list(folder.glob("*.array_record-*"))) > 2
    assert_checksums(folder)


def test_dead_letters_name_the_lines(tsv, converted):
    folder = converted / "vision_language" / "train" / "dead_letters"
    letters = [
        json.loads(line)
        for path in sorted(folder.iterdir())
        for line in path.read_text().splitlines()
    ]
    assert [letter["origin"] for letter in letters] == [f"{tsv}, line {n}" for n in (5, 6, 7)]
    assert [letter["reason"] for letter in letters] == [
        "wrong number of columns",
        "unknown type",
        "image of another format",
    ]


KILLED = """
import os, signal, sys
from ofa_jax.data.sources import array_record_writer
from ofa_jax.jobs import command

write, calls = array_record_writer.write_shard, []

def write_half(path, kind, records):
    calls.append(path)
    if len(calls) == 3:
        path.write_bytes(b"half of a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, kind, records)

array_record_writer.write_shard = write_half
command.main(sys.argv[1:])
"""


def test_a_killed_job_goes_on_and_has_every_record_once(tsv, converted, tmp_path, capsys):
    output = tmp_path / "ofa"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments(tsv, output)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = output / "vision_language" / "train"
    assert not list(folder.glob("*.array_record-*")) and not (folder / "conversion.json").exists()
    shards = {path: path.stat().st_ino for path in (folder / ".shards").glob("0*-of-?????")}
    assert len(shards) == 2
    assert len(list((folder / ".shards").glob(".*.tmp"))) == 1
    # One of the finished shards is damaged; it is found and written again.
    damaged, kept = shards
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert command.main(arguments(tsv, output)) == 0
    expected = contents(converted / "vision_language" / "train")
    found = contents(folder)
    assert found.keys() == expected.keys()
    for name in found:
        if name.startswith("vision_language-") or name in ("types.npy", "job.json"):
            assert found[name] == expected[name], name
    assert shards[kept] in {path.stat().st_ino for path in folder.glob("*.array_record-*")}
    assert not list(folder.glob(".*"))
    assert_checksums(folder)


def test_a_job_that_was_killed_while_it_renamed_ends(tsv, converted, tmp_path, monkeypatch):
    output = tmp_path / "ofa"
    from ofa_jax.jobs import outputs

    def interrupted(*_):
        raise OSError("the machine went down")

    monkeypatch.setattr(outputs.JobOutput, "finish", interrupted)
    assert command.main(arguments(tsv, output)) == 2
    folder = output / "vision_language" / "train"
    first = sorted(folder.glob("*.array_record-*"))
    (first[-1]).rename(folder / ".shards" / f"{len(first) - 1:05d}-of-{len(first):05d}")
    monkeypatch.undo()
    assert command.main(arguments(tsv, output)) == 0
    assert_checksums(folder)
    names = [name for name in contents(folder) if name.startswith("vision_language-")]
    for name in names:
        assert (folder / name).read_bytes() == (
            converted / "vision_language" / "train" / name
        ).read_bytes()


@pytest.mark.slow
def test_several_processes_write_the_same(tsv, converted, tmp_path):
    output = tmp_path / "ofa"
    options = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    assert command.main([*arguments(tsv, output), *options]) == 0
    for name, content in contents(output / "vision_language" / "train").items():
        if name.startswith("vision_language-"):
            assert (converted / "vision_language" / "train" / name).read_bytes() == content


def test_a_file_without_a_good_line_is_refused(tmp_path, capsys):
    path = tmp_path / "images.tsv"
    codes = " ".join(["1"] * 256)
    path.write_text(f"a\taGVsbG8=\t{codes}\nb\taGVsbG8=\t{codes}\n")
    options = ["convert_tsv", "--kind=images", f"--input={path}"]
    options += [f"--output_dir={tmp_path / 'ofa'}"]
    assert command.main(options) == 2
    assert "Not one record of the input can be used" in capsys.readouterr().err
