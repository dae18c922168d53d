"""NoiseAdjust: whitening against its definition, and what happens when the noise is not usable."""

from __future__ import annotations

import numpy as np
import pytest

from gadgets.base import Context, GadgetError
from gadgets.layout import Flag
from gadgets.noise import NoiseAdjust
from tests.gadgets.readouts import make_header, noise_like, readout, through

RNG = np.random.default_rng(1)
MIXING = noise_like(RNG, 4, 4)
DWELL = {"sample_time_us": 5.0}


def noise_readout(samples: int = 512, channels: int = 4, dwell_us: float = 5.0):
    data = MIXING[:channels, :channels] @ noise_like(RNG, channels, samples)
    return readout(data, [Flag.IS_NOISE_MEASUREMENT], fields={"sample_time_us": dwell_us})


def test_noise_samples_come_out_white():
    noise = [noise_readout(), noise_readout()]
    imaging = [readout(one.data, fields=DWELL) for one in noise]
    out = through(NoiseAdjust(), [*noise, *imaging], make_header(bandwidth=0.5))  # 2 * 5/5 * 0.5 = 1
    white = np.concatenate([one.data for one in out], axis=1).astype(np.complex128)
    assert len(out) == 2
    np.testing.assert_allclose(white @ white.conj().T / (white.shape[1] - 1), np.eye(4), atol=2e-6)


@pytest.mark.parametrize(("bandwidth", "used"), [(None, 0.793), (0.6, 0.6)])
def test_scaled_by_the_ratio_of_dwell_times_and_the_bandwidth(bandwidth, used):
    noise = noise_readout(dwell_us=20.0)
    data = noise_like(RNG, 4, 16)
    header = make_header(bandwidth=bandwidth)
    slow, fast = through(NoiseAdjust(), [noise, readout(data, fields=DWELL), readout(data, fields={"sample_time_us": 2.0})], header)
    samples = noise.data.astype(np.complex128)
    lower = np.linalg.cholesky(samples @ samples.conj().T / (samples.shape[1] - 1))
    for out, dwell in ((slow, 5.0), (fast, 2.0)):
        np.testing.assert_allclose(out.data, np.sqrt(2 * dwell / 20 * used) * np.linalg.solve(lower, data), rtol=1e-4, atol=1e-5)


def test_preset_dwell_time_wins():
    noise, data = noise_readout(dwell_us=20.0), noise_like(RNG, 4, 16)
    (own,) = through(NoiseAdjust(), [noise, readout(data, fields=DWELL)])
    (preset,) = through(NoiseAdjust(noise_dwell_time_us_preset="80"), [noise, readout(data, fields=DWELL)])
    np.testing.assert_allclose(preset.data, own.data / 2, rtol=1e-5)


def test_unknown_dwell_time_leaves_the_scale_alone():
    noise = noise_readout(dwell_us=0.0)
    (out,) = through(NoiseAdjust(), [noise, readout(noise.data, fields=DWELL)])
    assert np.mean(np.abs(out.data) ** 2) == pytest.approx(1.0, rel=5e-3)


def test_without_noise_data_pass_untouched():
    item = readout(noise_like(RNG, 4, 16))
    assert through(NoiseAdjust(), [item]) == [item]


def test_switched_off_it_only_drops_the_noise():
    item = readout(noise_like(RNG, 4, 16))
    assert through(NoiseAdjust(perform_noise_adjust="false"), [noise_readout(), item]) == [item]


def test_works_without_any_header():
    noise = noise_readout()
    (out,) = through(NoiseAdjust(), [noise, readout(noise.data, fields=DWELL)], Context())
    assert out.data.dtype == np.complex64


def test_late_noise_is_ignored_and_counted():
    first, late, context = noise_readout(), noise_readout(), Context()
    data = noise_like(RNG, 4, 16)
    one, two = through(NoiseAdjust(), [first, readout(data), late, readout(data)], context)
    np.testing.assert_array_equal(one.data, two.data)
    assert context.counts == {"noise readouts ignored": 1}


def test_received_readout_stays_as_it_was():
    item = readout(noise_like(RNG, 4, 16), fields=DWELL, line=3)
    before = item.data.copy()
    (out,) = through(NoiseAdjust(), [noise_readout(), item])
    np.testing.assert_array_equal(item.data, before)
    assert out.header is not item.header
    assert out.header["idx"]["kspace_encode_step_1"] == 3


def test_dead_channel_is_an_error_that_names_it_and_the_way_out():
    noise = noise_readout()
    noise.data[2] = 0
    header = make_header(coils=["H1", "H2", "H3", "H4"])
    with pytest.raises(GadgetError, match=r"\[Noise\].*channel\(s\) 2 .*coils H3.*coil_mask.*singular_noise=pass"):
        through(NoiseAdjust("Noise"), [noise, readout(noise.data)], header)


def test_dead_channel_passes_when_asked_to():
    noise = noise_readout()
    noise.data[2] = 0
    item, context = readout(noise_like(RNG, 4, 16)), Context()
    assert through(NoiseAdjust(singular_noise="pass"), [noise, item], context) == [item]
    assert context.counts == {"scans with singular noise passed unwhitened": 1}


def test_too_few_noise_samples_is_an_error():
    with pytest.raises(GadgetError, match="3 noise samples, 4 channels"):
        through(NoiseAdjust(), [noise_readout(samples=3), readout(noise_like(RNG, 4, 16))])


def test_noise_that_is_no_number_is_an_error():
    noise = noise_readout()
    noise.data[1, 5] = np.nan
    with pytest.raises(GadgetError, match=r"channel\(s\) 1 .*not finite"):
        through(NoiseAdjust(), [noise, readout(noise_like(RNG, 4, 16))])


def test_other_channel_counts_pass_or_raise():
    item = readout(noise_like(RNG, 3, 16))
    assert through(NoiseAdjust(), [noise_readout(), item]) == [item]
    with pytest.raises(GadgetError, match="3 channels, the noise readouts had 4"):
        through(NoiseAdjust(pass_nonconformant_data="false"), [noise_readout(), item])
    with pytest.raises(GadgetError, match="3 channels, the ones before had 4"):
        through(NoiseAdjust(), [noise_readout(), noise_readout(channels=3)])


def test_scale_only_channel_is_not_mixed():
    noise, data = noise_readout(), noise_like(RNG, 4, 16)
    header = make_header(bandwidth=0.5, coils=["H1", "H2", "body", "H4"])
    (out,) = through(NoiseAdjust(scale_only_channels_by_name="body"), [noise, readout(data, fields=DWELL)], header)
    deviation = np.sqrt(np.sum(np.abs(noise.data[2].astype(np.complex128)) ** 2) / (noise.data.shape[1] - 1))
    np.testing.assert_allclose(out.data[2], data[2] / deviation, rtol=1e-5)
    changed = data.copy()
    changed[2] += 1
    (other,) = through(NoiseAdjust(scale_only_channels_by_name="body"), [noise, readout(changed, fields=DWELL)], header)
    np.testing.assert_array_equal(other.data[[0, 1, 3]], out.data[[0, 1, 3]])


def test_stock_properties_are_known():
    NoiseAdjust(noise_dependency_prefix="GadgetronNoiseCovarianceMatrix", noise_dependency_folder="/tmp/gadgetron")
