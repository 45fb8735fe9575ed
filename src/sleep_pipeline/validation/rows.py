"""Splits a table into the rows that pass a suite and those that do not, each with its reasons."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sleep_pipeline.environment import apply_defaults
from sleep_pipeline.validation.suites import Check, Suite, suite_named

if TYPE_CHECKING:
    import pandas as pd

REASON = "reason"
_SHOWN = 3
_TYPED = "{} has its type"
# Great Expectations keeps its current context in a global.
_ONE_AT_A_TIME = threading.Lock()


class FrameError(ValueError):
    """A table cannot be checked: it lacks a column, or a check cannot run on it."""


class TooManyFailures(ValueError):
    """So large a share of the rows failed that the night must not go on with the rest."""


@dataclass(frozen=True)
class CheckResult:
    """How one check ended.

    Attributes:
        check: what was checked.
        looked_at: at how many rows; rows without a value are looked at by no check but that for a value.
        failed: how many of them failed.
    """

    check: Check
    looked_at: int
    failed: int


@dataclass(frozen=True)
class Checked:
    """A table after its checks.

    Attributes:
        suite: name of the suite.
        good: rows that passed every check, unchanged.
        bad: the others, with all their reasons in the column `reason`.
        results: one for each check.
    """

    suite: str
    good: pd.DataFrame
    bad: pd.DataFrame
    results: tuple[CheckResult, ...]

    @property
    def rows(self) -> int:
        """How many there were."""
        return len(self.good) + len(self.bad)

    @property
    def success_share(self) -> float:
        """Share of rows that passed; 1 for a table without rows."""
        return len(self.good) / self.rows if self.rows else 1.0

    def require(self, max_bad_share: float) -> Checked:
        """Itself, unless a larger share of the rows failed.

        Raises:
            TooManyFailures: with the counts and the first reasons.
        """
        if len(self.bad) <= max_bad_share * self.rows:
            return self
        first = []
        for at, row in self.bad.head(_SHOWN).iterrows():
            place = f"{row['source']}:{row['line']}" if {"source", "line"} <= set(self.bad.columns) else f"row {at}"
            first.append(f"{place}: {row[REASON]}")
        more = f"; and {len(self.bad) - _SHOWN} more" if len(self.bad) > _SHOWN else ""
        raise TooManyFailures(
            f"{self.suite}: {len(self.bad)} of {self.rows} rows failed, more than the share {max_bad_share:g} that is "
            f"allowed ({'; '.join(first)}{more}); correct them, or raise max_bad_share"
        )


def validate_rows(frame: pd.DataFrame, suite: str | Suite, max_bad_share: float = 1.0) -> Checked:
    """Check every row of a table.

    Args:
        frame: columns that the suite does not know pass through.
        suite: one of `suites.SUITES`, or its name.
        max_bad_share: a larger share of bad rows is an error.

    Raises:
        FrameError: a column is missing, or a check cannot run.
        TooManyFailures: too many rows failed.
    """
    suite = suite_named(suite) if isinstance(suite, str) else suite
    missing = [name for name in suite.columns if name not in frame.columns]
    if missing:
        raise FrameError(
            f"the table of {suite.name} lacks the columns {', '.join(missing)}; it has "
            f"{', '.join(map(str, frame.columns)) or 'none'}"
        )
    absent = set(suite.optional) - set(frame.columns)
    known = [name for name in (*suite.texts, *suite.numbers) if name not in absent]
    checks = [_type_check(name, name in suite.texts) for name in known]
    checks += [check for check in suite.checks if check.column not in absent]
    prepared = _prepared(frame, suite, known)
    outcomes = _run(prepared, suite.name, checks) if len(frame) else [(0, [])] * len(checks)
    reasons: dict[int, list[str]] = {}
    mistyped: set[tuple[int, str]] = set()
    for check, (_, failed) in zip(checks, outcomes, strict=True):
        mistyped.update((at, check.column) for at in failed if check.column.endswith(_TYPED.format("")))
        for at in failed:
            # A value of another type counts as missing; that much is said already.
            if (at, _TYPED.format(check.column)) not in mistyped:
                reasons.setdefault(at, []).append(check.reason)
    order = [at for at in range(len(frame)) if at not in reasons]
    bad = frame.iloc[sorted(reasons)].copy()
    bad[REASON] = ["; ".join(reasons[at]) for at in sorted(reasons)]
    results = tuple(
        CheckResult(check, looked_at, len(failed)) for check, (looked_at, failed) in zip(checks, outcomes, strict=True)
    )
    return Checked(suite.name, frame.iloc[order], bad, results).require(max_bad_share)


def _type_check(column: str, is_text: bool) -> Check:
    reason = f'"{column}" is no {"text" if is_text else "number"}; correct it or delete the row'
    return Check(_TYPED.format(column), "ExpectColumnValuesToBeInSet", reason, {"value_set": [True]})


def _prepared(frame: pd.DataFrame, suite: Suite, known: Sequence[str]) -> pd.DataFrame:
    """The columns that are checked, numbered rows, each value of the right type or missing."""
    import pandas as pd

    columns: dict[str, Any] = {}
    for name in known:
        given = frame[name].reset_index(drop=True)
        if name in suite.texts:
            right = given.map(lambda value: isinstance(value, str)).astype(bool)
            columns[name] = given.astype("object").where(right, None)
        else:
            numbers = pd.to_numeric(given, errors="coerce")
            columns[name] = numbers.astype("float64")
            right = columns[name].notna()
        columns[_TYPED.format(name)] = (right | given.isna()).astype(bool)
    return pd.DataFrame(columns)


def _run(frame: pd.DataFrame, name: str, checks: Sequence[Check]) -> list[tuple[int, list[int]]]:
    """(rows looked at, numbers of the rows that failed) for every check."""
    # They must be set before the import: it reads them.
    apply_defaults()
    import great_expectations as gx
    import great_expectations.expectations as gxe
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    expectations = []
    for number, check in enumerate(checks):
        where = {"row_condition": check.where, "condition_parser": "pandas"} if check.where else {}
        make = getattr(gxe, check.expectation)
        expectations.append(make(column=check.column, meta={"number": number}, **check.arguments, **where))
    with _ONE_AT_A_TIME:
        # The default would make a folder for pages that are never written, and leave it there.
        settings = DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            progress_bars=ProgressBarsConfig(globally=False, metric_calculations=False),
            analytics_enabled=False,
        )
        context = gx.get_context(mode="ephemeral", project_config=settings)
        asset = context.data_sources.add_pandas("tables").add_dataframe_asset(name)
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
        report = batch.validate(gx.ExpectationSuite(name, expectations=expectations), result_format="COMPLETE")
    outcomes: dict[int, tuple[int, list[int]]] = {}
    for result in report.results:
        assert result.expectation_config is not None
        number = result.expectation_config.meta["number"]
        if "element_count" not in result.result:
            told = " ".join(str(result.exception_info).split())[:300]
            raise FrameError(f'{name}: the check of "{checks[number].column}" cannot run: {told}')
        looked_at = result.result["element_count"]
        if checks[number].expectation != "ExpectColumnValuesToNotBeNull":
            looked_at -= result.result.get("missing_count", 0)
        outcomes[number] = (looked_at, [int(at) for at in result.result.get("unexpected_index_list") or []])
    return [outcomes[number] for number in range(len(checks))]
