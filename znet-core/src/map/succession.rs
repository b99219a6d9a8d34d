//! How one signing key of a network follows another: by a statement that the one before signs. Who believes a key follows the line
//! of statements from it to the present one, and from then on believes that one alone.

use serde::{Deserialize, Serialize};

use crate::id::NetworkId;
use crate::key::{Signature, SigningKey, VerifyingKey};

/// Most statements in one line. Whoever is further behind needs a new token.
pub const MAX_LINE: usize = 16;
/// Separates signatures over these statements from every other signature of the same key.
const CONTEXT: &[u8] = b"znet signing key succession v1\0";

/// That one key of a network follows another. That it is signed does not mean that it verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Succession {
    /// The network.
    pub network: NetworkId,
    /// The key that says so, which is believed no more by whoever follows.
    pub from: VerifyingKey,
    /// The key that is believed from then on.
    pub to: VerifyingKey,
    /// The signature of `from` over all this.
    pub signature: Signature,
}

/// Why a line was not followed. Nothing changed when one of these is returned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineRefusal {
    /// More statements than anybody has to look at.
    #[error(
        "the line from the signing key that is believed here to the present one has {got} steps, at most {MAX_LINE} are followed"
    )]
    TooLong {
        /// Number of statements.
        got: usize,
    },
    /// A statement is of another network.
    #[error("a statement about signing keys belongs to network {got}, not to {expected}")]
    ForeignNetwork {
        /// The network of whoever follows.
        expected: NetworkId,
        /// The network of the statement.
        got: NetworkId,
    },
    /// A statement is not signed by the key that it says goes.
    #[error("a statement that one signing key follows another is not signed by the one that goes")]
    Signature,
    /// A statement does not begin where the one before ended, or a key is there twice.
    #[error("the statements about signing keys are no single line")]
    Forked,
    /// The line does not lead on from the believed key.
    #[error(
        "no statement leads from the signing key that is believed here to the present one; it was retired, and this node needs a new join token"
    )]
    LeadsElsewhere,
}

impl Succession {
    /// Has `from` say that `to` follows it.
    pub fn sign(network: NetworkId, from: &SigningKey, to: VerifyingKey) -> Self {
        let by = from.verifying_key();
        Self { network, from: by, to, signature: from.sign(&message(network, &by, &to)) }
    }

    /// Whether the key that goes signed this.
    pub fn verifies(&self) -> bool {
        self.from.verifies(&message(self.network, &self.from, &self.to), &self.signature)
    }
}

fn message(network: NetworkId, from: &VerifyingKey, to: &VerifyingKey) -> Vec<u8> {
    [CONTEXT, network.as_bytes(), from.as_bytes(), to.as_bytes()].concat()
}

/// The key to which a line leads whoever believes `believed`. The line may begin before that key.
///
/// # Errors
/// A [`LineRefusal`].
pub fn follow(
    network: NetworkId,
    believed: &VerifyingKey,
    line: &[Succession],
) -> Result<VerifyingKey, LineRefusal> {
    if line.len() > MAX_LINE {
        return Err(LineRefusal::TooLong { got: line.len() });
    }
    if let Some(foreign) = line.iter().find(|step| step.network != network) {
        return Err(LineRefusal::ForeignNetwork { expected: network, got: foreign.network });
    }
    let Some(last) = line.last() else { return Err(LineRefusal::LeadsElsewhere) };
    let joined = line.windows(2).all(|pair| matches!(pair, [one, next] if one.to == next.from));
    let froms = || line.iter().map(|step| step.from);
    let twice = froms().enumerate().any(|(at, key)| key == last.to || froms().take(at).any(|one| one == key));
    if !joined || twice {
        return Err(LineRefusal::Forked);
    }
    if !line.iter().all(Succession::verifies) {
        return Err(LineRefusal::Signature);
    }
    if last.to == *believed || froms().any(|from| from == *believed) {
        return Ok(last.to);
    }
    Err(LineRefusal::LeadsElsewhere)
}
