"""What MFU is measured against: the peak of the devices at hand, by what they call themselves."""

from ofa_jax.utils.hardware import CHIPS

_CHIP_OF_KIND = {
    "TPU v3": "v3",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA H100 80GB HBM3": "h100",
}
"""`jax.Device.device_kind` -> a key of CHIPS. Those of TPUs are what libtpu 0.0.42 says."""

_OTHER_FLOPS = {
    "NVIDIA H200": CHIPS["h100"].flops,  # the same chip with more memory
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
}
"""Dense bf16, from NVIDIA's data sheets."""


def peak_flops(device_kind: str) -> float | None:
    """bf16 matrix operations per second that one device of JAX can make at most.

    Args:
      device_kind: as `jax.Device.device_kind`.

    Returns:
      None for a kind that is not listed, CPUs among them.
    """
    if device_kind in _CHIP_OF_KIND:
        chip = CHIPS[_CHIP_OF_KIND[device_kind]]
        return chip.flops / chip.devices
    return _OTHER_FLOPS.get(device_kind)
