"""The model card of a folder: the evaluation table of a run."""

import json

import jax
import pytest
from huggingface_fixtures import command, refused

from ofa_jax.checkpoints import storage
from ofa_jax.inference import loading
from ofa_jax.interop import config_from_fairseq, from_fairseq
from ofa_jax.tokenizers.processor import Processor


@pytest.fixture
def run(tiny, vocabulary, tmp_path):
    """Writes the run directory of the small model, with results."""
    args, state_dict = tiny
    config = config_from_fairseq(args, 401)
    path = tmp_path / "run"
    storage.save_variables(path, from_fairseq(state_dict, config), step=20)
    storage.write_model_config(path, config)
    Processor(vocabulary[0], image_size=48, max_image_size=64).save(path)
    metrics = path / "evaluations" / "test" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    grounding = {"visual_grounding": {"acc@0.5": 0.4375}}
    metrics.write_text(json.dumps({"10": {"visual_grounding": {"acc@0.5": 0.1}}, "20": grounding}))
    (path / "summary.json").write_text(
        json.dumps(grounding | {"image_captioning": {"validation_loss": 1.25, "a|b": 3}})
    )
    return path


def test_a_run_becomes_a_folder_with_its_results(run, tmp_path):
    command(run, tmp_path / "my-ofa", "--layout=huggingface")
    card = (tmp_path / "my-ofa" / "README.md").read_text()
    assert "# my-ofa\n" in card and "from `run`" in card and "48 x 48 pixels" in card
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert "| visual_grounding | acc@0.5 | 0.4375 | test | 20 |" in table
    assert "| image_captioning | validation_loss | 1.25 | summary | 20 |" in table
    assert "| image_captioning | a&#124;b | 3 | summary | 20 |" in table
    assert not any("0.1 " in line for line in table)
    count = sum(x.size for x in jax.tree.leaves(storage.load_numpy_variables(run)["params"]))
    assert f"| parameters | {count:,} |" in table
    loaded = loading.load_processor(str(tmp_path / "my-ofa"))
    assert (loaded.image_size, loaded.max_image_size) == (48, 64)


def test_the_hub_reads_the_metadata_of_the_card(run, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    command(run, tmp_path / "hf", "--layout=huggingface")
    card = hub.ModelCard.load(tmp_path / "hf" / "README.md")
    assert card.data.tags == ["ofa", "jax", "vision-language"]
    found = {(r.task_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found["visual_grounding", "acc@0.5"] == 0.4375
    assert found["image_captioning", "validation_loss"] == 1.25


def test_results_can_be_given_and_damaged_ones_are_named(run, official_file, tmp_path, capsys):
    for number, source in enumerate(
        (run, run / "evaluations" / "test", run / "evaluations" / "test" / "metrics.json")
    ):
        out = tmp_path / str(number)
        command(official_file, out, "--layout=huggingface", f"--results={source}")
        assert "| acc@0.5 | 0.4375 | test | 20 |" in (out / "README.md").read_text()
    command(official_file, tmp_path / "none", "--layout=huggingface")
    assert "Not evaluated yet" in (tmp_path / "none" / "README.md").read_text()
    hf = ("--layout=huggingface",)
    assert "There is no " in refused(
        capsys, official_file, tmp_path / "x", *hf, f"--results={tmp_path / 'nothing'}"
    )
    (run / "summary.json").write_text('{"a": {"b": "c"}}')
    assert "has no numbers for the task a" in refused(
        capsys, official_file, tmp_path / "x", *hf, f"--results={run}"
    )
    command(run, tmp_path / "y", *hf)
    assert "The model card has no results" in capsys.readouterr().out
