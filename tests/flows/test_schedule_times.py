"""When a schedule starts its runs: what is read, what is refused, and how it is shown."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from prefect.client.schemas.schedules import IntervalSchedule, NoSchedule

from flows.schedule_times import in_words, next_start, read_cron, read_interval, read_rrule
from trainjob.errors import TrainjobError


def test_an_interval_is_counted_from_now_or_from_a_time_of_its_time_zone() -> None:
    from_now = read_interval("6h", None, "UTC")
    anchored = read_interval("1d", "2026-01-31T03:00", "Europe/Berlin")
    with_offset = read_interval("90m", "2026-01-31T03:00+05:00", "UTC")

    assert from_now.interval == timedelta(hours=6)
    assert datetime.now(UTC) - from_now.anchor_date < timedelta(minutes=1)
    assert in_words(anchored) == "every 1d from 2026-01-31 03:00 (Europe/Berlin)"
    assert in_words(with_offset) == "every 1h30m from 2026-01-30 22:00 (UTC)"


@pytest.mark.parametrize(
    ("every", "anchor", "timezone", "expected"),
    [
        ("3000000d", None, "UTC", "found no time that is still to come; write a shorter one"),
        ("1d", "9999-12-31T23:00", "America/New_York", "found the anchor '9999-12-31T23:00'"),
        ("1d", "0001-01-01", "Asia/Kolkata", "found the anchor '0001-01-01', which is beyond"),
    ],
    ids=["too-long", "too-late", "too-early"],
)
def test_an_interval_that_no_calendar_has_is_refused(
    every: str, anchor: str | None, timezone: str, expected: str
) -> None:
    with pytest.raises(TrainjobError) as refused:
        read_interval(every, anchor, timezone)

    assert str(refused.value).startswith(f"asked for the schedule {every!r}, found ")
    assert expected in str(refused.value)


def test_an_interval_of_the_ui_that_no_calendar_has_is_said_to_be_one() -> None:
    begin = datetime(9999, 12, 31, 23, tzinfo=ZoneInfo("America/New_York"))
    late = IntervalSchedule(
        interval=timedelta(days=1), anchor_date=begin, timezone="America/New_York"
    )
    long = IntervalSchedule(interval=timedelta(days=3_000_000), timezone="UTC")

    assert in_words(late) == "every 1d from a time beyond the years 1 to 9999 (America/New_York)"
    assert in_words(long).startswith("every 3000000d from ")
    assert next_start(late) is None
    assert next_start(long) is None


@pytest.mark.parametrize(
    ("rule", "timezone", "words"),
    [
        ("FREQ=WEEKLY;BYDAY=MO;BYHOUR=3", "UTC", "FREQ=WEEKLY;BYDAY=MO;BYHOUR=3 (UTC)"),
        (
            "DTSTART:29991201T030000\nRRULE:FREQ=DAILY;COUNT=3",
            "Europe/Berlin",
            "DTSTART:29991201T030000 RRULE:FREQ=DAILY;COUNT=3 (Europe/Berlin)",
        ),
        ("FREQ=DAILY;UNTIL=29990101T000000", "UTC", "FREQ=DAILY;UNTIL=29990101T000000 (UTC)"),
    ],
    ids=["weekly", "counted", "until"],
)
def test_a_rule_is_shown_in_one_line(rule: str, timezone: str, words: str) -> None:
    assert in_words(read_rrule(rule, timezone)) == words


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("", "found that it is none (Invalid RRule string"),
        ("FREQ=FOO", "invalid 'FREQ': FOO); write a rule of RFC 5545"),
        ("BYHOUR=3", "found no FREQ; write a rule of RFC 5545"),
        ("FREQ=DAILY;INTERVAL=0", "found INTERVAL=0; write a rule"),
        ("INTERVAL=00;FREQ=DAILY", "found INTERVAL=0; write a rule"),
        ("FREQ=MINUTELY", "found more than a run an hour; write an interval: --every 15m"),
        ("FREQ=DAILY;COUNT=3", "found no time that is still to come; COUNT is counted from"),
        ("FREQ=DAILY;UNTIL=20200301T000000", "found no time that is still to come"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "found no time that is still to come"),
        ("FREQ=DAILY;UNTIL=29990101T000000Z", "write DTSTART and UNTIL without Z"),
    ],
)
def test_a_rule_that_starts_nothing_is_refused(rule: str, expected: str) -> None:
    with pytest.raises(TrainjobError) as refused:
        read_rrule(rule, "UTC")

    assert str(refused.value).startswith(f"asked for the schedule {rule!r}, found ")
    assert expected in str(refused.value)


@pytest.mark.parametrize("cron", ["0 3 * * *", " 0 3 29 2 mon ", "@daily"])
def test_a_cron_line_has_five_fields_or_a_name(cron: str) -> None:
    assert in_words(read_cron(cron, "UTC")) == f"{cron} (UTC)"


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 0 3 * * *", "found 6 fields; write minute, hour, day, month and weekday, such as"),
        ("0 0 3 * * * 2030", "found 7 fields; write minute, hour, day"),
        ("0 3", "found 2 fields; write minute, hour, day"),
        ("", "found 0 fields; write minute, hour, day"),
        ("0 25 * * *", "found that it is none (Invalid cron string"),
        ("@reboot", "found that it is none (Invalid cron string"),
        ("0 0 30 2 *", "found no time that is still to come; correct day and month"),
    ],
)
def test_a_cron_line_that_starts_nothing_or_at_other_times_is_refused(
    cron: str, expected: str
) -> None:
    with pytest.raises(TrainjobError) as refused:
        read_cron(cron, "UTC")

    assert str(refused.value).startswith(f"asked for the schedule {cron!r}, found ")
    assert expected in str(refused.value)


def test_the_next_start_is_the_one_of_the_server() -> None:
    anchor = datetime.now(UTC) + timedelta(hours=5)

    starts = [
        next_start(read_cron("0 3 * * *", "Europe/Berlin")),
        next_start(read_interval("6h", anchor.isoformat(), "UTC")),
        next_start(read_rrule("FREQ=YEARLY;BYMONTH=3;BYHOUR=4;BYMONTHDAY=1", "UTC")),
    ]

    assert all(start is not None and start > datetime.now(UTC) for start in starts)
    by_cron, by_interval, by_rule = (start for start in starts if start is not None)
    assert f"{by_cron.astimezone(ZoneInfo('Europe/Berlin')):%H:%M}" == "03:00"
    assert by_interval == anchor
    assert f"{by_rule:%m-%d %H:%M}" == "03-01 04:00"


@pytest.mark.parametrize(
    ("every", "anchor", "expected"),
    [
        ("6", None, "found no length of time; write a duration with its unit"),
        ("5s", None, "found less than a minute; write 1m or more"),
        ("0h", None, "found less than a minute"),
        ("6h", "noon", "asked for --anchor 'noon', found no time; write one such as 2026-01-31"),
    ],
)
def test_an_interval_that_is_none_is_refused(every: str, anchor: str | None, expected: str) -> None:
    with pytest.raises(TrainjobError) as refused:
        read_interval(every, anchor, "UTC")

    assert expected in str(refused.value)


def test_a_time_zone_that_is_none_is_refused_by_every_kind() -> None:
    for read in (read_cron, read_rrule, lambda text, zone: read_interval(text, None, zone)):
        with pytest.raises(TrainjobError, match="found no time zone 'Mars/North'; write one such"):
            read("0 3 * * *", "Mars/North")


def test_a_schedule_of_another_kind_is_shown_all_the_same() -> None:
    assert in_words(NoSchedule()) == str(NoSchedule())
