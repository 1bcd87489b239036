"""Reports on a terminal and in a log."""

import dataclasses
import io

import pytest
from rich.console import Console

from ofa_jax.training.telemetry import Throughput
from ofa_jax.training.terminal import Progress, Report
from ofa_jax.utils.timers import Interval

REPORT = Report(
    step=250,
    total_steps=1000,
    throughput=Throughput(2.5, 140.0, 1200.0, 4, 2e12),
    data_wait=0.013,
    total=Interval(100.0, {"compilation": 8.0, "waiting_for_data": 2.0}),
    loss=7.125,
    task_losses={"image_captioning": 2.5, "text_infilling": 5.25},
    learning_rate=1e-3,
    gradient_norm=1.5,
    parameter_norm=30.0,
    padding={"text/encoder": 0.25},
    skipped_records=2,
    skipped_steps=0,
)


def test_a_log_gets_plain_lines():
    console = Console(file=io.StringIO(), width=40)
    with Progress(console) as progress:
        progress.log("Compiling the step ...")
        progress.show(REPORT)
    assert console.file.getvalue().splitlines() == [
        "Compiling the step ...",
        "step 250/1000  loss 7.125  2.50 steps/s  140 examples/s  500.0 GFLOP/s a chip  "
        "0:05:00 left  waiting for data 1.3%  goodput 90%  2 records skipped",
        "    image_captioning 2.500  text_infilling 5.250",
    ]


def test_a_terminal_shows_one_view_that_is_updated():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Progress(console) as progress:
        progress.show(REPORT)
        progress.log("Validating ...")
    text = console.file.getvalue()
    assert "image_captioning" in text and "Validating ..." in text
    assert "\x1b[" in text  # the cursor moves


def test_tensorboard_gets_every_number():
    scalars = REPORT.scalars
    assert scalars["train/loss"] == 7.125
    assert scalars["train/loss/text_infilling"] == 5.25
    assert scalars["train/skipped_records"] == 2
    assert scalars["train/steps_per_second"] == 2.5
    assert scalars["train/examples_per_second_per_chip"] == 35.0
    assert scalars["train/target_tokens_per_second_per_chip"] == 300.0
    assert scalars["train/padding/text/encoder"] == 0.25
    assert scalars["train/parameter_norm"] == 30.0 and scalars["train/gradient_norm"] == 1.5
    assert scalars["train/goodput"] == pytest.approx(0.9)
    assert scalars["train/time/compilation"] == 0.08
    assert scalars["train/data_wait"] == 0.013
    assert scalars["train/model_flops_per_second_per_chip"] == 5e11
    assert "train/mfu" not in scalars, "the peak is not known"


def test_a_known_peak_gives_the_share_of_it():
    throughput = dataclasses.replace(REPORT.throughput, peak_flops=2e12)
    report = dataclasses.replace(REPORT, throughput=throughput)
    assert report.scalars["train/mfu"] == 0.25
    assert "140 examples/s  MFU 25.0%  " in report.headline()
    assert Throughput(1.0, 1.0, 1.0, 1, 2.5e12).arithmetic == "2.5 TFLOP/s a chip"


def test_the_summary_shows_where_the_time_went():
    console = Console(file=io.StringIO(), width=40)
    with Progress(console) as progress:
        progress.log_total(Interval(200.0, {"waiting_for_data": 2.0, "compilation": 30.0}))
    assert console.file.getvalue() == (
        "Time: 0:03:20, of which 84% stepping, 1% waiting for data, 15% compilation.\n"
    )
