//! Whatever is logged as an ERROR is a failure of the run that logs it.

use std::cell::RefCell;
use std::fmt;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

thread_local! {
    // A run has a thread to itself.
    static FIRST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The first error that was logged on this thread since the last time.
pub(crate) fn take() -> Option<String> {
    FIRST.take()
}

/// Listens to what is logged in this process; harmless to repeat.
pub(crate) fn install() {
    // Somebody who logs already does so without an alarm only in a program that is not ours.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Alarm));
}

struct Alarm;

impl<S: Subscriber> Layer<S> for Alarm {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == Level::ERROR {
            let mut text = Text(String::new());
            event.record(&mut text);
            FIRST.with_borrow_mut(|first| {
                first.get_or_insert(text.0);
            });
        }
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write as _;
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
