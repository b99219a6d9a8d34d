//! Bodies that have to come within a time.
//!
//! Whoever sends a byte a minute must not hold a request, and what was read of it, for as long as it likes. The map's
//! stream, whose requests go on for as long as it lives, has limits of its own.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::HttpBody;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use znet_api::error::Problem;

/// How long the body of a request may take.
pub const BODY: Duration = Duration::from_secs(20);

type BoxError = Box<dyn Error + Send + Sync>;

/// A body did not come in time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the body of the request did not come within {} s", BODY.as_secs())]
pub struct TooSlow;

impl TooSlow {
    /// Whether that is what is behind an error.
    pub fn caused(error: &(dyn Error + 'static)) -> bool {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if error.is::<Self>() {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

impl From<TooSlow> for Problem {
    fn from(late: TooSlow) -> Self {
        Self::new(408, "too_slow", late)
    }
}

/// A body that fails when it is not there at its deadline.
pub struct Timely<B> {
    body: B,
    deadline: Instant,
    /// What its reader is told.
    late: fn() -> BoxError,
    /// Made when there is something to wait for: most bodies come with the request's head.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B> Timely<B> {
    /// Gives a body [`BODY`] from now on; `late` is the error after that.
    pub fn new(body: B, late: fn() -> BoxError) -> Self {
        Self { body, deadline: Instant::now() + BODY, late, timer: None }
    }
}

impl<B> HttpBody for Timely<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let deadline = self.deadline;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Some(Err((self.late)())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
