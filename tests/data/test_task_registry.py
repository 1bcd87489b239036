"""Tasks are the same before seqio is imported and after, whichever import comes first."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(program, small_scenes):
    """Runs a program in a process of its own, which has not imported seqio; returns its JSON."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OFA_DATA_DIR": str(small_scenes)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(small_scenes):
    """What is found without seqio, and with it, in the same process."""
    return run(
        """
        import hashlib, json, sys
        import numpy as np
        from ofa_jax.data import registration, seqio_bridge, task_registry
        from ofa_jax.data.pretraining_settings import scenes_settings
        from ofa_jax.evaluation import load_tasks
        import tasks.pretraining, tasks.reworded, tasks.scenes_unseen
        import tasks.scenes_negative_controls, tasks.vqa

        registration.add_mixture("nested", [("ofa_pretrain_pairs", 2.0), ("text_infilling", 0.5)])
        registration.add_mixture("halves", ["image_captioning", ("text_infilling", 0)], 0.5)
        settings = scenes_settings(image_size=64, code_image_size=32, randaugment=True)
        fewer = scenes_settings(
            image_size=64, code_image_size=32, rates={"image_captioning": 0, "visual_grounding": 7}
        )
        NAMES = (
            "ofa_pretrain", "ofa_pretrain_pairs", "nested", "halves", "reworded_images",
            "scenes_controls", "region_yes_no_10", "text_infilling",
        )

        def digest(value):
            made = hashlib.sha256()
            for name in sorted(value):
                made.update(name.encode() + np.asarray(value[name]).tobytes())
            return made.hexdigest()

        def describe():
            seen = {}
            for name in NAMES:
                own = seen[name] = {}
                for label, given in (("all", settings), ("fewer", fewer)):
                    own[f"rates of {label}"] = seqio_bridge.rates(name, given)
                for split in ("train", "validation"):
                    for task in seqio_bridge.weighted_tasks(name, split, settings):
                        example = task.preprocess(task.records[1], np.random.default_rng(5))
                        own[f"{split} {task.name}"] = [
                            task.rate, len(task.records), repr(task.preprocess)[:200],
                            digest(dict(example)),
                        ]
                vocabulary = seqio_bridge.vocabulary_of(name, settings)
                own["vocabulary"] = [type(vocabulary).__name__, vocabulary.vocab_size]
                own["the same"] = vocabulary == load_tasks.vocabulary_of(name, settings)
            for call in (
                lambda: seqio_bridge.rates("ofa_pretrain_pars"),
                lambda: seqio_bridge.weighted_tasks("text_infilling", "tset", settings),
            ):
                try:
                    call()
                except ValueError as error:
                    seen.setdefault("errors", []).append(str(error))
            return seen

        before = describe()
        assert "seqio" not in sys.modules and "tensorflow" not in sys.modules
        waited = task_registry.names()
        import seqio
        assert not task_registry.names()
        registered = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
        after = describe()
        later = []
        registration.add_mixture("later", [("image_captioning", 1.0)])
        later += list(seqio.get_mixture_or_task("later").splits)
        try:
            registration.add_mixture("later", [("image_captioning", 1.0)])
        except ValueError as error:
            later.append(str(error))
        print(json.dumps([before, after, sorted(waited), sorted(registered), later]))
        """,
        small_scenes,
    )


def test_tasks_and_examples_do_not_depend_on_who_is_asked(found):
    before, after, *_ = found
    assert before.keys() == after.keys() and len(before) == 9
    for name in before:
        assert before[name] == after[name], name
    assert before["nested"]["rates of fewer"].keys() < before["nested"]["rates of all"].keys()
    assert before["halves"]["rates of all"] == {"image_captioning": 0.5}
    assert all(own["the same"] for name, own in before.items() if name != "errors")


def test_unknown_names_and_splits_are_sentences_in_both(found):
    before, *_ = found
    unknown, split = before["errors"]
    assert unknown.startswith("No task or mixture is called 'ofa_pretrain_pars'. Did you mean ofa_")
    assert split == "There is no split 'tset': choose from train, validation, test, test_shifted."


def test_importing_seqio_registers_everything_with_it(found):
    *_, waited, registered, later = found
    assert waited == registered and {"vqa", "ofa_pretrain", "scenes_controls"} <= set(waited)
    *splits, refused = later
    assert "train" in splits and "later" in refused, "from then on seqio's registry is the only one"


USES = {
    "seqio first": "import seqio, tasks.pretraining",
    "tasks first": "import tasks.pretraining, seqio",
    "a preprocessor, which imports seqio itself": """
        import tasks.pretraining
        from ofa_jax.data.seqio_tasks import numpy_preprocessor
        import seqio""",
    "a vocabulary, which imports seqio itself": """
        import tasks.pretraining
        from ofa_jax.data.seqio_vocabulary import SeqioVocabulary
        import seqio""",
    "features and fill_features": """
        import tasks.pretraining
        from ofa_jax.data.registration import PRETRAINING_FEATURES, fill_features
        assert set(PRETRAINING_FEATURES) > {"inputs", "targets"} and callable(fill_features)
        import seqio""",
    "the converter": """
        import tasks.pretraining
        from ofa_jax.data.feature_converter import OFAFeatureConverter
        import seqio""",
    "a gin file's import": """
        import gin, tasks.pretraining
        gin.parse_config("import seqio")
        import seqio""",
}


# Each imports TensorFlow; these are where registration is most easily missed.
ALWAYS = ("tasks first", "a vocabulary, which imports seqio itself", "features and fill_features")


@pytest.mark.parametrize(
    "use",
    [pytest.param(use, marks=() if use in ALWAYS else (pytest.mark.slow,)) for use in USES],
)
def test_seqio_finds_the_tasks_whichever_import_comes_first(use, small_scenes):
    program = textwrap.dedent(USES[use]) + textwrap.dedent(
        """
        import json
        mixture = seqio.get_mixture_or_task("ofa_pretrain")
        task = seqio.TaskRegistry.get("image_captioning")
        dataset = task.get_dataset(None, "validation", shuffle=False)
        example = next(dataset.as_numpy_iterator())
        print(json.dumps([len(mixture.tasks), task.supports_caching, len(task.metric_fns),
                          sorted(example)]))
        """
    )
    tasks, caches, metrics, fields = run(program, small_scenes)
    assert (tasks, caches, metrics) == (8, True, 1)
    assert {"inputs", "targets", "image", "references"} <= set(fields)


def test_a_task_of_seqio_mixes_with_those_that_waited(small_scenes):
    """As `docs/guides/seqio.md` has it; seqio is imported by the user's module, after the tasks."""
    program = """
    import json, tasks.pretraining
    from ofa_jax.data import seqio_bridge
    before = seqio_bridge.rates("ofa_pretrain_text")
    import seqio
    seqio.MixtureRegistry.add("mine", [("text_infilling", 2.0), ("image_captioning", 1.0)])
    print(json.dumps([before, seqio_bridge.rates("mine"),
                      len(seqio_bridge.weighted_tasks("mine", "train"))]))
    """
    before, mine, count = run(program, small_scenes)
    assert before == {"text_infilling": 1.0}
    assert mine == {"image_captioning": 1.0, "text_infilling": 2.0} and count == 2


REFUSED = {
    "a name that is taken": ("[('text_infilling', 1.0)], name='ofa_pretrain'", "is called 'ofa_"),
    "an unknown task": ("[('text_infiling', 1.0)]", "Did you mean text_infilling"),
    "no rate": ("['text_infilling']", "has no rate in the mixture new: give one"),
    "no task": ("[]", "has no tasks: give it at least one"),
    "an odd name": ("[('text_infilling', 1.0)], name='a b'", "cannot be called 'a b'"),
}


def test_mixtures_that_mean_nothing_are_refused_without_seqio(small_scenes):
    calls = {name: call for name, (call, _) in REFUSED.items()}
    program = f"""
    import json, sys, tasks.pretraining
    from ofa_jax.data.registration import add_mixture
    sentences = {{}}
    for name, call in {calls!r}.items():
        try:
            eval(f"new({{call}})", {{"new": lambda tasks, name="new": add_mixture(name, tasks)}})
        except ValueError as error:
            sentences[name] = str(error)
    assert "seqio" not in sys.modules
    print(json.dumps(sentences))
    """
    sentences = run(program, small_scenes)
    for name, (_, expected) in REFUSED.items():
        assert expected in sentences[name], name
