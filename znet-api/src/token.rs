//! The text forms of tokens: what an operator hands to a machine, and what tooling hands to a controller.
//!
//! Both are a prefix that names the kind, a dot, and base64url of the payload with a checksum, so that a token that
//! was cut short or mistyped is told apart from one that a controller refuses.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;
use znet_core::controller::TokenSecret;
use znet_core::id::{NetworkId, TokenId};
use znet_core::key::VerifyingKey;
use znet_core::map::ControllerRecord;
use znet_core::name::Name;

use crate::tls::Pin;

const JOIN_PREFIX: &str = "znet1.";
const OPERATOR_PREFIX: &str = "znop1.";
const CHECKSUM_LEN: usize = 4;
/// Longest token text that is looked at: far above what endpoints of sensible number and length need.
pub const MAX_TOKEN_LEN: usize = 4096;
/// Most controller endpoints in one token.
pub const MAX_CONTROLLER_ENDPOINTS: usize = 16;

/// Why a text is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin as such a token does.
    #[error("not a {kind}: it must begin with {prefix:?}; copy the whole text that the controller printed")]
    Prefix {
        /// The kind of token expected.
        kind: &'static str,
        /// How that kind begins.
        prefix: &'static str,
    },
    /// Characters that are not base64url.
    #[error("the {kind} contains characters that no token has; copy it again, without line breaks or quotes")]
    Characters {
        /// The kind of token expected.
        kind: &'static str,
    },
    /// The checksum does not fit.
    #[error("the {kind} is damaged or cut short (its checksum does not fit); copy it again, whole")]
    Damaged {
        /// The kind of token expected.
        kind: &'static str,
    },
    /// Longer than any token.
    #[error("the {kind} is longer than {MAX_TOKEN_LEN} characters, which no token is")]
    TooLong {
        /// The kind of token expected.
        kind: &'static str,
    },
    /// The checksum fits, but this version cannot read the content.
    #[error(
        "the {kind} is of a form that this version cannot read ({what}); update znet or make a new token"
    )]
    Content {
        /// The kind of token expected.
        kind: &'static str,
        /// What cannot be read.
        what: &'static str,
    },
}

/// All that a machine needs to join a network and to believe nobody else.
#[derive(Clone)]
pub struct JoinToken {
    /// The network.
    pub network: NetworkId,
    /// Its name, for messages and local commands.
    pub name: Name,
    /// Where its controller can be reached: `HOST:PORT`, best first.
    pub endpoints: Vec<String>,
    /// The pin of the controller's TLS key.
    pub pin: Pin,
    /// The key that signs the network's heads.
    pub verifying_key: VerifyingKey,
    /// The token's handle.
    pub id: TokenId,
    /// The token's secret.
    pub secret: TokenSecret,
}

#[derive(Clone, PartialEq, prost::Message)]
struct JoinPayload {
    #[prost(bytes = "vec", tag = "1")]
    network: Vec<u8>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, repeated, tag = "3")]
    endpoints: Vec<String>,
    #[prost(bytes = "vec", tag = "4")]
    pin: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    verifying_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "7")]
    secret: Vec<u8>,
}

impl JoinToken {
    /// The controllers that it names, each with the key that it pins.
    pub fn controllers(&self) -> Vec<ControllerRecord> {
        let record = |address: &String| ControllerRecord { address: address.clone(), pins: vec![self.pin] };
        self.endpoints.iter().map(record).collect()
    }

    /// The text that is handed out; wiped when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let payload = JoinPayload {
            network: self.network.as_bytes().to_vec(),
            name: self.name.to_string(),
            endpoints: self.endpoints.clone(),
            pin: self.pin.as_bytes().to_vec(),
            verifying_key: self.verifying_key.as_bytes().to_vec(),
            id: self.id.as_bytes().to_vec(),
            secret: self.secret.to_bytes().to_vec(),
        };
        encode(JOIN_PREFIX, Zeroizing::new(payload.encode_to_vec()))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        const KIND: &str = "join token";
        let bytes = decode(KIND, JOIN_PREFIX, text)?;
        let content = |what| TokenError::Content { kind: KIND, what };
        let payload = JoinPayload::decode(bytes.as_slice()).map_err(|_| content("payload"))?;
        let secret = Zeroizing::new(payload.secret);
        let secret = <[u8; 32]>::try_from(secret.as_slice()).map_err(|_| content("secret"))?;
        if payload.endpoints.is_empty() || payload.endpoints.len() > MAX_CONTROLLER_ENDPOINTS {
            return Err(content("endpoints"));
        }
        Ok(Self {
            network: NetworkId::try_from(payload.network.as_slice()).map_err(|_| content("network"))?,
            name: payload.name.parse().map_err(|_| content("name"))?,
            endpoints: payload.endpoints,
            pin: Pin::try_from(payload.pin.as_slice()).map_err(|_| content("pin"))?,
            verifying_key: VerifyingKey::from_slice(&payload.verifying_key)
                .map_err(|_| content("verifying key"))?,
            id: TokenId::try_from(payload.id.as_slice()).map_err(|_| content("identifier"))?,
            secret: TokenSecret::from_bytes(secret),
        })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({} of network {})", self.id, self.name)
    }
}

/// What an operator's program presents to a controller: a public handle and a secret.
#[derive(Clone)]
pub struct OperatorToken {
    /// The token's handle.
    pub id: TokenId,
    /// The token's secret.
    pub secret: TokenSecret,
}

impl OperatorToken {
    /// The text that is handed out; wiped when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(self.id.as_bytes().to_vec());
        bytes.extend_from_slice(self.secret.to_bytes().as_slice());
        encode(OPERATOR_PREFIX, bytes)
    }
}

impl FromStr for OperatorToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        const KIND: &str = "operator token";
        let bytes = decode(KIND, OPERATOR_PREFIX, text)?;
        let content = |what| TokenError::Content { kind: KIND, what };
        let (id, secret) = bytes.split_at_checked(8).ok_or_else(|| content("identifier"))?;
        let secret = <[u8; 32]>::try_from(secret).map_err(|_| content("secret"))?;
        let id = TokenId::try_from(id).map_err(|_| content("identifier"))?;
        Ok(Self { id, secret: TokenSecret::from_bytes(secret) })
    }
}

impl fmt::Debug for OperatorToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OperatorToken({})", self.id)
    }
}

fn checksum(prefix: &str, payload: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(prefix).chain_update(payload).finalize().into()
}

fn encode(prefix: &str, mut payload: Zeroizing<Vec<u8>>) -> Zeroizing<String> {
    let sum = checksum(prefix, &payload);
    payload.extend(sum.iter().take(CHECKSUM_LEN));
    let mut text = Zeroizing::new(prefix.to_owned());
    URL_SAFE_NO_PAD.encode_string(payload.as_slice(), &mut text);
    text
}

fn decode(kind: &'static str, prefix: &'static str, text: &str) -> Result<Zeroizing<Vec<u8>>, TokenError> {
    let text = text.trim();
    if text.len() > MAX_TOKEN_LEN {
        return Err(TokenError::TooLong { kind });
    }
    let body = text.strip_prefix(prefix).ok_or(TokenError::Prefix { kind, prefix })?;
    if !body.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(TokenError::Characters { kind });
    }
    let mut bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged { kind })?);
    let payload_len = bytes.len().checked_sub(CHECKSUM_LEN).ok_or(TokenError::Damaged { kind })?;
    let (payload, sum) = bytes.split_at_checked(payload_len).ok_or(TokenError::Damaged { kind })?;
    if !checksum(prefix, payload).starts_with(sum) {
        return Err(TokenError::Damaged { kind });
    }
    bytes.truncate(payload_len);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use znet_core::key::SigningKey;

    use super::*;

    fn token(endpoints: Vec<String>, secret: [u8; 32]) -> JoinToken {
        JoinToken {
            network: NetworkId::from_bytes([7; 16]),
            name: "acme".parse().unwrap(),
            endpoints,
            pin: Pin::from_bytes([9; 32]),
            verifying_key: SigningKey::from_seed(&[3; 32]).verifying_key(),
            id: TokenId::from_bytes([1; 8]),
            secret: TokenSecret::from_bytes(secret),
        }
    }

    proptest! {
        #[test]
        fn a_token_survives_its_text(secret: [u8; 32], host in "[a-z]{1,20}", port: u16) {
            let text = token(vec![format!("{host}:{port}")], secret).to_text();
            let back: JoinToken = text.parse().unwrap();
            let again = back.to_text();
            prop_assert_eq!(again.as_str(), text.as_str());
        }

        #[test]
        fn any_text_is_refused_without_a_panic(text in ".{0,200}") {
            prop_assert!(text.parse::<JoinToken>().is_err());
            let (join, operator) = (format!("znet1.{text}"), format!("znop1.{text}"));
            prop_assert!(join.parse::<JoinToken>().is_err());
            prop_assert!(operator.parse::<OperatorToken>().is_err());
        }
    }

    #[test]
    fn every_truncation_and_every_changed_character_is_called_damaged() {
        let text = token(vec!["ctl.example:7443".to_owned()], [5; 32]).to_text();
        for end in JOIN_PREFIX.len()..text.len() {
            let cut = text.get(..end).unwrap().to_owned();
            let error = cut.parse::<JoinToken>().unwrap_err();
            assert_eq!(error, TokenError::Damaged { kind: "join token" }, "cut at {end}");
        }
        for at in JOIN_PREFIX.len()..text.len() {
            let mut bytes = text.as_bytes().to_vec();
            let byte = bytes.get_mut(at).unwrap();
            *byte = if *byte == b'A' { b'B' } else { b'A' };
            assert!(String::from_utf8(bytes).unwrap().parse::<JoinToken>().is_err(), "changed at {at}");
        }
    }

    #[test]
    fn an_operator_token_is_not_a_join_token() {
        let operator =
            OperatorToken { id: TokenId::from_bytes([1; 8]), secret: TokenSecret::from_bytes([2; 32]) };
        let text = operator.to_text();
        assert!(matches!(text.parse::<JoinToken>(), Err(TokenError::Prefix { .. })));
        assert_eq!(text.parse::<OperatorToken>().unwrap().id, operator.id);
        assert!(!format!("{operator:?}").contains("02"));
    }
}
