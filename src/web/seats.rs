//! Who may stay when more connections want in than there is room for.
//!
//! A connection holds a [`Seat`] that knows what it is doing. When the room is full, the one that
//! has been at the same thing longest has to leave, strangers before those that were once answered
//! with success; one whose request is being worked on never has to. So a crowd of slow or silent
//! clients cannot lock SNS out: it only pushes its own members out, and needs no limit by address,
//! which would fall on everybody behind one proxy alike.
//!
//! Order is told by tickets, not by a clock. `serve` enters the phases that a connection shows by
//! itself; whoever answers requests enters [`Phase::Working`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It shakes hands, or has not yet begun its first request.
    Arriving,
    /// A request has begun; its header is not complete.
    Header,
    /// The header is complete; the body may still be coming.
    Body,
    /// Its request is complete and being worked on: it cannot be made to leave.
    Working,
    /// Its request was answered.
    Idle,
}

/// The room of one listener.
#[derive(Debug)]
pub(super) struct Seats {
    room: usize,
    tickets: AtomicU64,
    taken: Mutex<HashMap<u64, Arc<Seat>>>,
}

/// The place of one connection.
#[derive(Debug)]
pub(super) struct Seat {
    number: u64,
    seats: Arc<Seats>,
    state: Mutex<State>,
    leave: Notify,
}

/// What is known of a connection; `ticket` grows with each change of phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) ticket: u64,
    welcome: bool,
}

/// Gives the seat back when the connection ends.
#[derive(Debug)]
pub(super) struct Seated(pub(super) Arc<Seat>);

impl Seats {
    pub(super) fn new(room: usize) -> Arc<Self> {
        Arc::new(Self {
            room: room.max(1),
            tickets: AtomicU64::new(0),
            taken: Mutex::default(),
        })
    }

    /// A seat for a connection that just came; `None` when everybody else is at work. The second
    /// value says whether somebody had to leave for it.
    pub(super) fn take(self: &Arc<Self>) -> Option<(Seated, bool)> {
        let mut taken = lock(&self.taken);
        let crowded = taken.len() >= self.room;
        if crowded && !Self::make_room(&mut taken) {
            return None;
        }
        let ticket = self.ticket();
        let seat = Arc::new(Seat {
            number: ticket,
            seats: Arc::clone(self),
            state: Mutex::new(State {
                phase: Phase::Arriving,
                ticket,
                welcome: false,
            }),
            leave: Notify::new(),
        });
        taken.insert(seat.number, Arc::clone(&seat));
        Some((Seated(seat), crowded))
    }

    fn make_room(taken: &mut HashMap<u64, Arc<Seat>>) -> bool {
        let longest = taken
            .values()
            .map(|seat| (seat.state(), seat.number))
            .filter(|(state, _)| state.phase != Phase::Working)
            .min_by_key(|(state, _)| (state.welcome, state.ticket));
        // It no longer counts from here on, though its task needs a moment to notice.
        let Some(seat) = longest.and_then(|(_, number)| taken.remove(&number)) else {
            return false;
        };
        seat.leave.notify_one();
        true
    }

    fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::Relaxed)
    }
}

impl Seat {
    pub(super) fn state(&self) -> State {
        *lock(&self.state)
    }

    /// The connection goes over to `phase`.
    pub(super) fn enter(&self, phase: Phase) {
        let ticket = self.seats.ticket();
        let mut state = lock(&self.state);
        state.phase = phase;
        state.ticket = ticket;
    }

    /// Bytes came in: they begin a request unless one is under way.
    pub(super) fn heard(&self) {
        if matches!(self.state().phase, Phase::Arriving | Phase::Idle) {
            self.enter(Phase::Header);
        }
    }

    /// Its request was answered. Success makes it welcome: it leaves after all strangers.
    pub(super) fn answered(&self, success: bool) {
        self.enter(Phase::Idle);
        if success {
            lock(&self.state).welcome = true;
        }
    }

    /// Returns when it has to leave for somebody else.
    pub(super) async fn has_to_leave(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        lock(&self.0.seats.taken).remove(&self.0.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn told_to_leave(seated: &Seated) -> bool {
        seated.0.has_to_leave().now_or_never().is_some()
    }

    #[test]
    fn a_stranger_that_waited_longest_leaves_first() {
        let seats = Seats::new(3);
        let [welcome, busy, slow] = [(); 3].map(|()| seats.take().unwrap().0);
        welcome.0.answered(true);
        busy.0.enter(Phase::Working);
        slow.0.enter(Phase::Header);

        let (first, crowded) = seats.take().unwrap();
        assert!(crowded);
        assert_eq!(
            [&welcome, &busy, &slow, &first].map(told_to_leave),
            [false, false, true, false]
        );
        let (_second, _) = seats.take().unwrap();
        assert_eq!(
            [&welcome, &busy, &first].map(told_to_leave),
            [false, false, true]
        );
    }

    #[test]
    fn nobody_at_work_has_to_leave() {
        let seats = Seats::new(2);
        let [welcome, busy] = [(); 2].map(|()| seats.take().unwrap().0);
        busy.0.enter(Phase::Working);
        welcome.0.answered(true);
        welcome.0.enter(Phase::Working);
        assert!(seats.take().is_none());
        welcome.0.answered(true);
        assert!(seats.take().is_some());
        assert!(told_to_leave(&welcome));
        assert!(!told_to_leave(&busy));
    }

    #[test]
    fn a_seat_is_free_again_when_its_connection_ends() {
        let seats = Seats::new(1);
        let (seated, crowded) = seats.take().unwrap();
        assert!(!crowded);
        drop(seated);
        assert!(!seats.take().unwrap().1);
    }

    #[test]
    fn bytes_begin_a_request_only_between_requests() {
        let seats = Seats::new(1);
        let (seated, _) = seats.take().unwrap();
        let seat = &seated.0;
        for (before, after) in [
            (Phase::Arriving, Phase::Header),
            (Phase::Idle, Phase::Header),
            (Phase::Header, Phase::Header),
            (Phase::Body, Phase::Body),
            (Phase::Working, Phase::Working),
        ] {
            seat.enter(before);
            let ticket = seat.state().ticket;
            seat.heard();
            assert_eq!(seat.state().phase, after);
            assert_eq!(
                seat.state().ticket == ticket,
                before == after,
                "a slow header must not look fresh with each byte"
            );
        }
    }
}
