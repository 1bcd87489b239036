"""FID, Inception score and CLIP score against closed forms and the formulas of other packages."""

import numpy as np
import pytest

from ofa_jax.evaluation.metrics.generated_images import (
    FeatureStatistics,
    clip_score,
    fid,
    frechet_distance,
    inception_score,
)

RNG = np.random.default_rng(0)


def correlated(count, size, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, size)) @ rng.normal(size=(size, size)) + rng.normal(size=size)


def test_fid_of_independent_features_has_a_closed_form():
    """Of normal distributions with diagonal covariances: |m - n|^2 + sum (s - t)^2."""
    m, n, s, t = RNG.normal(size=7), RNG.normal(size=7), RNG.random(7), RNG.random(7)
    one = FeatureStatistics(m, np.diag(s**2))
    other = FeatureStatistics(n, np.diag(t**2))
    expected = ((m - n) ** 2).sum() + ((s - t) ** 2).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("count", [40, 9])
def test_fid_equals_the_formula_with_the_root_of_the_product(count):
    """With fewer images than features the covariances are singular."""
    one, other = correlated(count, 16, 1), correlated(count, 16, 2)
    covariances = [np.cov(x, rowvar=False) for x in (one, other)]
    if count < 16:
        covariances = [c + 1e-10 * np.eye(16) for c in covariances]
    values, vectors = np.linalg.eig((covariances[0] @ covariances[1]).astype(complex))
    root = vectors @ np.diag(np.sqrt(values)) @ np.linalg.inv(vectors)
    difference = one.mean(axis=0) - other.mean(axis=0)
    expected = difference @ difference + np.trace(
        covariances[0] + covariances[1] - 2 * np.real(root)
    )
    assert fid(one, other)["fid"] == pytest.approx(expected, rel=1e-4 if count < 16 else 1e-9)
    assert fid(one, other)["fid"] == pytest.approx(fid(other, one)["fid"], rel=1e-9)
    assert fid(one, one + 3.0)["fid"] == pytest.approx(16 * 9, rel=1e-9)
    assert fid(one, one)["fid"] < fid(one, one + 1.0)["fid"] < fid(one, one + 2.0)["fid"]


def test_the_inception_score_has_its_bounds_and_its_formula():
    assert inception_score(np.full((20, 5), 0.2))["inception_score"] == pytest.approx(1)
    one_hot = np.eye(5)[np.tile(np.arange(5), 20)]
    score = inception_score(one_hot, splits=10)
    assert score["inception_score"] == pytest.approx(5)
    assert score["inception_score_std"] == pytest.approx(0)

    logits = 2 * RNG.normal(size=(53, 11))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    parts = [p[k * 53 // 4 : (k + 1) * 53 // 4] for k in range(4)]
    values = [
        np.exp(np.mean([(row * np.log(row / part.mean(axis=0))).sum() for row in part]))
        for part in parts
    ]
    score = inception_score(p, splits=4)
    assert score["inception_score"] == pytest.approx(np.mean(values), rel=1e-12)
    assert score["inception_score_std"] == pytest.approx(np.std(values), rel=1e-9)


def test_the_clip_score_is_the_mean_cosine_of_pairs():
    images = RNG.normal(size=(6, 8))
    assert clip_score(images, 3 * images)["clip_score"] == pytest.approx(1)
    assert clip_score(images, -images, scale=100)["clip_score"] == pytest.approx(-100)
    texts = RNG.normal(size=(6, 8))
    cosines = [
        image @ text / (np.sqrt(image @ image) * np.sqrt(text @ text))
        for image, text in zip(images, texts, strict=True)
    ]
    assert clip_score(images, texts)["clip_score"] == pytest.approx(np.mean(cosines), rel=1e-12)


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda: fid(np.ones((1, 3)), np.ones((5, 3))), "at least 2 images; got 1"),
        (lambda: fid(np.ones((5, 3)), np.ones((5, 4))), "compares 3 features with 4"),
        (lambda: fid(np.ones(3), np.ones((5, 3))), r"float64\[3\]: give the features"),
        (lambda: fid(np.full((5, 3), np.nan), np.ones((5, 3))), "not finite"),
        (lambda: fid([["a"]], np.ones((5, 3))), "give the features"),
        (lambda: inception_score(np.ones((5, 3))), "apply a softmax"),
        (lambda: inception_score(np.full((5, 2), 0.5)), "5 images into 10 parts: give 1 to 5"),
        (lambda: clip_score(np.ones((5, 3)), np.ones((4, 3))), "one caption for each image"),
        (lambda: clip_score(np.zeros((2, 3)), np.ones((2, 3))), "has no direction"),
        (lambda: FeatureStatistics(np.ones(3), np.ones((2, 2))), r"are \[3\] and \[2, 2\]"),
    ],
)
def test_features_that_cannot_be_compared_are_one_sentence(compute, message):
    with pytest.raises(ValueError, match=message):
        compute()


def test_singular_covariances_and_few_images_have_a_distance_and_a_sentence():
    """Two images have covariances of rank 1: eigenvalues a = |x - y|^2 / 2 in closed form."""
    one, other = np.zeros((2, 5)), np.zeros((2, 5))
    one[0, 0], other[0, 1], other[:, 4] = 2.0, 4.0, 3.0
    # Means (1, 0, ...) and (0, 2, ..., 3): 1 + 4 + 9; traces 2 and 8; the planes are orthogonal.
    assert fid(one, other)["fid"] == pytest.approx(14 + 2 + 8, rel=1e-9)
    assert fid(one, one)["fid"] == pytest.approx(0, abs=1e-9)
    same = np.ones((4, 5))
    assert fid(same, same + 2)["fid"] == pytest.approx(5 * 4, rel=1e-9)
    sentence = FeatureStatistics.of(one).describe_shortage()
    assert sentence is not None and "of 2 images with 5 features each" in sentence
    assert FeatureStatistics.of(np.eye(6)[:, :5]).describe_shortage() is None
    assert FeatureStatistics(np.zeros(5), np.eye(5)).describe_shortage() is None


def test_a_single_image_has_an_inception_score_and_no_distance():
    assert inception_score([[0.2, 0.8]], splits=1)["inception_score"] == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 2 images; got 1"):
        fid(np.ones((1, 3)), np.ones((1, 3)))
    assert clip_score([[1.0, 0.0]], [[2.0, 0.0]])["clip_score"] == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(300, 200), (40, 50), (300, 20)])
def test_fid_equals_pytorch_fid_and_torch_fidelity(counts):
    """Also with fewer images than features. tests/interop/test_clip_peer.py says how to run it.

    Its root of a singular product is of 1e-4 of the distance.
    """
    peer = pytest.importorskip("pytorch_fid.fid_score", reason="pytorch-fid is not installed")
    fidelity = pytest.importorskip("torch_fidelity.metric_fid", reason="it is not installed")
    one, other = correlated(counts[0], 64, 3), correlated(counts[1], 64, 4)
    statistics = [(x.mean(axis=0), np.cov(x, rowvar=False)) for x in (one, other)]
    close = 1e-6 if min(counts) > 64 else 1e-3
    ours = fid(one, other)["fid"]
    theirs = peer.calculate_frechet_distance(*(part for pair in statistics for part in pair))
    assert ours == pytest.approx(theirs, rel=close)
    named = [dict(zip(("mu", "sigma"), pair, strict=True)) for pair in statistics]
    found = fidelity.fid_statistics_to_metric(*named, verbose=False)
    (value,) = found.values()
    assert ours == pytest.approx(value, rel=close)


@pytest.mark.slow
def test_fid_equals_pytorch_fid():
    """`pip install pytorch-fid`, then `bash tests/run.sh slow`."""
    peer = pytest.importorskip("pytorch_fid.fid_score", reason="pytorch-fid is not installed")
    one, other = correlated(300, 64, 3), correlated(200, 64, 4)
    ours = [FeatureStatistics.of(x) for x in (one, other)]
    theirs = peer.calculate_frechet_distance(
        *(part for x in (one, other) for part in (x.mean(axis=0), np.cov(x, rowvar=False)))
    )
    assert frechet_distance(*ours) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.slow
def test_the_inception_score_equals_torch_fidelity():
    """`pip install torch-fidelity`, then `bash tests/run.sh slow`."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    peer = pytest.importorskip(
        "torch_fidelity.metric_isc", reason="torch-fidelity is not installed"
    )
    logits = 2 * np.random.default_rng(5).normal(size=(200, 30))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    theirs = peer.isc_features_to_metric(torch.tensor(logits), splits=10, shuffle=False)
    ours = inception_score(p, splits=10)
    assert ours["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours["inception_score_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-5)
