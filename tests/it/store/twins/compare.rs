//! What must be equal after every step.

use std::fmt::Debug;

use runbell::store::{
    Care as _, DeadLetter, DeadSelection, Delivery, EventId, EventQuery, History as _, Lane,
    Lanes as _, StoredEvent,
};

use super::act::Twins;

/// Says where two answers differ.
pub(super) fn same<T: PartialEq + Debug>(what: &str, engine: &T, model: &T) -> Result<(), String> {
    if engine == model {
        return Ok(());
    }
    Err(format!("{what}\n engine {engine:?}\n model  {model:?}"))
}

/// Says which of many answers only one of the two gives.
pub(super) fn same_all(what: &str, engine: &[String], model: &[String]) -> Result<(), String> {
    let alone = |one: &[String], other: &[String]| -> Vec<String> {
        one.iter()
            .filter(|it| !other.contains(it))
            .cloned()
            .collect()
    };
    let of = |one: &[String], other| format!("{} {}", one.len(), alone(one, other).join("\n  "));
    if engine == model {
        return Ok(());
    }
    Err(format!(
        "{what}\n engine {}\n model  {}",
        of(engine, model),
        of(model, engine)
    ))
}

impl Twins {
    /// A lane in words, with its events by the numbers that `map` gives.
    pub(super) fn lane(&self, it: &Lane, map: impl Fn(EventId) -> Option<EventId>) -> String {
        let mut text = format!(
            "{}/{} high {:?} {:?}",
            it.route, it.sink, it.high, it.digest
        );
        for row in &it.waiting {
            let mut row = row.clone();
            row.repeat_of = row.repeat_of.and_then(&map);
            row.event_id = map(row.event_id).unwrap_or(EventId(-1));
            // The contract leaves open whether a repeat is marked that was contradicted after it.
            row.conflict &= !self.repeats.contains(&row.event_id);
            text = format!("{text}\n    {row:?}");
        }
        text
    }

    /// An event in words, as [`lane`] has them.
    fn shown(it: &StoredEvent, map: impl Fn(EventId) -> Option<EventId>) -> String {
        let mut it = it.clone();
        it.conflict &= it.repeat_of.is_none();
        it.id = map(it.id).unwrap_or(EventId(-1));
        it.repeat_of = it.repeat_of.and_then(&map);
        format!("{it:?}")
    }

    /// Holds everything together that is short.
    pub(super) async fn compare(&mut self) -> Result<(), String> {
        let (engine, model) = self.both(0);
        same("logical time", &engine.clock().now(), &model.clock().now())?;
        let tallies = model.tally().await.unwrap();
        same("tally", &engine.tally().await.unwrap(), &tallies)?;
        let backlog = model.backlog().await.unwrap();
        same("backlog", &engine.backlog().await.unwrap(), &backlog)?;
        let by_route = model.route_backlog().await.unwrap();
        same(
            "backlog by route",
            &engine.route_backlog().await.unwrap(),
            &by_route,
        )?;
        for it in &tallies {
            let gone = it.sent + it.muted + it.redundant + it.dropped + it.dead + it.waiting;
            same("conservation", &it.owed, &gone)?;
            let of = backlog.iter().find(|of| of.sink == it.sink);
            same("dead in the books", &it.dead, &of.map_or(0, |it| it.dead))?;
        }
        same("sweep", &engine.sweep().await.unwrap(), &0)?;
        same("sweep", &model.sweep().await.unwrap(), &0)?;
        let expected = model.dead(DeadSelection::All, 1000).await.unwrap();
        let got = engine.dead(DeadSelection::All, 1000).await.unwrap();
        let map = |it: EventId| self.events.get(&it).copied();
        let mut expected = letters(&expected, map);
        let mut got = letters(&got, Some);
        // Nobody says in which order letters are that died in one step.
        same(
            "newest first",
            &got.is_sorted_by(|one, other| one.1 > other.1),
            &true,
        )?;
        expected.sort();
        got.sort();
        let text = |all: &[(String, i64)]| all.iter().map(|it| it.0.clone()).collect::<Vec<_>>();
        same_all("dead letters", &text(&got), &text(&expected))?;
        self.dead = expected
            .iter()
            .zip(&got)
            .map(|(model, engine)| (model.1, engine.1))
            .collect();
        self.compare_events(3).await
    }

    /// Holds everything together.
    pub(super) async fn compare_all(&mut self) -> Result<(), String> {
        self.compare_events(1).await
    }

    /// Holds one of `of` events together, others at each step.
    async fn compare_events(&self, of: i64) -> Result<(), String> {
        let (engine, model) = self.both(0);
        let map = |it: EventId| self.events.get(&it).copied();
        let query = || EventQuery {
            limit: 1000,
            ..EventQuery::default()
        };
        let kept = model.events(query()).await.unwrap();
        let got = engine.events(query()).await.unwrap();
        let expected: Vec<_> = kept.iter().map(|it| Self::shown(it, map)).collect();
        let got: Vec<_> = got.iter().map(|it| Self::shown(it, Some)).collect();
        same_all("events", &got, &expected)?;
        let turn = i64::try_from(self.serial).unwrap();
        for it in kept.iter().filter(|it| (it.id.0 + turn) % of == 0) {
            let (_, expected) = model.event(it.id).await.unwrap().unwrap();
            let found = engine.event(self.events[&it.id]).await.unwrap();
            let (_, got) = found.ok_or_else(|| format!("no event {:?}", it.id))?;
            let what = format!("deliveries of {:?}", self.events[&it.id]);
            let word = |it: &Delivery| format!("{it:?}");
            let words = |all: &[Delivery]| all.iter().map(word).collect::<Vec<_>>();
            same_all(&what, &words(&got), &words(&expected))?;
        }
        Ok(())
    }
}

/// Dead letters in words, with their own numbers beside.
fn letters(all: &[DeadLetter], map: impl Fn(EventId) -> Option<EventId>) -> Vec<(String, i64)> {
    let of = |it: &DeadLetter| {
        let event = Twins::shown(&it.event, &map);
        let rest = (&it.route, &it.sink, it.died_at, it.tries, &it.answer);
        (format!("{event} {rest:?}"), it.id)
    };
    all.iter().map(of).collect()
}
