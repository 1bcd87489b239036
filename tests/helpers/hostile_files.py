"""Writes a corpus of small hostile files: `python tests/helpers/hostile_files.py FOLDER`.

    images/        hostile_images.py        treated as each `HostileImage` says
    requests/      hostile_texts.py         JSON lines and TSV, treated line by line
    gin/           hostile_texts.py         valid, or refused in a sentence
    candidates/    hostile_texts.py         a list of texts, or refused
    checkpoints/   hostile_checkpoints.py   refused in a sentence

`tests/test_hostile_files.py` gives each file to the function that users reach with it.
"""

import os
import pathlib
import sys

import hostile_checkpoints
import hostile_images
import hostile_texts


def write_requests(folder: pathlib.Path) -> pathlib.Path:
    """Writes the request files and the images that they name; returns their folder."""
    root = folder / "requests"
    root.mkdir(parents=True)
    image = hostile_images.encode(hostile_images.noise(), "PNG")
    (root / hostile_texts.IMAGE).write_bytes(image)
    (folder / "secret.png").write_bytes(image)
    (root / "folder.png").mkdir()
    (root / "link.png").symlink_to(folder / "secret.png")
    os.mkfifo(root / "fifo.png")
    for text in (*hostile_texts.json_lines(), *hostile_texts.request_tables()):
        (root / text.name).write_bytes(text.content)
    return root


def write_corpus(folder: pathlib.Path) -> int:
    """Writes all files into a folder, which must not exist; returns their number."""
    write_requests(folder)
    contents = {
        "images": {item.name: item.content for item in hostile_images.hostile_images()},
        "gin": {item.name: item.content for item in hostile_texts.gin_files()},
        "candidates": {name: content for name, (content, _) in hostile_texts.CHOICES.items()},
        "checkpoints": {
            item.name: item.content for item in hostile_checkpoints.hostile_checkpoints()
        },
    }
    for kind, files in contents.items():
        (folder / kind).mkdir()
        for name, content in files.items():
            (folder / kind / name).write_bytes(content)
    return sum(not path.is_dir() for path in folder.rglob("*"))


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    if len(arguments) != 1 or pathlib.Path(arguments[0]).exists():
        print("usage: python tests/helpers/hostile_files.py NEW_FOLDER", file=sys.stderr)
        return 2
    print(f"Wrote {write_corpus(pathlib.Path(arguments[0]))} files to {arguments[0]}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
