"""`python -m ofa_jax.plan` as users call it, on this machine's device instead of a pod's.

The slow test compiles for a real TPU topology; it needs libtpu (the extra `plan`).
"""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import gin
import jax
import pytest
from shown_progress import assert_shown, every_line

from ofa_jax import plan
from ofa_jax.planning import compiling, gpu, planner, sweep, topologies
from ofa_jax.utils.hardware import parse_topology

ROOT = pathlib.Path(__file__).parent.parent
RUN = ["--gin_file=gin_configs/models/tiny.gin", "--gin_file=gin_configs/runs/pretrain.gin"]
SMALL = [
    "--gin.model_config.width=16",
    "--gin.model_config.ffn_width=32",
    "--gin.model_config.num_heads=2",
    "--gin.model_config.encoder_layers=2",
    "--gin.model_config.decoder_layers=2",
    "--gin.model_config.resnet_layers=(1, 1, 1)",
    "--gin.model_config.resnet_width=4",
    "--gin.train.streams=[@text/Stream()]",
    "--gin.text/Stream.batch_size=4",
    "--vocab_size=250",
]


@pytest.fixture
def call(monkeypatch, capsys):
    """Calls the command line; returns (exit code, standard output, standard error)."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(topologies, "topology_devices", lambda *_: jax.devices()[:1])
    monkeypatch.setattr(
        topologies,
        "compiler_for",
        lambda _: lambda lowered: compiling.completed(lowered.compile()),
    )

    def run(*arguments):
        gin.clear_config()
        with pytest.raises(SystemExit) as ended:
            plan.main(arguments)
        return ended.value.code, *capsys.readouterr()

    yield run
    gin.clear_config()
    jax.config.update("jax_enable_compilation_cache", True)


def test_a_plan_needs_no_data_and_reports_the_cost_of_a_step(call):
    with every_line() as shown:
        code, out, _ = call(*RUN, *SMALL, "--topology=v5e:1x1", "--json")
    assert_shown(shown, "planning", "3 steps", is_even=False)
    result = json.loads(out)
    assert code == 0 and result["fits"] and result["batch"] == {"text": 4}
    assert result["model"]["vocab_size"] == 250
    assert result["model"]["attention_implementation"] == "bias"  # what "auto" is on a CPU
    memory = result["memory"]
    # 256 rows of the padded vocabulary; two moments of each parameter, and a count.
    assert memory["optimizer"] == pytest.approx(2 * 4 * result["model"]["parameters"], abs=64)
    assert memory["peak"] == pytest.approx(
        sum(size for name, size in memory.items() if name not in ("peak", "capacity"))
    )
    assert result["collectives"] == []
    flops, line = result["flops"], result["roofline"]
    assert flops["per_device"] == pytest.approx(flops["ratio"] * flops["model"])
    # One v5e: 197 TFLOP/s, 819 GB/s.
    assert line["compute"] == pytest.approx(flops["per_device"] / 197e12)
    assert line["step_seconds"] == line[line["bottleneck"]] == max(line["compute"], line["memory"])
    assert line["mfu"] == pytest.approx(flops["model"] / 197e12 / line["step_seconds"])
    assert line["examples_per_second"] == pytest.approx(4 / line["step_seconds"])
    assert sum(result["traffic"].values()) == pytest.approx(819e9 * line["memory"])
    assert {"embed, backward", "loss and optimiser"} < set(result["traffic"])


def test_decoding_is_planned_too(call):
    code, out, _ = call(
        *RUN,
        *SMALL,
        "--topology=v5e:1x1",
        "--program=decode",
        "--json",
        "--gin.DecodingConfig.beam_size=2",
        "--gin.DecodingConfig.max_length=3",
    )
    result = json.loads(out)
    assert code == 0 and result["program"] == "decode"
    assert set(result["memory"]) == {"parameters", "batch", "activations", "peak", "capacity"}
    assert result["flops"]["model"] > 0


def test_a_sweep_ranks_fitting_plans_and_accumulates_only_if_necessary(call, monkeypatch):
    planned = []

    def plan(arguments):
        settings = dict(a.removeprefix("--gin.").split("=", 1) for a in arguments if "--gin." in a)
        planned.append(settings)
        parts = int(settings["train.gradient_accumulation"])
        fits = parts >= 2
        return {
            "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
            "batch": {"text": 4},
            "fits": fits,
            "gradient_accumulation": parts,
            "memory": {"peak": 2.0**30},
            "model": {"remat": settings["model_config.remat"].strip("'")},
            "roofline": {
                "step_seconds": 0.1 * parts,
                "examples_per_second": 40.0 / parts,
                "mfu": 0.5,
                "bottleneck": "compute",
            },
        }

    monkeypatch.setattr(sweep, "plan_in_subprocess", plan)
    code, out, progress = call(*RUN, *SMALL, "--topology=v5e:1x1", "--sweep")
    lines = out.splitlines()
    assert code == 0 and len(planned) == len(lines) - 1
    tried = [int(settings["train.gradient_accumulation"]) for settings in planned]
    assert tried == [1, 2]  # two parts fit: neither four nor another remat was planned
    assert "compute" in lines[1] and "does not fit" in lines[2]
    assert progress.count("...") == len(planned)
    with every_line() as shown:
        call(*RUN, *SMALL, "--topology=v5e:1x1", "--sweep")
    assert re.search(r"planning: (\d+)/\1 candidates, [\d,.]+ candidates/s, ", shown.getvalue())


def test_a_plan_that_does_not_fit_exits_with_code_3_and_advice(call, monkeypatch):
    def full(self):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.51G of 15.75G hbm."
        )

    monkeypatch.setattr(jax.stages.Lowered, "compile", full)
    code, out, _ = call(*RUN, *SMALL, "--topology=v5e:1x1", "--gin.model_config.remat='none'")
    assert code == 3
    assert "peak 20.51 of 16.00 GiB: DOES NOT FIT" in out
    assert "to fit      --gin.model_config.remat=\"'weight_dots'\"" in out
    assert "--gin.train.gradient_accumulation=2 computes 2 parts" in out


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Used 20.5G of 15.75G hbm.", 20.5 * 2**30),
        (
            "total memory required for HLO temporaries (20.50G) exceeds available HBM (15.75G).",
            20.5 * 2**30 + 7,
        ),
        ("out of something else", None),
    ],
)
def test_the_needed_memory_is_read_from_the_message_of_the_compiler(message, expected):
    assert planner.needed_bytes(message, held=7) == expected


def test_importing_the_command_leaves_the_environment_alone():
    program = (
        "import os; before = dict(os.environ); import ofa_jax.plan, sys\n"
        "assert dict(os.environ) == before and 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_a_plan_names_its_substitutes_for_data(call):
    code, out, _ = call(
        *RUN, *SMALL, "--topology=v5e:1x1", "--gin.train.restrict_to_candidates=True"
    )
    assert code == 0
    assert "stand-in    3,129 random candidates instead of those of the task" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "No topology given: add --topology=v5e:16x16"),
        (["--topology=v9:2x2"], "known chips are"),
        (["--topology=v5e:1x1", "--gin.train.gradient_accumulation=3"], "make it a multiple of 3"),
        (["--topology=v5e:1x1", "--gin.TRAIN_STPES=3"], "Did you mean TRAIN_STEPS?"),
        (["--topology=v5e:1x1", "--swep"], "There is no flag --swep."),
        (["--topology=v5e:1x1", "--slices=0"], "plan.slices is 0; it must be at least 1."),
        (["--topology=v5e:1x1", "--slices=x"], "Argument --slices: invalid int value: 'x'."),
        (["--topology=v5e:1x1", "--vocab_size=-5"], "plan.vocab_size is -5; it must be at least 1"),
        (["--topology=v5e:0x4"], "must have between 1 and 100,000 chips"),
    ],
)
def test_a_user_error_is_one_sentence_and_exit_code_2(call, arguments, sentence):
    code, _, error = call(*RUN, *SMALL, *arguments)
    assert code == 2 and sentence in error
    assert error.count("\n") == 1


def test_gpus_are_those_of_a_machine_and_want_a_plugin(monkeypatch):
    h100, _ = parse_topology("h100:8")
    with pytest.raises(ValueError, match="as in h100:8, and --slices=2 for two machines"):
        topologies.topology_devices(h100, "2x4", 1)
    monkeypatch.setattr(gpu, "_PLUGIN", "jax_plugins.of_nobody")
    with pytest.raises(ImportError, match=r"pip install '\.\[plan-cuda\]'"):
        topologies.topology_devices(h100, "8", 1)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is there")
def test_without_libtpu_the_error_explains_how_to_install_it():
    with pytest.raises(ImportError, match=r"pip install '\.\[plan\]'"):
        topologies.topology_devices(parse_topology("v5e:2x2")[0], "2x2", 1)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_published_base_model_is_planned_for_a_tpu_slice_in_three_minutes():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ofa_jax.plan",
            "--gin_file=gin_configs/models/base.gin",
            RUN[1],
            "--topology=v5e:4x4",
            "--json",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=180,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (0 if result["fits"] else 3)
    assert result["chips"] == 16 and result["model"]["parameters"] > 182_000_000
