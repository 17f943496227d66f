"""A value of each of Arrow's types that JSON has not, and times that no calendar has."""

import datetime as dt
from decimal import Decimal
from typing import Any

import pyarrow as pa

MOMENT = dt.datetime(2024, 5, 1, 10, 30)
TYPES: dict[str, tuple[Any, Any, str]] = {
    "date": (pa.date32(), dt.date(2024, 5, 1), "2024-05-01"),
    "moment": (pa.timestamp("us"), MOMENT, "2024-05-01T10:30:00"),
    "tenths": (pa.timestamp("ms"), MOMENT.replace(microsecond=100_000), "2024-05-01T10:30:00.1"),
    "nanoseconds": (pa.timestamp("ns"), 1, "1970-01-01T00:00:00.000000001"),
    "zone": (pa.timestamp("s", "Europe/Paris"), 0, "1970-01-01T01:00:00+01:00"),
    "no zone": (pa.timestamp("s", "Mars/Phobos"), 0, "1970-01-01T00:00:00Z"),
    "time": (pa.time64("us"), dt.time(9, 30), "09:30:00"),
    "duration": (pa.duration("ms"), dt.timedelta(seconds=-1.5), "-PT1.5S"),
    "decimal": (pa.decimal128(9, 2), Decimal("1.50"), "1.50"),
    "bytes": (pa.binary(), b"\x00\xff", "AP8="),
    "many bytes": (
        pa.large_binary(),
        b"x" * 1000,
        "sha256:44f8354494a5ba03ba1792a8d3e9c534c47a9181980fde7a3f44b06ef2ae7c7f",
    ),
    "nan": (pa.float64(), float("nan"), ""),
    "infinite": (pa.float64(), float("-inf"), "-inf"),
    "half": (pa.float16(), 1.5, "1.5"),
    "true": (pa.bool_(), True, "true"),
    "numbers": (pa.list_(pa.float64()), [1.0, None, float("nan")], "[1.0, null, null]"),
    "dates": (pa.list_(pa.date32()), [dt.date(2024, 5, 1)], '["2024-05-01"]'),
    "map": (pa.map_(pa.string(), pa.decimal128(3, 1)), [("a", Decimal("0.5"))], '{"a": "0.5"}'),
    "category": (pa.dictionary(pa.int8(), pa.string()), "red", "red"),
    "record": (
        pa.struct([("at", pa.date32()), ("n", pa.int8())]),
        {"at": None, "n": 1},
        '{"at": null, "n": 1}',
    ),
}
NO_TIME = (pa.timestamp("us"), 2**62), (pa.date32(), 2**31 - 1), (pa.timestamp("s"), 2**53)
