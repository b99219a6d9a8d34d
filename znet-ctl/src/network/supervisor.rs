//! Starts a network's task, and starts it again when it panics.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc};

use super::{Condition, Hosted, Job, task};

/// How long a task that panicked rests before it is started again, at first.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// And at most: each panic in a row doubles it.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A task that ran this long counts as sound.
const SOUND_AFTER: Duration = Duration::from_secs(60);

/// Runs until the network is stopped. What waits in the queue outlives a panic; the batch in hand does not.
pub(super) async fn run(hosted: Arc<Hosted>, jobs: mpsc::Receiver<Job>) {
    let jobs = Arc::new(Mutex::new(jobs));
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let Err(error) = tokio::spawn(task::run(hosted.clone(), jobs.clone())).await else { return };
        if !error.is_panic() {
            return;
        }
        hosted.common.metrics.restarts.inc();
        hosted.set_condition(Condition::Starting);
        let payload = error.into_panic();
        let why = payload.downcast_ref::<String>().map(String::as_str);
        let why = why.or(payload.downcast_ref::<&str>().copied()).unwrap_or("without a message");
        tracing::error!(network = %hosted.name, why, "the network's task panicked; it is started again");
        if started.elapsed() > SOUND_AFTER {
            pause = FIRST_PAUSE;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = hosted.stop.cancelled() => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
