"""When a schedule starts its runs: from the words of a command line to a schedule, and back."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from prefect.client.schemas.schedules import (
    CronSchedule,
    IntervalSchedule,
    RRuleSchedule,
    is_valid_timezone,
)
from pydantic import ValidationError

from trainjob.errors import TrainjobError
from trainjob.values import format_duration, parse_duration

Times = CronSchedule | IntervalSchedule | RRuleSchedule
"""The kinds of schedules of Prefect."""

_DEFAULT_START = "DTSTART:20200101T000000\n"  # which the server adds
_NUM_CRON_FIELDS = 5
_SHORTEST = timedelta(minutes=1)
_TOO_FAST = re.compile(r"FREQ=(?:SECOND|MINUTE)LY", re.IGNORECASE)
_ENDLESS = re.compile(r"INTERVAL=0*(?:;|\s|$)", re.IGNORECASE)  # dateutil 2.9 never comes back


def read_cron(cron: str, timezone: str) -> CronSchedule:
    """Return the schedule of a cron line.

    Raises:
        TrainjobError: If it is none, or the time zone is none, or no time of it is to come.
    """
    _require_timezone(cron, timezone)
    do = "write minute, hour, day, month and weekday, such as '0 3 * * *'"
    fields = cron.split()
    if len(fields) != _NUM_CRON_FIELDS and not cron.strip().startswith("@"):
        # Of six, Prefect 3.8 takes the last for seconds, other tools the first.
        raise _no_schedule(cron, f"{len(fields)} fields", do)
    try:
        schedule = CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        raise _no_schedule(cron, _reason(error), do) from error
    if next_start(schedule) is None:
        raise _no_schedule(cron, "no time that is still to come", "correct day and month")
    return schedule


def read_interval(every: str, anchor: str | None, timezone: str) -> IntervalSchedule:
    """Return the schedule of an interval.

    Args:
        every: How long, such as ``6h``.
        anchor: A time that it is counted from, ISO 8601, in the time zone if it names none itself;
            absent: now, so that the first run is one interval away.
        timezone: Where a day of 23 or 25 hours counts as a day.

    Raises:
        TrainjobError: If one of them is none.
    """
    _require_timezone(every, timezone)
    try:
        interval = parse_duration(every)
    except ValueError as error:
        raise _no_schedule(every, "no length of time", str(error)) from error
    if interval < _SHORTEST:
        raise _no_schedule(every, "less than a minute", "write 1m or more")
    begin = datetime.now(UTC) if anchor is None else _read_time(anchor, timezone)
    schedule = IntervalSchedule(interval=interval, anchor_date=begin, timezone=timezone)
    if _in_zone(begin, timezone) is None:
        found = f"the anchor {anchor!r}, which is beyond the years 1 to 9999 elsewhere"
        raise _no_schedule(every, found, "write a time of these years, such as 2026-01-31T03:00")
    if next_start(schedule) is None:
        raise _no_schedule(every, "no time that is still to come", "write a shorter one")
    return schedule


def read_rrule(rrule: str, timezone: str) -> RRuleSchedule:
    """Return the schedule of a recurrence rule of RFC 5545.

    Raises:
        TrainjobError: If it is none, or the time zone is none, or no time of it is to come.
    """
    _require_timezone(rrule, timezone)
    if _TOO_FAST.search(rrule):
        # Prefect 3.8 walks them from the year 2020 on (PrefectHQ/prefect#21362).
        raise _no_schedule(rrule, "more than a run an hour", "write an interval: --every 15m")
    do = "write a rule of RFC 5545, such as 'FREQ=WEEKLY;BYDAY=MO;BYHOUR=3;BYMINUTE=0'"
    if _ENDLESS.search(rrule):
        raise _no_schedule(rrule, "INTERVAL=0", do)
    try:
        schedule = RRuleSchedule(rrule=rrule, timezone=timezone)
        following = schedule.to_rrule().after(datetime.now(UTC))
    except ValidationError as error:
        raise _no_schedule(rrule, _reason(error), do) from error
    except ValueError as error:
        zoned = "write DTSTART and UNTIL without Z: they are in the time zone of the schedule"
        raise _no_schedule(rrule, f"times that Prefect does not take ({error})", zoned) from error
    except TypeError as error:  # dateutil's rrule, without its first argument
        raise _no_schedule(rrule, "no FREQ", do) from error
    if following is None:
        do = "COUNT is counted from DTSTART, which is 2020-01-01 unless the rule gives it"
        raise _no_schedule(rrule, "no time that is still to come", do)
    return schedule


def next_start(times: Times) -> datetime | None:
    """Return when the server would start the next run of a schedule; None: never."""
    # A third of a second, which the other commands need not wait for.
    from prefect.server.schemas import schedules

    of_server = getattr(schedules, type(times).__name__)(**times.model_dump())
    try:
        found: list[datetime] = asyncio.run(of_server.get_dates(1))
    except ValueError:  # of the 30th of February (croniter's CroniterBadDateError)
        return None
    except OverflowError:  # of an interval that ends after the year 9999
        return None
    return found[0] if found else None


def in_words(schedule: object) -> str:
    """Return when a schedule starts its runs, in one line."""
    if isinstance(schedule, CronSchedule):
        return f"{schedule.cron} ({schedule.timezone or 'UTC'})"
    if isinstance(schedule, IntervalSchedule):
        zone = schedule.timezone or "UTC"
        begin = _in_zone(schedule.anchor_date, zone)
        start = "a time beyond the years 1 to 9999" if begin is None else f"{begin:%Y-%m-%d %H:%M}"
        return f"every {format_duration(schedule.interval)} from {start} ({zone})"
    if isinstance(schedule, RRuleSchedule):
        rule = schedule.rrule.removeprefix(_DEFAULT_START)
        return f"{' '.join(rule.split())} ({schedule.timezone or 'UTC'})"
    return str(schedule)


def _read_time(text: str, timezone: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        do = "write one such as 2026-01-31T03:00"
        raise TrainjobError(f"asked for --anchor {text!r}, found no time; {do}") from error
    return time if time.tzinfo else time.replace(tzinfo=ZoneInfo(timezone))


def _in_zone(time: datetime, timezone: str) -> datetime | None:
    """Return a time in a time zone; None if no calendar has it there, or as UTC for the server."""
    try:
        return time.astimezone(UTC).astimezone(ZoneInfo(timezone))
    except OverflowError:
        return None


def _require_timezone(asked: str, timezone: str) -> None:
    if not is_valid_timezone(timezone):
        found = f"no time zone {timezone!r}"
        raise _no_schedule(asked, found, "write one such as Europe/Berlin, or UTC")


def _reason(error: ValidationError) -> str:
    return f"that it is none ({error.errors()[0]['msg'].removeprefix('Value error, ')})"


def _no_schedule(asked: str, found: str, do: str) -> TrainjobError:
    return TrainjobError(f"asked for the schedule {asked!r}, found {found}; {do}")
