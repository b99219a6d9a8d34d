//! The TLS keys by which controllers are known, while one takes the place of another.
//!
//! One key is shown to whoever asks for none by name. Another may be announced to follow it, and those that it followed are
//! still shown to whoever asks for them, as agents that were away and old tokens do. All of it is one text, which is replaced as
//! a whole, so that a crash leaves one step or the next and nothing between.
//!
//! The text is PEM, with the key that is shown first: that is all that an earlier version reads of it.

use std::time::Duration;

use zeroize::Zeroizing;
use znet_api::tls::{Identity, Pin, TlsError};
use znet_core::map::MAX_PINS;
use znet_core::time::Timestamp;

/// How a line begins that says what the key below it is for.
const MARK: &str = "# znet ";

/// A key that is to follow.
#[derive(Clone, Debug)]
struct Next {
    identity: Identity,
    /// How long the one that it follows is kept.
    keep: Option<Duration>,
}

/// A key that another one has followed.
#[derive(Clone, Debug)]
struct Former {
    identity: Identity,
    /// Until when it is shown; until an operator ends that when absent.
    until: Option<Timestamp>,
}

/// The keys.
#[derive(Clone, Debug)]
pub struct Identities {
    current: Identity,
    next: Option<Next>,
    former: Vec<Former>,
}

/// Why no step was taken. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// One is under way.
    #[error(
        "a new TLS key is announced already, and not shown before the live nodes know it; `znet-ctl tls promote` shows it at once"
    )]
    Pending,
    /// There are as many as agents remember.
    #[error(
        "there are {MAX_PINS} TLS keys already; `znet-ctl tls retire` gives up those that another has followed"
    )]
    TooMany,
    /// No key is announced.
    #[error("no new TLS key is announced; `znet-ctl tls rotate` makes one")]
    NothingPending,
}

impl From<Identity> for Identities {
    fn from(current: Identity) -> Self {
        Self { current, next: None, former: Vec::new() }
    }
}

impl Identities {
    /// Reads what [`Identities::to_text`] wrote, or the PEM text of one identity.
    ///
    /// # Errors
    /// [`TlsError::Identity`]: a key is missing or cannot be used.
    pub fn from_text(text: &str) -> Result<Self, TlsError> {
        let unusable =
            |what: &str| TlsError::Identity(format!("the key file says {what:?}, which is not known"));
        let (first, rest) = text.split_once(&format!("\n{MARK}")).map_or((text, None), |(a, b)| (a, Some(b)));
        let mut all = Self::from(Identity::from_pem(first)?);
        let sections = rest.into_iter().flat_map(|rest| rest.split(&format!("\n{MARK}")).collect::<Vec<_>>());
        for section in sections {
            let (line, pem) = section.split_once('\n').unwrap_or((section, ""));
            let identity = Identity::from_pem(pem)?;
            let (kind, value) = line.split_once(' ').unwrap_or((line, "-"));
            let number = match value {
                "-" => None,
                digits => Some(digits.parse::<u64>().map_err(|_| unusable(line))?),
            };
            match kind {
                "next" => all.next = Some(Next { identity, keep: number.map(Duration::from_secs) }),
                "former" => {
                    all.former.push(Former { identity, until: number.map(Timestamp::from_millis) });
                }
                _ => return Err(unusable(line)),
            }
        }
        Ok(all)
    }

    /// All keys as text; wiped when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        let mut text = self.current.to_pem();
        if let Some(next) = &self.next {
            text.push_str(&format!("{MARK}next {}\n", number(next.keep.map(|keep| keep.as_secs()))));
            text.push_str(&next.identity.to_pem());
        }
        for former in &self.former {
            text.push_str(&format!("{MARK}former {}\n", number(former.until.map(Timestamp::as_millis))));
            text.push_str(&former.identity.to_pem());
        }
        text
    }

    /// All of them, the one that is shown first.
    pub fn all(&self) -> Vec<Identity> {
        let next = self.next.iter().map(|next| &next.identity);
        let former = self.former.iter().map(|former| &former.identity);
        std::iter::once(&self.current).chain(next).chain(former).cloned().collect()
    }

    /// Their pins in the same order: what agents believe, and ask for first.
    ///
    /// # Errors
    /// [`TlsError::Identity`] when a certificate cannot be read.
    pub fn pins(&self) -> Result<Vec<Pin>, TlsError> {
        self.all().iter().map(Identity::pin).collect()
    }

    /// The pin of the key that is announced.
    pub fn next(&self) -> Option<Pin> {
        self.next.as_ref().and_then(|next| next.identity.pin().ok())
    }

    /// The pins of the keys that another one has followed, and until when each is shown.
    pub fn former(&self) -> Vec<(Pin, Option<Timestamp>)> {
        let pin = |former: &Former| former.identity.pin().ok().map(|pin| (pin, former.until));
        self.former.iter().filter_map(pin).collect()
    }

    /// With a key announced that is to follow. The one that it follows is kept for so long, or until [`Identities::retire`].
    ///
    /// # Errors
    /// [`StepError::Pending`] or [`StepError::TooMany`].
    pub fn rotate(&self, identity: Identity, keep: Option<Duration>) -> Result<Self, StepError> {
        if self.next.is_some() {
            return Err(StepError::Pending);
        }
        if self.former.len() + 2 > MAX_PINS {
            return Err(StepError::TooMany);
        }
        Ok(Self { next: Some(Next { identity, keep }), ..self.clone() })
    }

    /// With the key that is announced in the place of the one that is shown.
    ///
    /// # Errors
    /// [`StepError::NothingPending`].
    pub fn promote(&self, now: Timestamp) -> Result<Self, StepError> {
        let Next { identity, keep } = self.next.clone().ok_or(StepError::NothingPending)?;
        let followed = Former { identity: self.current.clone(), until: keep.map(|keep| now.plus(keep)) };
        let former = std::iter::once(followed).chain(self.former.iter().cloned()).collect();
        Ok(Self { current: identity, next: None, former })
    }

    /// Without the keys that another one has followed.
    pub fn retire(&self) -> Self {
        Self { former: Vec::new(), ..self.clone() }
    }

    /// Without those whose time is over; `None` when there is none such.
    pub fn expire(&self, now: Timestamp) -> Option<Self> {
        let over = |former: &&Former| former.until.is_some_and(|until| until <= now);
        if !self.former.iter().any(|former| over(&former)) {
            return None;
        }
        let former = self.former.iter().filter(|former| !over(former)).cloned().collect();
        Some(Self { former, ..self.clone() })
    }

    /// When the next one's time is over.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.former.iter().filter_map(|former| former.until).min()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pins(all: &Identities) -> Vec<Pin> {
        all.pins().unwrap()
    }

    #[test]
    fn every_step_comes_back_from_its_text_and_an_earlier_version_reads_the_key_that_is_shown() {
        let (one, two) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let (first, second) = (one.pin().unwrap(), two.pin().unwrap());
        let at = Timestamp::from_millis(1_000_000);
        let single = Identities::from(one.clone());
        let announced = single.rotate(two, Some(Duration::from_secs(60))).unwrap();
        let promoted = announced.promote(at).unwrap();
        for (step, expected) in [
            (&single, vec![first]),
            (&announced, vec![first, second]),
            (&promoted, vec![second, first]),
            (&promoted.retire(), vec![second]),
        ] {
            let text = step.to_text();
            let read = Identities::from_text(&text).unwrap();
            assert_eq!((pins(step), pins(&read)), (expected.clone(), expected.clone()));
            assert_eq!(read.to_text().as_str(), text.as_str());
            assert_eq!(Identity::from_pem(&text).unwrap().pin().ok(), expected.first().copied());
        }
        assert_eq!(pins(&Identities::from_text(&one.to_pem()).unwrap()), [first]);
        assert_eq!(announced.next(), Some(second));
        let until = at.plus(Duration::from_secs(60));
        assert_eq!((promoted.former(), promoted.deadline()), (vec![(first, Some(until))], Some(until)));
        assert!(promoted.expire(at).is_none());
        assert_eq!(pins(&promoted.expire(until).unwrap()), [second]);
        for bad in ["", "# znet next -\n", &format!("{}# znet other -\n", one.to_pem().as_str())] {
            assert!(Identities::from_text(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn steps_out_of_turn_are_refused() {
        let new = || Identity::generate().unwrap();
        let single = Identities::from(new());
        let now = Timestamp::from_millis(1);
        assert_eq!(single.promote(now).unwrap_err(), StepError::NothingPending);
        let announced = single.rotate(new(), None).unwrap();
        assert_eq!(announced.rotate(new(), None).unwrap_err(), StepError::Pending);
        let mut all = announced.promote(now).unwrap();
        for _ in 0..MAX_PINS - 2 {
            all = all.rotate(new(), None).unwrap().promote(now).unwrap();
        }
        assert_eq!(pins(&all).len(), MAX_PINS);
        assert_eq!(all.rotate(new(), None).unwrap_err(), StepError::TooMany);
        assert!(all.retire().rotate(new(), None).is_ok());
    }
}
