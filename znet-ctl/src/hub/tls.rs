//! The TLS keys by which this controller and the others on its store are known, and the steps from one to the next.

use std::time::Duration;

use znet_api::tls::{Identity, Pin, TlsError};

use super::Hub;
use crate::actor::Actor;
use crate::identities::{Identities, StepError};
use crate::keys::KeysError;
use crate::store::{AuditNote, StoreError};

/// How often a step is tried when other controllers are faster.
const MAX_RACES: usize = 10;

/// Why no step was taken.
#[derive(Debug, thiserror::Error)]
pub enum TlsStepError {
    /// It is not its turn.
    #[error(transparent)]
    Step(#[from] StepError),
    /// Keys cannot be read or written.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// No key can be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One step.
#[derive(Clone, Debug)]
pub enum TlsStep {
    /// Announce a new key. The one that it follows is kept for so long, or until it is retired.
    Rotate {
        /// For how long.
        keep: Option<Duration>,
    },
    /// Show the key that is announced.
    Promote,
    /// Give up all that another one has followed.
    Retire,
    /// Give up those whose time is over.
    Expire,
}

impl TlsStep {
    fn action(&self) -> &'static str {
        match self {
            Self::Rotate { .. } => "tls.rotate",
            Self::Promote => "tls.promote",
            Self::Retire | Self::Expire => "tls.retire",
        }
    }
}

impl Hub {
    /// The pin of the TLS key that is shown to whoever asks for none by name.
    pub fn pin(&self) -> Pin {
        self.pins().first().copied().unwrap_or(Pin::from_bytes([0; 32]))
    }

    /// The pins of all TLS keys by which this controller is known, the one to ask for first.
    pub fn pins(&self) -> Vec<Pin> {
        // That they can be read was seen when they were taken over.
        self.tls.load().pins().unwrap_or_default()
    }

    /// The TLS keys.
    pub fn tls(&self) -> std::sync::Arc<Identities> {
        self.tls.load_full()
    }

    /// Takes one step. When it returns, the step is durable, and every network is about to learn of it.
    ///
    /// # Errors
    /// [`TlsStepError`].
    pub async fn step_tls(&self, step: TlsStep, actor: Actor) -> Result<(), TlsStepError> {
        let _changing = self.changing.lock().await;
        for _ in 0..MAX_RACES {
            let now = self.clock().now();
            let old = self.keys.identities().await?;
            let new = match &step {
                TlsStep::Rotate { keep } => old.rotate(Identity::generate()?, *keep)?,
                TlsStep::Promote => old.promote(now)?,
                TlsStep::Retire => old.retire(),
                TlsStep::Expire => old.expire(now).unwrap_or_else(|| old.clone()),
            };
            let same = old.pins()? == new.pins()?;
            if !same && !self.keys.replace_identities(&old, &new).await? {
                continue;
            }
            self.show(new)?;
            if same {
                return Ok(());
            }
            let pins: Vec<String> = self.pins().iter().map(ToString::to_string).collect();
            let detail = format!("the TLS keys are now {}", pins.join(", "));
            tracing::info!(action = step.action(), %actor, pins = pins.join(" "), "the TLS keys changed");
            let audit = AuditNote { at: now, actor, action: step.action(), detail };
            self.common.store.note(audit).await?;
            return Ok(());
        }
        Err(StoreError::Unavailable { why: "other controllers change the TLS keys all the time".to_owned() }
            .into())
    }

    /// Takes over what another controller on the same store did.
    pub(super) async fn reload_tls(&self) -> Result<(), TlsStepError> {
        let there = self.keys.identities().await?;
        if there.to_text() != self.tls.load().to_text() {
            tracing::info!(pin = %there.pins()?.first().copied().unwrap_or(self.pin()), "another controller changed the TLS keys");
            self.show(there)?;
        }
        Ok(())
    }

    fn show(&self, identities: Identities) -> Result<(), TlsError> {
        identities.pins()?;
        self.server_keys.set(&identities.all())?;
        self.tls.store(identities.into());
        self.tend.notify_one();
        Ok(())
    }
}
