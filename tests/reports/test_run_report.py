"""The report of runs: what it contains, of one run, of several, and of damaged ones."""

import dataclasses
import json
import re

import numpy as np
import pytest
from report_files import PREDICTED, TRUE, grounding_example, json_in, write_run

from ofa_jax.evaluation import gallery
from ofa_jax.reports import curves, run_files, run_report
from ofa_jax.utils import files
from tools import report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "first", lone_surrogate=True)


@pytest.fixture(scope="module")
def page(run):
    return run_report.write_report([run]).read_text()


def test_scalars_are_read_from_the_event_files(run):
    scalars = run_files.read_run(run).scalars
    np.testing.assert_array_equal(scalars["train/loss"].steps, [1, 2, 3])
    np.testing.assert_allclose(scalars["train/loss"].values, [3, 2, 1])
    assert np.isnan(scalars["train/gradient_norm"].values[1])


def test_a_chart_of_an_objective_has_training_validation_and_baseline(run):
    runs = [run_files.read_run(run)]
    (chart,) = curves.objective_charts(runs)
    (figure,) = curves.figures(runs, iter([chart]))
    for label in ("training", "validation", "unigram baseline"):
        assert f'"name":"{label}"' in figure


def test_values_that_are_not_finite_are_gaps(run):
    charts = curves.training_charts([run_files.read_run(run)])
    (chart,) = (chart for chart in charts if chart.title == "Gradient norm")
    (figure,) = curves.figures([run_files.read_run(run)], iter([chart]))
    assert '"y":[1.0,null,1.0]' in figure


def test_the_page_needs_no_network(page):
    body = page[page.index("<body>") :]
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', body)
    assert "@import" not in page


def test_metrics_stand_side_by_side(page):
    row = re.search(r"<td>visual_grounding</td><td>acc@0.5</td>(.*?)</tr>", page, re.S).group(1)
    assert re.findall(r">([^<>]+)</td>", row) == ["0.75", "0.75"]
    row = re.search(r"<td>not_finite</td>(.*?)</tr>", page, re.S).group(1)
    assert re.findall(r">([^<>]+)</td>", row) == ["–", "–"]


def test_boxes_are_drawn_where_the_json_has_them(page):
    (gallery,) = json_in(page, "galleries")
    assert (gallery["task"], gallery["split"], gallery["step"]) == ("visual_grounding", "test", 3)
    assert gallery["examples"][0]["target_boxes"][0]["corners"] == list(TRUE)
    for kind, (x0, y0, x1, y1) in (("true", TRUE), ("predicted", PREDICTED)):
        drawn = re.search(
            rf'<rect class="{kind}" x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)">', page
        )
        assert [float(number) for number in drawn.groups()] == [x0, y0, x1 - x0, y1 - y0]
    assert 'viewBox="0 0 100 80"' in page


def test_texts_of_the_data_are_escaped(page):
    assert "record 0 &lt;b&gt;&amp;" in page
    assert "<script>alert" not in page
    assert json_in(page, "galleries")[0]["examples"][0]["prediction"].startswith("half ")


def test_runs_are_compared_by_color(run, tmp_path):
    other = write_run(tmp_path / "first", losses=(5.0, 4.0))
    path = tmp_path / "both.html"
    report.main([str(run), str(other), f"--output={path}"])
    page = path.read_text()
    names = [f"{directory.parent.name}/first" for directory in (run, other)]
    for name in names:
        assert f"{name}: step 3" in page
        in_figure = name.replace("/", r"\u002f")  # as Plotly writes JSON
        assert f'"name":"{in_figure}"' in page


def test_damaged_files_are_left_out_and_named(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "evaluations" / "test" / "metrics.json").write_text('{"3": {"visu')
    (run / "evaluations" / "test" / "3" / "visual_grounding" / "gallery.json").write_text("")
    page = run_report.write_report([run]).read_text()
    assert "evaluations/test/metrics.json is left out: " in page
    assert "gallery.json is left out: " in page
    assert "Loss of each objective" in page


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_a_directory_without_a_run_is_refused_in_one_sentence(tmp_path, capsys, make):
    make(tmp_path / "empty")
    with pytest.raises(SystemExit) as ended:
        report.main([str(tmp_path / "empty")])
    error = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and "empty" in error and "\n" not in error
    assert not (tmp_path / "empty" / "report.html").exists()


def write_validation_gallery(run, step, prediction):
    """Writes a gallery as training does."""
    folder = run / "galleries" / "test" / str(step)
    folder.mkdir(parents=True)
    example = dataclasses.replace(grounding_example(7), prediction=prediction)
    files.write_json(folder / "visual_grounding.json", gallery.to_json([example]))


@pytest.mark.parametrize("step, shown", [(2, 2), (3, 2), (4, 1)])
def test_the_latest_gallery_is_shown_and_of_the_same_step_the_evaluations(tmp_path, step, shown):
    run = write_run(tmp_path / "run")
    write_validation_gallery(run, step, "of a validation")
    (found,) = run_files.read_run(run).galleries
    assert len(found.examples) == shown and found.step == max(step, 3)


def test_galleries_of_earlier_versions_have_no_name_of_the_metric(tmp_path):
    run = write_run(tmp_path / "run")
    path = run / "evaluations" / "test" / "3" / "visual_grounding" / gallery.GALLERY_FILE
    examples = json.loads(path.read_text())
    for example in examples:
        del example["metric"]
    files.write_json(path, examples)
    assert run_report.write_report([run]).read_text().count("<dt>metric</dt><dd>0.5</dd>") == 2


def test_the_card_names_the_metric(tmp_path):
    run = write_run(tmp_path / "run")
    example = dataclasses.replace(grounding_example(0), metric="acc@0.5")
    path = run / "evaluations" / "test" / "3" / "visual_grounding" / gallery.GALLERY_FILE
    files.write_json(path, gallery.to_json([example]))
    assert "<dt>acc@0.5</dt><dd>0.5</dd>" in run_report.write_report([run]).read_text()


@pytest.mark.parametrize("content", [[{"index": 1}], {"a": 1}, [1]])
def test_a_gallery_of_another_shape_is_left_out_and_named(tmp_path, content):
    run = write_run(tmp_path / "run")
    path = run / "evaluations" / "test" / "3" / "visual_grounding" / gallery.GALLERY_FILE
    files.write_json(path, content)
    found = run_files.read_run(run)
    assert not found.galleries
    assert found.damaged == [
        "evaluations/test/3/visual_grounding/gallery.json is left out: it holds no examples of a "
        "gallery"
    ]
