//! Tasks of simulated processes, polled by hand in an order that the seed decides.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

/// Something that a process does.
pub struct Task {
    /// The process.
    pub process: usize,
    pub name: String,
    /// The message that it keeps, if it keeps one.
    pub post: Option<usize>,
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
    waker: Waker,
}

/// All tasks there are.
#[derive(Default)]
pub struct Tasks {
    all: BTreeMap<u64, Task>,
    ready: Arc<Mutex<BTreeSet<u64>>>,
    last: u64,
}

struct Ready {
    task: u64,
    ready: Arc<Mutex<BTreeSet<u64>>>,
}

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        self.ready.lock().unwrap().insert(self.task);
    }
}

impl Tasks {
    /// Adds a task, which is ready at once.
    pub fn spawn(
        &mut self,
        process: usize,
        name: String,
        post: Option<usize>,
        future: impl Future<Output = ()> + Send + 'static,
    ) {
        self.last += 1;
        let ready = Arc::clone(&self.ready);
        let waker = Waker::from(Arc::new(Ready {
            task: self.last,
            ready,
        }));
        waker.wake_by_ref();
        let task = Task {
            process,
            name,
            post,
            future: Box::pin(future),
            waker,
        };
        self.all.insert(self.last, task);
    }

    /// Tasks that can go on, of processes for which `runs`.
    pub fn ready(&self, runs: impl Fn(usize) -> bool) -> Vec<u64> {
        let mut ready = self.ready.lock().unwrap();
        ready.retain(|task| self.all.contains_key(task));
        ready
            .iter()
            .copied()
            .filter(|task| runs(self.all[task].process))
            .collect()
    }

    pub fn get(&self, task: u64) -> &Task {
        &self.all[&task]
    }

    /// Lets a task go on; whether it ended.
    pub fn poll(&mut self, task: u64) -> bool {
        self.ready.lock().unwrap().remove(&task);
        let it = self.all.get_mut(&task).unwrap();
        let waker = it.waker.clone();
        let ended = matches!(
            it.future.as_mut().poll(&mut Context::from_waker(&waker)),
            Poll::Ready(())
        );
        if ended {
            self.all.remove(&task);
        }
        ended
    }

    /// Drops the tasks for which `ends`, as they stand; the messages that they kept.
    pub fn drop_those(&mut self, ends: impl Fn(&Task) -> bool) -> Vec<usize> {
        let gone: Vec<u64> = self
            .all
            .iter()
            .filter(|(_, it)| ends(it))
            .map(|(id, _)| *id)
            .collect();
        gone.iter()
            .filter_map(|id| self.all.remove(id).and_then(|it| it.post))
            .collect()
    }
}
