"""How long replies took: counted by the package hdrhistogram."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from tcpjson.bench.results import Latency

#: The percentiles that are shown.
PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)
#: Nothing is told apart above it; seconds.
HIGHEST = 3600.0
_MICRO = 1_000_000
_DIGITS = 3

MISSING = "the percentiles of latency need the package hdrhistogram: pip install 'tcpjson[bench]'"


def available() -> bool:
    """Whether the package is installed."""
    try:
        _package()
    except ImportError:
        return False
    return True


def _package() -> Any:
    # It has no types.
    return importlib.import_module("hdrh.histogram")


def _histogram() -> Any:
    return _package().HdrHistogram(1, int(HIGHEST * _MICRO), _DIGITS)


def encoded(counts: Mapping[int, int]) -> str:
    """
    A histogram as text.

    Args:
        counts: how often each latency was seen, in microseconds.
    """
    histogram = _histogram()
    highest = int(HIGHEST * _MICRO)
    for micros, count in counts.items():
        histogram.record_value(min(max(micros, 1), highest), count)
    return str(histogram.encode().decode("ascii"))


def merged(texts: Iterable[str]) -> Latency | None:
    """What several histograms say together, None where nothing was counted."""
    histogram = _histogram()
    for text in texts:
        histogram.decode_and_add(text)
    if not histogram.get_total_count():
        return None
    return Latency(
        percentiles=[(each, histogram.get_value_at_percentile(each) / _MICRO) for each in PERCENTILES],
        mean=histogram.get_mean_value() / _MICRO,
        maximum=histogram.get_max_value() / _MICRO,
        count=histogram.get_total_count(),
    )
