"""Pieces of hand-made paths, worked out by hand, and of longer ones, counted another way."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
import xarray as xr

from sojourn.models._excursion_records import KINDS, excursions, sign_runs

NAN = float("nan")


def rows(data, *names):
    """Tuples of the named variables, kinds in words."""
    columns = [
        [KINDS[k] for k in data["kind"].values] if name == "kind" else data[name].values.tolist()
        for name in names
    ]
    return list(zip(*columns, strict=True))


def assert_pieces(data, expected):
    """``expected``: kind, side, start and duration of each piece."""
    assert rows(data, "kind", "side") == [piece[:2] for piece in expected]
    np.testing.assert_allclose(data["start"], [piece[2] for piece in expected], atol=1e-9)
    np.testing.assert_allclose(data["duration"], [piece[3] for piece in expected], atol=1e-9)


# ------------------------------------------------------------------------------------------------ excursions


def test_crossings_by_straight_lines():
    # Crossings at 0.25, 1.5, 3.75 and 4.5.
    data = excursions([1.0, -3.0, 3.0, 9.0, -3.0, 3.0])
    assert_pieces(
        data,
        [
            ("first", 1, 0.0, 0.25),
            ("complete", -1, 0.25, 1.25),
            ("complete", 1, 1.5, 2.25),
            ("complete", -1, 3.75, 0.75),
            ("right", 1, 4.5, 0.5),
        ],
    )
    assert data["sensor"].values.tolist() == [0] * 5


def test_step_and_level():
    path = np.array([1.0, -3.0, 3.0, 9.0, -3.0, 3.0])
    data, shifted = excursions(path), excursions(2 * path + 7, level=7.0, step=0.5)
    np.testing.assert_allclose(shifted["duration"], 0.5 * data["duration"])
    np.testing.assert_allclose(shifted["start"], 0.5 * data["start"])
    assert rows(shifted, "kind", "side") == rows(data, "kind", "side")
    # Mean 10/6 and variance 118/6 - (10/6)^2 of the path.
    assert data.attrs == pytest.approx(
        {
            "level": 0.0,
            "path_mean": 10 / 6,
            "path_sd": np.sqrt(118 / 6 - (10 / 6) ** 2),
            "level_in_sd": -(10 / 6) / np.sqrt(118 / 6 - (10 / 6) ** 2),
            "step": 1.0,
            "smooth": 0.0,
            "windows": 1,
        }
    )
    assert shifted.attrs["level_in_sd"] == pytest.approx(data.attrs["level_in_sd"])
    assert (shifted.attrs["level"], shifted.attrs["step"]) == (7.0, 0.5)


def test_nan_cuts_a_record_into_windows():
    # A window with one crossing, a lone sample, a window without one, and one that begins on the other side.
    data = excursions([NAN, 2.0, 2.0, -2.0, NAN, 5.0, NAN, NAN, 1.0, 2.0, 3.0, NAN, -1.0, 3.0], step=10.0)
    assert_pieces(
        data,
        [
            ("first", 1, 10.0, 15.0),
            ("right", -1, 25.0, 5.0),
            ("empty", 1, 80.0, 20.0),
            ("first", -1, 120.0, 2.5),
            ("right", 1, 122.5, 7.5),
        ],
    )
    assert data.attrs["windows"] == 3
    assert data.attrs["path_mean"] == pytest.approx(15 / 9)  # the lone sample is of the path too


def test_several_records():
    path = [[1.0, -1.0, -1.0], [NAN, NAN, NAN], [-1.0, -1.0, -1.0], [-3.0, 1.0, 1.0]]
    data = excursions(path)
    assert_pieces(
        data,
        [
            ("first", 1, 0.0, 0.5),
            ("right", -1, 0.5, 1.5),
            ("empty", -1, 0.0, 2.0),
            ("first", -1, 0.0, 0.75),
            ("right", 1, 0.75, 1.25),
        ],
    )
    assert data["sensor"].values.tolist() == [0, 0, 2, 3, 3]
    labelled = xr.DataArray(path, dims=["sensor", "time"])
    xr.testing.assert_identical(excursions(labelled), data)


def test_a_level_that_is_not_reached():
    data = excursions([[1.0, 2.0, 1.0], [3.0, 4.0, 2.0]], level=10.0)
    assert rows(data, "kind", "side", "duration") == [("empty", -1, 2.0), ("empty", -1, 2.0)]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        # Touching is not crossing; stopping on the level is leaving it late.
        ([1.0, 0.0, 1.0, 2.0], [("empty", 1, 0.0, 3.0)]),
        ([-1.0, 0.0, -1.0, 0.0], [("empty", -1, 0.0, 3.0)]),
        ([1.0, 0.0, 0.0, -1.0], [("first", 1, 0.0, 2.0), ("right", -1, 2.0, 1.0)]),
        # At the start of a window a sample on the level has the side of what follows.
        ([0.0, 0.0, 1.0, -1.0], [("first", 1, 0.0, 2.5), ("right", -1, 2.5, 0.5)]),
        ([1.0, 1.0, NAN, 0.0, -1.0], [("empty", 1, 0.0, 1.0), ("empty", -1, 3.0, 1.0)]),
        ([0.0, 0.0, NAN, 1.0, 2.0], [("empty", -1, 0.0, 1.0), ("empty", 1, 3.0, 1.0)]),
        ([[1.0, 0.0], [0.0, -1.0]], [("empty", 1, 0.0, 1.0), ("empty", -1, 0.0, 1.0)]),
    ],
)
def test_samples_on_the_level(path, expected):
    assert_pieces(excursions(path), expected)


def test_no_piece_has_length_zero():
    """Crossings that round to the same time."""
    data = excursions([1.0, -1e-30, 1.0, -1e-30, 1.0])
    assert (data["duration"].values > 0).all()
    assert float(data["duration"].sum()) == pytest.approx(4.0)


def smooth_path(num_steps, seed=0):
    """A random path of period about 60 steps."""
    rng = np.random.default_rng(seed)
    frequency = 2 * np.pi / 60 * rng.normal(1.0, 0.3, (40, 1))
    return np.cos(frequency * np.arange(num_steps) + rng.uniform(0, 2 * np.pi, (40, 1))).sum(0)


def test_pieces_tile_the_windows_and_alternate():
    path = np.stack([smooth_path(3000, seed) for seed in range(3)])
    path[0, 1000:1010] = path[2, 5] = path[2, 7] = NAN
    data = excursions(path, step=0.25, level=1.5)
    # Windows of n samples last n - 1 steps; the lone sample between two gaps does not count.
    steps = (1000 - 1) + (1990 - 1) + (3000 - 1) + (5 - 1) + (2992 - 1)
    assert float(data["duration"].sum()) == pytest.approx(0.25 * steps)
    assert data.attrs["windows"] == 5
    inside = np.isin(data["kind"].values, [KINDS.index("complete"), KINDS.index("right")])
    side, end = data["side"].values, (data["start"] + data["duration"]).values
    assert (side[1:] == -side[:-1])[inside[1:]].all()
    np.testing.assert_allclose(data["start"].values[1:][inside[1:]], end[:-1][inside[1:]])
    height = path[:, 1:] - 1.5, path[:, :-1] - 1.5
    assert inside.sum() == (height[0] * height[1] < 0).sum()


# ------------------------------------------------------------------------------------------------- smoothing


def test_smoothing_leaves_the_crossings_of_a_slow_wave():
    """A sine of frequency w stays one, smaller by exp(-(w smooth)^2 / 2); the ends, half a kernel, differ."""
    step, smooth, period = 0.1, 0.5, 20.0
    time = np.arange(0, 60, step)
    wave = np.sin(2 * np.pi * (time - 3.0) / period)
    plain, smoothed = excursions(wave, step=step), excursions(wave, step=step, smooth=smooth)
    assert rows(plain, "kind", "side") == rows(smoothed, "kind", "side")
    np.testing.assert_allclose(smoothed["start"].values[1:], [3.0, 13.0, 23.0, 33.0, 43.0, 53.0], atol=1e-3)
    # Crossings within reach of the kernel (2.5) of an end are moved, by less than its width.
    assert float(smoothed["duration"][0]) == pytest.approx(3.0, abs=1e-3)
    damping = np.exp(-0.5 * (2 * np.pi * smooth / period) ** 2)
    assert smoothed.attrs["path_sd"] / plain.attrs["path_sd"] == pytest.approx(damping, abs=2e-3)
    assert smoothed.attrs["smooth"] == smooth


def test_smoothing_is_a_gaussian_average_renormalised_at_the_ends_of_windows():
    path = np.array([4.0, 1.0, -6.0, 2.0, NAN, -3.0, 5.0, 5.0])
    smooth, step = 0.6, 0.5
    expected = path.copy()
    for window in (slice(0, 4), slice(5, 8)):
        lag = step * np.subtract.outer(np.arange(8)[window], np.arange(8)[window])
        weight = np.exp(-(lag**2) / (2 * smooth**2))
        expected[window] = weight @ path[window] / weight.sum(1)
    data, by_hand = excursions(path, step=step, smooth=smooth), excursions(expected, step=step)
    assert rows(data, "kind", "side") == rows(by_hand, "kind", "side")
    np.testing.assert_allclose(data["duration"], by_hand["duration"], rtol=1e-5)  # 6e-7 of the kernel is cut
    assert data.attrs["path_mean"] == pytest.approx(by_hand.attrs["path_mean"], rel=1e-5)


def test_noise_is_warned_of_and_smoothed_away():
    clean = smooth_path(4000)
    noisy = clean + 0.15 * clean.std() * np.random.default_rng(1).normal(size=4000)
    crossed = int((np.diff(np.sign(clean)) != 0).sum())
    with pytest.warns(
        UserWarning,
        match=r"\d\d % of the \d+ complete excursions hold a single sample, the path crossing back at the "
        r"very next: .* `smooth=`, or fit its runs of signs instead, by sign_runs\(\)\.",
    ) as record:
        excursions(noisy)
    assert record[0].filename == __file__
    smoothed = excursions(noisy, smooth=4.0)
    assert int((smoothed["kind"] != KINDS.index("first")).sum()) == pytest.approx(crossed, abs=4)


def test_the_share_that_is_warned_of():
    """Complete excursions of one sample among longer ones: no warning at a fifth, one above it."""

    def path(single):
        lengths = [3, *[1] * single, *[3] * (20 - single), 3]
        return np.concatenate([np.full(n, (-1.0) ** k) for k, n in enumerate(lengths)])

    excursions(path(4))
    with pytest.warns(UserWarning, match="25 % of the 20 complete excursions hold a single sample"):
        excursions(path(5))
    # Nine of nine: too few to say.
    excursions([(-1.0) ** k for k in range(11)])


# --------------------------------------------------------------------------------------------------- refusals

PATH = [1.0, -1.0, 1.0]


@pytest.mark.parametrize(
    ("path", "options", "sentence"),
    [
        (PATH, {"step": 0.0}, r"excursions\(\): `step` must be positive, in units of time; got 0\.0\."),
        (PATH, {"step": NAN}, r"`step` must be positive"),
        (PATH, {"smooth": -1.0}, r"excursions\(\): `smooth` must be positive, in units of time; got -1\.0\."),
        (PATH, {"smooth": 0}, r"`smooth` must be positive, in units of time; got 0\."),
        (PATH, {"level": NAN}, r"`level` must be one finite number, in units of the path; got nan\."),
        (PATH, {"level": [0.0, 1.0]}, r"`level` must be one finite number"),
        (
            [2.5, 2.5, NAN, 2.5],
            {},
            r"excursions\(\): `path` is constant, 2\.5 throughout: nothing is crossed\.",
        ),
        ([NAN, NAN], {}, r"excursions\(\): `path` is NaN throughout; at least one window must be observed\."),
        ([1.0, NAN, -1.0], {}, r"`path` has no two samples in a row that are not NaN, so nothing is seen"),
        ([[1.0], [2.0]], {}, r"`path` has no two samples in a row"),
        ([[1.0, 2.0], [3.0, np.inf]], {}, r"`path` is infinite at \[1, 1\]; mark what was not observed by"),
        (3.0, {}, r"`path` has shape \(\); one record is \(T,\), several are \(N, T\), not empty\."),
        ([], {}, r"`path` has shape \(0,\)"),
        (
            [True, False],
            {},
            r"`path` is boolean, so crossings cannot be placed between samples; use sign_runs",
        ),
    ],
)
def test_refusals(path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        excursions(path, **options)


@pytest.mark.parametrize(
    ("path", "options", "sentence"),
    [
        (PATH, {"level": np.inf}, r"sign_runs\(\): `level` must be one finite number"),
        ([NAN, NAN], {}, r"sign_runs\(\): `path` is NaN throughout"),
        ([1.0, -np.inf], {}, r"sign_runs\(\): `path` is infinite at \[1\]; mark what"),
        (np.zeros((2, 2, 2)), {}, r"sign_runs\(\): `path` has shape \(2, 2, 2\)"),
    ],
)
def test_refusals_of_sign_runs(path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        sign_runs(path, **options)


# -------------------------------------------------------------------------------------------------- sign runs


def test_sign_runs():
    data = sign_runs([[2.0, 3.0, 0.0, -1.0, 2.0, NAN], [NAN, 2.0, NAN, -1.0, -1.0, 2.0]], level=1.0)
    assert rows(data, "sensor", "start", "length", "side", "kind") == [
        (0, 0, 2, 1, "first"),
        (0, 2, 2, -1, "complete"),
        (0, 4, 1, 1, "right"),
        (1, 1, 1, 1, "empty"),
        (1, 3, 2, -1, "first"),
        (1, 5, 1, 1, "right"),
    ]
    values = np.array([2, 3, 0, -1, 2, 2, -1, -1, 2])
    assert data.attrs == pytest.approx(
        {
            "level": 1.0,
            "path_mean": values.mean(),
            "path_sd": values.std(),
            "level_in_sd": (1 - values.mean()) / values.std(),
            "windows": 3,
        }
    )


def test_sign_runs_of_booleans():
    data = sign_runs([True, False, False, True, True], level=17.0)
    assert rows(data, "length", "side") == [(1, 1), (2, -1), (2, 1)]
    assert data.attrs == {"windows": 1}


def test_a_sample_on_the_level_counts_as_below():
    assert rows(sign_runs([1.0, 0.0, 1.0]), "length", "side") == [(1, 1), (1, -1), (1, 1)]


def test_a_constant_path_is_one_run():
    data = sign_runs([3.0, 3.0, 3.0])
    assert rows(data, "length", "kind") == [(3, "empty")]
    assert np.isnan(data.attrs["level_in_sd"])


def test_sign_runs_against_groupby():
    path = smooth_path(3000) + np.random.default_rng(2).normal(size=3000)
    data = sign_runs(path)
    expected = [(1 if up else -1, len(list(run))) for up, run in groupby(path > 0)]
    assert rows(data, "side", "length") == expected
    kinds = [KINDS[k] for k in data["kind"].values]
    assert kinds == ["first", *["complete"] * (len(expected) - 2), "right"]


def test_kinds_are_labelled():
    for data in (excursions(PATH), sign_runs(PATH)):
        kind = data["kind"]
        assert kind.attrs["flag_meanings"].split() == list(KINDS)
        assert kind.attrs["flag_values"] == list(range(len(KINDS)))
        assert kind.dtype.kind == data["side"].dtype.kind == data["sensor"].dtype.kind == "i"
        assert all("long_name" in variable.attrs for variable in data.data_vars.values())
