"""Offline jobs on Apache Beam over many files: `python -m ofa_jax.jobs JOB`.

| module | contents |
| --- | --- |
| `command` | the command line |
| `encode_images` | the job that encodes images to codes |
| `convert_tsv` | the job that converts TSV files to ArrayRecord |
| `cache_tasks` | the job that writes seqio's offline cache of a task |
| `inputs` | TSV, ArrayRecord, TFDS, folders and WebDataset tars as one interface |
| `image_files` | records of folders and tars |
| `outputs` | shards, checksums and dead letters: what makes a restart exact |
| `pipeline` | runs a job's shards on a runner of Beam |
| `beam_options` | checks the options that are Beam's |

Beam is an extra (`beam`), and imported when a job runs.
"""
