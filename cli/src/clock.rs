//! Times as a person reads and writes them, in the local time zone.
//!
//! Promises: the forms are pgBackRest's: labels, log lines, `info`, and the target of a recovery.

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, ZonedDateTime};

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

/// `YYYYMMDD-HHMMSS`, as in a backup's label.
pub(crate) fn label_time(ms: i64) -> String {
    local(ms).strftime("%Y%m%d-%H%M%S").to_string()
}

/// `YYYY-MM-DD HH:MM:SS.mmm`, as in a log line.
pub(crate) fn log_time(ms: i64) -> String {
    local(ms).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

/// `YYYY-MM-DD HH:MM:SS`, as in a comment of a settings file.
pub(crate) fn stamp(ms: i64) -> String {
    local(ms).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// `YYYY-MM-DD HH:MM:SS+00`, as in `info`; minutes of the zone only where it has some.
pub(crate) fn zoned_time(ms: i64) -> String {
    with_zone(&local(ms))
}

fn with_zone(time: &ZonedDateTime) -> String {
    let minutes = time.offset().seconds() / 60;
    let sign = if minutes < 0 { '-' } else { '+' };
    let (hours, rest) = (minutes.abs() / 60, minutes.abs() % 60);
    let rest = if rest == 0 {
        String::new()
    } else {
        format!(":{rest:02}")
    };
    format!(
        "{}{sign}{hours:02}{rest}",
        time.strftime("%Y-%m-%d %H:%M:%S")
    )
}

/// The milliseconds since 1970 that `YYYY-MM-DD HH:MM:SS[.fff][±HH[[:]MM]]` means; without a zone it is local time.
pub(crate) fn parse_target(text: &str) -> Option<i64> {
    let digits_and_marks = |part: &str| {
        part.bytes()
            .all(|byte| byte.is_ascii_digit() || b"-: .".contains(&byte))
    };
    let (time, zone) = match text.get(19..)?.find(['+', '-']) {
        Some(at) => text.split_at_checked(19 + at)?,
        None => (text, ""),
    };
    if !digits_and_marks(time) || time.as_bytes().get(10) != Some(&b' ') {
        return None;
    }
    let time: DateTime = time.parse().ok()?;
    let zone = if zone.is_empty() {
        TimeZone::system()
    } else {
        TimeZone::fixed(parse_zone(zone)?)
    };
    Some(
        time.to_zoned_datetime(zone)
            .ok()?
            .timestamp()
            .as_millisecond(),
    )
}

fn parse_zone(text: &str) -> Option<Offset> {
    let (sign, rest) = text.split_at_checked(1)?;
    let digits = rest.replacen(':', "", 1);
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) || !matches!(digits.len(), 2 | 4) {
        return None;
    }
    let (hours, minutes) = digits.split_at_checked(2)?;
    let minutes: i32 = if minutes.is_empty() {
        0
    } else {
        minutes.parse().ok()?
    };
    if minutes > 59 {
        return None;
    }
    let seconds = hours.parse::<i32>().ok()? * 3600 + minutes * 60;
    Offset::from_seconds(if sign == "-" { -seconds } else { seconds }).ok()
}

/// A time that no calendar holds is shown as 1970.
fn local(ms: i64) -> ZonedDateTime {
    Timestamp::from_millisecond(ms)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_zoned_datetime(TimeZone::system())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_times_carry_a_zone_in_any_of_its_forms() {
        let at = Some(1_795_555_799_000);
        for text in [
            "2026-11-24 21:29:59+00",
            "2026-11-24 22:29:59+01",
            "2026-11-24 15:59:59-0530",
        ] {
            assert_eq!(parse_target(text), at, "{text}");
        }
        assert_eq!(
            parse_target("2026-11-24 15:59:59.250-05:30"),
            at.map(|ms| ms + 250)
        );
    }

    #[test]
    fn other_target_times_are_refused() {
        for text in [
            "x",
            "2026-11-24",
            "2026-11-24T21:29:59+00",
            "2026-11-24 21:29:59 UTC",
            "2026-13-24 21:29:59+00",
        ] {
            assert_eq!(parse_target(text), None, "{text}");
        }
        for zone in ["+0", "+000", "+00:60", "+aa", "+99"] {
            assert_eq!(
                parse_target(&format!("2026-11-24 21:29:59{zone}")),
                None,
                "{zone}"
            );
        }
    }

    #[test]
    fn a_zone_shows_its_minutes_only_if_it_has_some() {
        let at = |seconds| {
            let zone = TimeZone::fixed(Offset::from_seconds(seconds).unwrap());
            with_zone(
                &Timestamp::from_second(1_795_555_799)
                    .unwrap()
                    .to_zoned_datetime(zone),
            )
        };
        assert_eq!(at(0), "2026-11-24 21:29:59+00");
        assert_eq!(at(-(5 * 3600 + 1800)), "2026-11-24 15:59:59-05:30");
    }

    #[test]
    fn a_local_time_is_read_as_it_is_shown() {
        assert_eq!(
            parse_target(&stamp(1_795_555_799_000)),
            Some(1_795_555_799_000)
        );
        assert_eq!(log_time(1_795_555_799_007).len(), 23);
        assert_eq!(label_time(0).len(), 15);
    }
}
