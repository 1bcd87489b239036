"""`python -m ofa_jax.jobs encode_images`: the same codes as in one process, each image once."""

import io
import json
import tarfile

import beam_jobs
import numpy as np
import pytest
from beam_jobs import SIZE, assert_checksums, contents, encode, make_image

from ofa_jax.data.sources.array_records import OfaArrayRecords
from ofa_jax.data.sources.ofa_tsv import OfaTsv
from ofa_jax.jobs import encode_images
from ofa_jax.preprocessing import images
from ofa_jax.tokenizers.patch_codebook import PatchCodebook
from tools import make_codes

pytest.importorskip("apache_beam", reason="needs the extra 'beam'")


@pytest.mark.parametrize("layout", ["images", "text_to_image"])
def test_the_shards_are_the_file_of_make_codes(layout, lines, vqgan_path, tmp_path, capsys):
    single = tmp_path / "single.tsv"
    options = [f"--vqgan={vqgan_path}", f"--image_size={SIZE}", "--batch_size=2"]
    assert make_codes.main([*options, f"--layout={layout}", str(lines), str(single)]) == 0
    output = tmp_path / "codes"
    assert encode(output, vqgan_path, f"--layout={layout}", "--input", lines) == 0
    assert "9 records; 2 left out." in capsys.readouterr().out
    shards = sorted(output.glob("*.tsv"))
    assert [path.name for path in shards] == [f"{layout}-{n:05d}-of-00003.tsv" for n in range(3)]
    assert b"".join(path.read_bytes() for path in shards) == single.read_bytes()
    assert_checksums(output)


def test_dead_letters_say_why_and_where(lines, vqgan_path, tmp_path):
    assert encode(tmp_path / "codes", vqgan_path, "--input", lines) == 0
    letters = [
        json.loads(line)
        for path in sorted((tmp_path / "codes" / "dead_letters").iterdir())
        for line in path.read_text().splitlines()
    ]
    assert [letter["index"] for letter in letters] == [2, 10]
    assert [letter["reason"] for letter in letters] == [
        "image of another format",
        "wrong number of columns",
    ]
    assert [letter["origin"] for letter in letters] == [f"{lines}, line 3", f"{lines}, line 11"]
    assert all(letter["message"] for letter in letters)


def test_pretraining_reads_the_codes_in_both_formats(lines, vqgan, vqgan_path, tmp_path):
    assert encode(tmp_path / "tsv", vqgan_path, "--input", lines) == 0
    arrays = [tmp_path / "ofa", vqgan_path, "--output_format=array_record"]
    assert encode(*arrays, "--input", lines) == 0
    tsv = OfaTsv(images=str(tmp_path / "tsv" / "images-*.tsv")).records("images", "train")
    stored = OfaArrayRecords(str(tmp_path / "ofa")).records("images", "train")
    assert len(tsv) == len(stored) == 9
    folder = tmp_path / "ofa" / "images" / "train"
    assert encode(tmp_path / "again", vqgan_path, "--input", folder) == 0  # from ArrayRecord
    again = OfaTsv(images=str(tmp_path / "again" / "images-*.tsv")).records("images", "train")
    assert [again[n]["id"] for n in range(9)] == [tsv[n]["id"] for n in range(9)]
    for number in range(9):
        np.testing.assert_array_equal(again[number]["codes"], tsv[number]["codes"])
    for number in range(9):
        one, other = tsv[number], stored[number]
        assert one["id"] == other["id"] and one["image"] == other["image"]
        np.testing.assert_array_equal(one["codes"], other["codes"])
        whole = images.to_array(images.resize_and_center_crop(images.decode(one["image"]), SIZE))
        middle = vqgan.encode(whole[None, 8:24, 8:24])
        np.testing.assert_array_equal(one["codes"], middle.reshape(-1))


def test_the_model_is_loaded_once_and_batches_are_full(lines, vqgan_path, tmp_path, monkeypatch):
    shapes, loads = [], []
    read = encode_images.load_tokenizer

    class Watched:
        def __init__(self, path):
            self.tokenizer = read(path)
            self.pixels_per_code = self.tokenizer.pixels_per_code
            loads.append(path)

        def encode(self, pixels):
            shapes.append(pixels.shape)
            return self.tokenizer.encode(pixels)

    monkeypatch.setattr(encode_images, "load_tokenizer", Watched)
    assert encode(tmp_path / "codes", vqgan_path, "--input", lines) == 0
    assert len(loads) == 2  # once for the checks, once in the worker
    assert set(shapes) == {(2, 16, 16, 3)} and len(shapes) == 5


def test_folders_and_tars_give_the_same_codes_with_their_captions(vqgan_path, tmp_path):
    folder, tar = tmp_path / "photos", tmp_path / "photos-00000.tar"
    (folder / "sub").mkdir(parents=True)
    files = {"a.png": make_image(1), "a.txt": b"one\n", "sub/b.png": make_image(2)}
    files |= {"sub/b.txt": b"two\twords", "c.png": b"no image", "c.txt": b"three"}
    with tarfile.open(tar, "w") as archive:
        for name, content in files.items():
            (folder / name).write_bytes(content)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo("d.txt")
        archive.addfile(member, io.BytesIO())
    found = {}
    for name, given in (("folder", folder), ("tar", tmp_path / "photos-{00000..00000}.tar")):
        options = ["--layout=text_to_image", "--input", given]
        assert encode(tmp_path / name, vqgan_path, *options) == 0
        text = (tmp_path / name / "text_to_image-00000-of-00001.tsv").read_text()
        found[name] = [line.split("\t") for line in text.splitlines()]
    assert [(line[0], line[2]) for line in found["folder"]] == [
        ("a.png", "one"),
        ("sub/b.png", "two words"),
    ]
    assert [(line[0], line[2]) for line in found["tar"]] == [("a", "one"), ("sub/b", "two words")]
    assert [line[1] for line in found["folder"]] == [line[1] for line in found["tar"]]
    (letters,) = (tmp_path / "tar" / "dead_letters").iterdir()
    reasons = [json.loads(line)["reason"] for line in letters.read_text().splitlines()]
    assert reasons == ["image of another format", "sample without an image"]


def test_a_codebook_of_ours_encodes_too(lines, tmp_path):
    rng = np.random.default_rng(0)
    codebook = PatchCodebook(rng.permutation(np.arange(192 * 8) % 256).reshape(8, 192).astype("f4"))
    codebook.save(tmp_path / "codebook.npz")
    assert encode(tmp_path / "codes", tmp_path / "codebook.npz", "--input", lines) == 0
    records = OfaTsv(images=str(tmp_path / "codes" / "images-*.tsv")).records("images", "train")
    assert records[0]["codes"].shape == (4,) and records[0]["codes"].max() < 8


def test_a_second_call_does_nothing_and_another_job_is_refused(lines, vqgan_path, tmp_path, capsys):
    output = tmp_path / "codes"
    assert encode(output, vqgan_path, "--input", lines) == 0
    before = contents(output)
    assert encode(output, vqgan_path, "--input", lines) == 0
    assert "is complete: nothing to do." in capsys.readouterr().out
    assert encode(output, vqgan_path, "--layout=text_to_image", "--input", lines) == 2
    assert "was started with" in capsys.readouterr().err
    assert contents(output) == before


def test_mistakes_are_sentences_and_a_dry_run_writes_nothing(lines, vqgan_path, tmp_path, capsys):
    output = tmp_path / "codes"
    empty = tmp_path / "empty"
    empty.mkdir()
    for options, sentence in (
        (["--bach_size=2", "--input", lines], "Did you mean --batch_size?"),
        (["--runer=DirectRunner", "--input", lines], "Did you mean --runner?"),
        (["--code_size=6", "--input", lines], "--code_size is 6: give a multiple of 4 pixels"),
        (["--shard_size=0", "--input", lines], "--shard_size is 0; give at least 1"),
        (["--input", tmp_path / "missing-*.tsv"], "No file fits the pattern"),
        (["--input", "tfds:coco_captions"], "is not tfds:NAME:SPLIT"),
        (["--input", empty], "has no images"),
        (["--output_format=array_record", "--layout=text_to_image", "--input", lines], "has no"),
    ):
        assert encode(output, vqgan_path, *options) == 2, options
        assert sentence in capsys.readouterr().err, options
    assert not output.exists()
    options = ["--dry_run", "--runner=DataflowRunner", "--region=europe-west1", "--input", lines]
    assert encode(output, vqgan_path, *options) == 0
    assert "DataflowRunner: 11 records in 3 shards" in capsys.readouterr().out
    assert not output.exists()
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    assert encode(output, vqgan_path, "--input", lines) == 2
    assert "has files that this job did not write (mine.txt)" in capsys.readouterr().err
    assert beam_jobs.contents(output) == {"mine.txt": b"mine"}
