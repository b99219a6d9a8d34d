//! Whether a network's controller can be asked, and how long somebody waits until it can.

use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};
use znet_api::agent_client::AgentClient;

/// How long a request waits for the first attempt to connect: an agent that was just started needs a moment.
const FIRST_ATTEMPT: Duration = Duration::from_secs(5);
/// How long a request waits for one more attempt when the one before failed: a controller that is back is found, and
/// one that is away is told at once.
const ONE_MORE: Duration = Duration::from_millis(500);

/// What is known of the controller.
#[derive(Clone, Debug)]
pub enum Contact {
    /// The first attempt is under way.
    Trying,
    /// It is connected, and this node has a map of it.
    Connected(AgentClient),
    /// It is not, for this reason.
    Away(String),
}

/// The way to a network's controller. The control stream tells how it fares, and requests wait for it here.
#[derive(Debug)]
pub struct Controller {
    contact: watch::Sender<Contact>,
    wanted: Notify,
}

impl Default for Controller {
    fn default() -> Self {
        Self { contact: watch::Sender::new(Contact::Trying), wanted: Notify::new() }
    }
}

impl Controller {
    /// Tells how it fares now. Everybody who waits for an attempt to end is woken.
    pub fn tell(&self, contact: Contact) {
        self.contact.send_replace(contact);
    }

    /// Whether it is connected.
    pub fn is_connected(&self) -> bool {
        matches!(&*self.contact.borrow(), Contact::Connected(_))
    }

    /// Wants it now: there may be something that helps.
    pub fn want(&self) {
        self.wanted.notify_one();
    }

    /// Waits until somebody wants the controller now, so that the next attempt need not wait for its time.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// The connection.
    ///
    /// # Errors
    /// Why there is none.
    pub fn now(&self) -> Result<AgentClient, String> {
        match &*self.contact.borrow() {
            Contact::Connected(client) => Ok(client.clone()),
            Contact::Trying => Err("no connection yet".to_owned()),
            Contact::Away(why) => Err(why.clone()),
        }
    }

    /// The connection, once there is one, until `patience` is over. Without patience the next attempt to connect
    /// decides, if it does so quickly.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn within(&self, patience: Duration) -> Result<AgentClient, String> {
        let mut contact = self.contact.subscribe();
        let known = contact.borrow_and_update().clone();
        if let Contact::Connected(client) = known {
            return Ok(client);
        }
        let deadline = Instant::now() + patience;
        self.wanted.notify_one();
        // How the waiting ended does not matter: what is known then is the answer.
        if matches!(known, Contact::Trying) {
            let tried = contact.wait_for(|contact| !matches!(contact, Contact::Trying));
            drop(timeout(FIRST_ATTEMPT, tried).await);
        } else if timeout(ONE_MORE, contact.changed()).await.is_err() {
            tracing::debug!("the controller does not answer quickly");
        }
        if !self.is_connected() {
            let connected = contact.wait_for(|contact| matches!(contact, Contact::Connected(_)));
            drop(timeout_at(deadline, connected).await);
        }
        self.now()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_controller_that_is_away_is_told_at_once_with_the_reason() {
        let controller = Controller::default();
        controller.tell(Contact::Away("connection refused".to_owned()));
        let begun = Instant::now();
        assert_eq!(controller.within(Duration::ZERO).await.unwrap_err(), "connection refused");
        assert!(begun.elapsed() <= ONE_MORE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_patience_waits_through_attempts_that_fail() {
        let controller = Arc::new(Controller::default());
        controller.tell(Contact::Away("refused".to_owned()));
        let trying = controller.clone();
        let attempts = tokio::spawn(async move {
            for number in 0..100 {
                trying.wanted().await;
                trying.tell(Contact::Away(format!("refused {number}")));
            }
        });
        let begun = Instant::now();
        let why = controller.within(Duration::from_secs(30)).await.unwrap_err();
        assert_eq!((why.as_str(), begun.elapsed()), ("refused 0", Duration::from_secs(30)));
        attempts.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_attempt_is_waited_for_and_no_longer() {
        let controller = Arc::new(Controller::default());
        let trying = controller.clone();
        let attempt = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            trying.tell(Contact::Away("no route".to_owned()));
        });
        let begun = Instant::now();
        assert_eq!(controller.within(Duration::ZERO).await.unwrap_err(), "no route");
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
        attempt.await.unwrap();
    }
}
