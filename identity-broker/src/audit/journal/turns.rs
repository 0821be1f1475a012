//! Who writes when: the request whose turn it is, or the thread.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::runtime::{Handle, RuntimeFlavor};

use super::{
    queue::{Taken, Turn, lock},
    shared::Shared,
    writer::Writer,
};

/// After a write that many shared, records gather for so long before the next: a wake-up and a write for each would cost
/// more than the records. A request that comes alone is written at once.
const GATHER: Duration = Duration::from_micros(200);

/// A leader that has written for so long leaves what has come to the thread: its own request waits, too.
const LONG: Duration = Duration::from_millis(1);

/// After a write that took so long, the disk is one that one may have to wait for...
const SLOW: Duration = Duration::from_millis(20);

/// ...and only the thread writes for this long.
const REST: Duration = Duration::from_secs(10);

/// The writer: whoever has the turn of the queue has this lock; nobody waits for it. Gone when the thread has ended.
pub(super) type Engine = Arc<Mutex<Option<Writer>>>;

/// Whether the caller's thread is one of several that do the same, so that the others go on should the disk hold this one up.
pub(super) fn has_company() -> bool {
    Handle::try_current().is_ok_and(|runtime| {
        runtime.runtime_flavor() == RuntimeFlavor::MultiThread && runtime.metrics().num_workers() > 1
    })
}

/// Uses the turn; or what has to be done for it a moment later.
pub(super) fn take<'a>(shared: &'a Shared, engine: &Engine, turn: Turn) -> Option<Coming<'a>> {
    match turn {
        Turn::Now(taken) => lead(shared, engine, taken),
        Turn::Soon => return Some(Coming { shared, came: false }),
        Turn::Others => {}
    }
    None
}

/// A request that comes again for the turn.
pub(super) struct Coming<'a> {
    shared: &'a Shared,
    came: bool,
}

impl Coming<'_> {
    /// Lets those first who are about to be served on the same thread: what they put in is written together.
    pub(super) async fn come(mut self, engine: &Engine) {
        tokio::task::yield_now().await;
        self.came = true;
        if let Some(taken) = self.shared.queue.come() {
            lead(self.shared, engine, taken);
        }
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        if !self.came {
            self.shared.queue.stay_away();
        }
    }
}

/// Writes what a request was given with its turn, and what comes meanwhile.
#[expect(clippy::disallowed_methods, reason = "how long a write took: goes into no record")]
fn lead(shared: &Shared, engine: &Engine, taken: Taken) {
    let began = Instant::now();
    let mut turn = Leading { shared, taken: Some(taken) };
    while let Some(taken) = &turn.taken {
        let at = Instant::now();
        let mut writer = lock(engine);
        let outcome = writer.as_mut().and_then(|writer| {
            let outcome = writer.write_at_once(taken)?;
            writer.tell(taken, outcome);
            Some(())
        });
        drop(writer);
        let Some(taken) = turn.taken.take() else { return };
        if outcome.is_none() {
            shared.queue.hand_over(taken);
            return;
        }
        let slow = at.elapsed() > SLOW;
        turn.taken = shared.queue.next(taken, began.elapsed() > LONG, slow.then_some(REST));
    }
}

/// The turn, given back even by a panic.
struct Leading<'a> {
    shared: &'a Shared,
    taken: Option<Taken>,
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            self.shared.queue.hand_over(taken);
        }
    }
}

/// The thread.
#[expect(clippy::disallowed_methods, reason = "the driver's own timer: what is measured here goes into no record")]
pub(super) fn run(shared: &Shared, engine: &Engine, interval: Duration) {
    let ending = Ending { shared, engine };
    let with = |work: &mut dyn FnMut(&mut Writer)| {
        if let Some(writer) = &mut *lock(engine) {
            work(writer);
        }
    };
    let mut taken = Taken::default();
    let mut checkpoint_at = Instant::now() + interval;
    let mut took = Instant::now();
    loop {
        if taken.ends.len() > 1
            && let Some(rest) = GATHER.checked_sub(took.elapsed())
        {
            std::thread::sleep(rest);
        }
        shared.queue.take(&mut taken, checkpoint_at.saturating_duration_since(Instant::now()));
        took = Instant::now();
        with(&mut |writer| {
            if !taken.ends.is_empty() {
                let outcome = writer.write(&taken);
                writer.tell(&taken, outcome);
            }
            if took >= checkpoint_at || writer.is_checkpoint_due() {
                checkpoint_at = took + interval;
                writer.checkpoint();
            }
        });
        if taken.closing && taken.ends.is_empty() {
            break;
        }
    }
    with(&mut Writer::stop);
    drop(ending);
}

/// The end of the thread, also by a panic: nobody waits for it for nothing.
struct Ending<'a> {
    shared: &'a Shared,
    engine: &'a Engine,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.shared.queue.abandon();
        self.shared.syncing.stop();
        // The directory is given back with it.
        drop(lock(self.engine).take());
    }
}
