//! Logical time, and how far forgetting may go.
//!
//! The store waits by logical time, which never goes back: the wall time of the machine (on
//! PostgreSQL the database's) and one offset, `ahead`, that is kept with the store. When the wall
//! clock is set back, or leaps while a process runs, the offset takes it up, so that nothing waits
//! for a time that never comes and nothing ages by a mistake. A leap while nobody runs cannot be
//! told from time that passed, and counts as such.

use std::time::Duration;

use super::columns::length;

/// How far the wall clock may go back before it counts as set back, in nanoseconds: less is how long
/// a question waited.
const SLACK: i64 = 1_000_000_000;

/// How much further than the boot-time clock the wall clock may have moved between two looks, in
/// nanoseconds: as long as a look may take. More would be taken for time that passed, and leases of
/// the living, and the patience for their signs, would run out by it.
const LEAP: i64 = 5_000_000_000;

/// How long a store is silent before the second bound of [`forget_before`] is given up.
pub(in crate::store) const SILENCE: Duration = Duration::from_hours(24);

/// How far behind the latest notification the present is at least.
const BEHIND: Duration = Duration::from_hours(1);

/// The clock's row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct ClockRow {
    /// The latest logical time that was written, in nanoseconds.
    pub(in crate::store) latest: i64,
    /// Logical less wall time, in nanoseconds.
    pub(in crate::store) ahead: i64,
    /// How often the offset was changed: two replicas that see one leap correct it once.
    pub(in crate::store) step: i64,
}

/// One look at two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Look {
    /// Wall time, in nanoseconds since the epoch.
    pub(in crate::store) wall: i64,
    /// Boot time, in nanoseconds.
    pub(in crate::store) boot: i64,
    /// The offset's step at that moment.
    pub(in crate::store) step: i64,
}

/// The outcome of a look at the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Tick {
    /// The logical time now.
    pub(in crate::store) now: i64,
    /// The offset, and its step.
    pub(in crate::store) row: ClockRow,
    /// The wall clock was moved by so much, in nanoseconds; the row must be written.
    pub(in crate::store) moved: Option<i64>,
}

/// Judges a look: `row` is what the store has, `last` this process's look before, `own` the logical
/// time that this process has counted on to, if it runs already.
pub(in crate::store) fn tick(
    row: ClockRow,
    last: Option<Look>,
    own: Option<i64>,
    look: Look,
) -> Tick {
    let mut row = row;
    let mut moved = None;
    // A step that another replica made in between has taken up the same leap.
    if let Some(last) = last.filter(|last| last.step == row.step) {
        let passed = look.boot.saturating_sub(last.boot);
        let leap = look.wall.saturating_sub(last.wall).saturating_sub(passed);
        if leap > LEAP {
            row.ahead = row.ahead.saturating_sub(leap);
            moved = Some(leap);
        }
    }
    let latest = row.latest.max(own.unwrap_or(i64::MIN));
    let back = latest.saturating_sub(look.wall.saturating_add(row.ahead));
    if back > SLACK {
        row.ahead = row.ahead.saturating_add(back);
        moved = Some(-back);
    }
    if moved.is_some() {
        row.step += 1;
    }
    let now = latest.max(look.wall.saturating_add(row.ahead));
    row.latest = now;
    Tick { now, row, moved }
}

/// The latest stored time to wait for that makes sense at `now`.
pub(in crate::store) fn latest_wait(now: i64, longest_wait: Duration) -> i64 {
    now.saturating_add(length(longest_wait))
}

/// Before which arrival events may be forgotten, in wall time. `newest` is the latest Timestamp that
/// SNS signed: where our clock is far ahead of it, the clock is the likelier fault, and nothing may
/// be deleted by it. A store that ran without a notification for [`SILENCE`] goes by its clock.
pub(in crate::store) fn forget_before(
    now: i64,
    newest: Option<i64>,
    is_silent: bool,
    retention: Duration,
) -> i64 {
    let present = match newest {
        Some(newest) if !is_silent => now.min(newest.saturating_add(length(BEHIND))),
        Some(_) | None => now,
    };
    present.saturating_sub(length(retention))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const DAY: i64 = 86_400 * SECOND;

    fn look(wall: i64, boot: i64, step: i64) -> Look {
        Look {
            wall: wall * SECOND,
            boot: boot * SECOND,
            step,
        }
    }

    fn row(latest: i64, ahead: i64, step: i64) -> ClockRow {
        ClockRow {
            latest: latest * SECOND,
            ahead: ahead * SECOND,
            step,
        }
    }

    #[test]
    fn clock_in_order_is_followed() {
        let it = tick(
            row(100, 0, 0),
            Some(look(100, 7, 0)),
            Some(100 * SECOND),
            look(101, 8, 0),
        );
        assert_eq!((it.now, it.moved), (101 * SECOND, None));
        let slewed = tick(row(100, 0, 0), None, None, look(99, 8, 0));
        assert_eq!((slewed.now, slewed.moved), (100 * SECOND, None));
    }

    #[test]
    fn clock_set_back_while_down_or_running_costs_nothing() {
        for own in [None, Some(1000 * SECOND)] {
            let it = tick(
                row(1000, 0, 4),
                own.map(|_| look(1000, 9, 4)),
                own,
                look(400, 10, 4),
            );
            assert_eq!(it.now, 1000 * SECOND);
            assert_eq!((it.row.ahead, it.row.step), (600 * SECOND, 5));
            assert_eq!(it.moved, Some(-600 * SECOND));
            let next = tick(
                it.row,
                Some(look(400, 10, 5)),
                Some(it.now),
                look(401, 11, 5),
            );
            assert_eq!((next.now, next.moved), (1001 * SECOND, None));
        }
    }

    #[test]
    fn clock_that_leaps_while_running_ages_nothing() {
        let last = Some(look(1000, 10, 0));
        let it = tick(
            row(1000, 0, 0),
            last,
            Some(1001 * SECOND),
            look(1001 + 86_400, 11, 0),
        );
        assert_eq!((it.now, it.row.ahead), (1001 * SECOND, -DAY));
        // Another replica saw the same leap; the offset is corrected once.
        let other = tick(
            it.row,
            last,
            Some(1001 * SECOND),
            look(1001 + 86_400, 11, 1),
        );
        assert_eq!((other.now, other.moved), (1001 * SECOND, None));
        // Set right again.
        let last = Some(look(1001 + 86_400, 11, 1));
        let right = tick(it.row, last, Some(it.now), look(1002, 12, 1));
        assert_eq!((right.now, right.row.ahead), (1001 * SECOND, -SECOND));
    }

    #[test]
    fn leap_while_nobody_ran_is_time_that_passed() {
        let it = tick(row(1000, 0, 0), None, None, look(1000 + 86_400, 1, 0));
        assert_eq!((it.now, it.moved), (1000 * SECOND + DAY, None));
    }

    #[test]
    fn forgetting_goes_by_what_was_signed_where_the_clock_is_ahead_of_it() {
        let keep = Duration::from_hours(24);
        let hour = 3600 * SECOND;
        let now = 100 * DAY;
        for (newest, is_silent, before) in [
            (None, false, now - DAY),
            (Some(now - 10), false, now - DAY),
            (Some(50 * DAY), false, 50 * DAY + hour - DAY),
            (Some(50 * DAY), true, now - DAY),
        ] {
            assert_eq!(forget_before(now, newest, is_silent, keep), before);
        }
    }
}
