"""The check as a validator of a Kedro catalog entry: the last gate before a table is written or after it is read.

memories:
  type: pandas.ParquetDataset
  filepath: ...
  validator:
    class: sleep_pipeline.validation.catalog.FrameValidator
    "on": [save]
    options: {suite: memories}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sleep_pipeline.validation.rows import validate_rows
from sleep_pipeline.validation.suites import suite_named


class FrameValidator:
    """Refuses a table of which more than a share of the rows fail.

    Args:
        suite: name in `suites.SUITES`.
        max_bad_share: share of rows that may fail; what is to be sorted out is sorted out by a node, before.

    Raises:
        KeyError: there is no such suite.
        ValueError: the share is none.
    """

    def __init__(self, suite: str, max_bad_share: float = 0.0) -> None:
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share={max_bad_share} is no share; give a number between 0 and 1")
        self._suite, self._max_bad_share = suite_named(suite), max_bad_share

    def validate(self, data: Any) -> Any:
        """The table as it is.

        Args:
            data: a table, or a mapping that `metrics_frame` understands.

        Raises:
            FrameError: it cannot be checked.
            TooManyFailures: too many rows fail.
        """
        import pandas as pd

        frame = metrics_frame(data) if isinstance(data, Mapping) else data
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(f"{self._suite.name}: {type(data).__name__} is no table; save a pandas DataFrame")
        validate_rows(frame, self._suite, self._max_bad_share)
        return data


def metrics_frame(metrics: Mapping[str, Any]) -> Any:
    """A table of the numbers of a nested mapping, as the suite `metrics` wants it: `name`, `unit`, `value`.

    Names of nested numbers are joined with dots. A number is taken for a share, which must lie in [0, 1], if the last
    part of its name is `share`, `accuracy`, `recall` or `retention`, or ends in one of them.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []

    def collect(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                collect(f"{prefix}.{name}" if prefix else str(name), inner)
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            share = prefix.rsplit(".", 1)[-1].endswith(("share", "accuracy", "recall", "retention"))
            rows.append({"name": prefix, "unit": "share" if share else "", "value": value})

    collect("", metrics)
    return pd.DataFrame(rows, columns=["name", "unit", "value"])
