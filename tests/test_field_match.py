"""Matching of rows and frames: for many clocks, every row has its own frame or its episode is rejected."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lamina.data.lerobot.match import VideoSpan, align_rows, rate_of
from lamina.data.video import FrameClock

RATES = [10.0, 12.0, 25.0, 30.0, 30000 / 1001, 24000 / 1001, 29.2, 60.0, 50.0]


def clock(fps: float, start: float = 0.0) -> FrameClock:
    return FrameClock(start, fps, None, 0.25 / fps)


@settings(max_examples=400, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 1500), min_size=1, max_size=6),
    table=st.sampled_from(RATES),
    video=st.sampled_from(RATES),
    by_video=st.booleans(),
    trailing=st.integers(0, 3),
    padding=st.integers(0, 2),
    start=st.sampled_from([0.0, 0.004]),
    hardware=st.booleans(),
    stated_end=st.booleans(),
    first=st.integers(0, 5),
)
def test_one_picture_a_row(lengths, table, video, by_video, trailing, padding, start, hardware, stated_end, first):
    """A recorder writes a picture for each row. Its table has another clock, its file pictures between and after the episodes; some
    episodes may have been deleted from the table since."""
    assume(2 / 3 < table / video < 3 / 2)  # beyond that a table is one of every second picture
    starts = np.cumsum([0] + [n + padding for n in lengths])
    count = int(starts[-1]) + trailing
    spans = []
    for n, length in enumerate(lengths):
        rate = video if by_video else table
        times = np.arange(length) / table
        if hardware:
            times = times + np.random.default_rng(n).uniform(0, 0.1 / table, length) * (np.arange(length) > 0)
        begin = starts[n] / rate
        end = (starts[n] + length) / rate if stated_end else np.nan
        spans.append(VideoSpan(n, begin, end, begin + times, rate_of(times, table), table))
    spans = spans[first:] if len(spans) > first else spans
    found = align_rows(clock(video, start), count, spans)
    truth = {s.number: range(int(starts[s.number]), int(starts[s.number]) + len(s.times)) for s in spans}
    assert {*found.pictures, *found.refused} == {*truth} and not {*found.pictures} & {*found.refused}
    for n, pictures in found.pictures.items():
        assert list(pictures) == list(truth[n]), f"episode {n}"
    exact = table == video and not hardware
    if exact or (trailing == padding == 0 and len(spans) == len(lengths) and abs(table / video - 1) < 0.03):
        assert not found.refused  # nothing is refused that leaves no doubt


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 60), min_size=2, max_size=8),
    shifts=st.lists(st.integers(-3, 3), min_size=8, max_size=8),
    trailing=st.integers(0, 4),
)
def test_no_two_episodes_share_a_picture(lengths, shifts, trailing):
    """Whatever the table says of where they begin."""
    starts = np.cumsum([0, *lengths])
    spans = [
        VideoSpan(
            n,
            max(0, a + shift) / 10,
            (a + shift + length) / 10,
            (max(0, a + shift) + np.arange(length)) / 10,
            10,
            10,
        )
        for n, (a, length, shift) in enumerate(zip(starts.tolist(), lengths, shifts, strict=False))
    ]
    found = align_rows(clock(10), int(starts[-1]) + trailing, spans)
    pictures = [p for numbers in found.pictures.values() for p in numbers]
    assert len(pictures) == len(set(pictures)) and all(0 <= p < starts[-1] + trailing for p in pictures)
    if trailing == 0 and len(found.pictures) == len(lengths):
        assert sorted(pictures) == list(range(starts[-1]))
