"""Limits of uploads, and token buckets."""

import io

import pytest
from PIL import Image, ImageFile

from ofa_jax.serving import limits as serving_limits
from ofa_jax.serving.limits import Limits, RateLimiter, TooLargeError, decode_upload
from ofa_jax.utils.bad_input import InvalidRecordError


def png(width, height):
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_upload_within_the_limits_is_decoded():
    assert decode_upload(png(100, 50), Limits()).size == (100, 50)
    assert decode_upload(png(100, 50), Limits(max_image_pixels=5000)).mode == "RGB"


def test_pixels_are_counted_before_they_are_decoded(monkeypatch):
    large = png(10_000, 10_000)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(TooLargeError, match="10000 x 10000 pixels; the limit is 25,000,000: send"):
        decode_upload(large, Limits())


def test_bytes_are_counted_before_anything():
    with pytest.raises(TooLargeError, match="has 4,000 bytes; the limit is 3,000"):
        decode_upload(b"?" * 4000, Limits(max_image_bytes=3000))


@pytest.mark.parametrize("content", [b"just text", b"%!PS", png(20, 20)[:40], b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_a_sentence(content):
    with pytest.raises(InvalidRecordError, match="its image"):
        decode_upload(content, Limits())


def test_a_body_holds_the_largest_image_in_base64():
    limits = Limits(max_image_bytes=3 << 20)
    assert limits.max_body_bytes > 4 << 20


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_bucket_holds_a_burst_and_fills_up_over_time():
    clock = Clock()
    rates = RateLimiter(Limits(requests_per_second=2, burst=3), clock)
    assert [rates.take("10.0.0.1") for _ in range(3)] == [0, 0, 0]
    assert rates.take("10.0.0.1") == pytest.approx(0.5)
    assert rates.take("10.0.0.2") == 0  # another client
    clock.now += 0.5
    assert rates.take("10.0.0.1") == 0
    assert rates.take("10.0.0.1") == pytest.approx(0.5)
    clock.now += 1000
    assert [rates.take("10.0.0.1") > 0 for _ in range(4)] == [False, False, False, True]


def test_addresses_of_one_ipv6_network_share_a_bucket():
    rates = RateLimiter(Limits(requests_per_second=1, burst=1), Clock())
    assert rates.take("2001:db8::1") == 0
    assert rates.take("2001:db8::2") > 0
    assert rates.take("2001:db8:0:1::2") == 0
    assert rates.take("::ffff:10.0.0.1") == 0
    assert rates.take("10.0.0.1") > 0


def test_a_rate_of_zero_is_no_limit():
    rates = RateLimiter(Limits(requests_per_second=0, burst=1), Clock())
    assert not any(rates.take("10.0.0.1") for _ in range(100))


def test_the_books_on_clients_do_not_grow(monkeypatch):
    monkeypatch.setattr(serving_limits, "_MAX_CLIENTS", 10)
    rates = RateLimiter(Limits(), Clock())
    for number in range(100):
        rates.take(f"10.0.0.{number}")
    assert len(rates._buckets) == 10
