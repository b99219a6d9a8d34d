//! WireGuard key pairs and the keys with which a network signs its heads.
//!
//! Secret types have no `Debug`, `Display` or `Serialize` that shows the secret, and are wiped when dropped. The
//! only way to the bytes is a method whose name says so, and what it returns is wiped as well.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer as _;
use rand_core::CryptoRng;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Why a text or a byte string is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not the standard base64 of 32 bytes.
    #[error("not a key: expected 44 characters of base64, the text form of 32 bytes")]
    Encoding,
    /// The bytes have another length than a key's.
    #[error("not a key: expected 32 bytes, got {got}")]
    Length {
        /// Number of bytes given.
        got: usize,
    },
    /// The 32 bytes are not a point that Ed25519 (RFC 8032) accepts as a verifying key.
    #[error("not a verifying key: the bytes are not a valid Ed25519 point")]
    NotAPoint,
}

fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| KeyError::Encoding)?);
    let array = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| KeyError::Encoding)?;
    Ok(Zeroizing::new(array))
}

/// A container's public key: a Curve25519 point (RFC 7748) in WireGuard's text form, base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key of these 32 bytes; every byte string is a valid Curve25519 public key.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key as its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether a container may have this key. Its bytes must be the one canonical form of its point, as receivers ignore
    /// the top bit and reduce the rest (RFC 7748, section 5), so that two different keys are two different points. And
    /// it must not be a point of small order, with which everybody's shared secret is zero (section 6.1).
    pub fn is_usable(&self) -> bool {
        self.is_canonical() && {
            // Any scalar tells points of small order from others, because clamping makes it a multiple of their orders.
            let probe = x25519_dalek::StaticSecret::from([0x5a; 32]);
            probe.diffie_hellman(&x25519_dalek::PublicKey::from(self.0)).was_contributory()
        }
    }

    /// Whether the bytes, a little-endian number, are below the field's prime 2^255 - 19.
    fn is_canonical(&self) -> bool {
        const LOWEST_BYTE_OF_PRIME: u8 = 0xed;
        let [lowest, middle @ .., highest] = &self.0;
        match highest {
            0..=0x7e => true,
            0x7f => middle.iter().any(|byte| *byte != 0xff) || *lowest < LOWEST_BYTE_OF_PRIME,
            _ => false,
        }
    }
}

impl TryFrom<&[u8]> for PublicKey {
    type Error = KeyError;

    fn try_from(bytes: &[u8]) -> Result<Self, KeyError> {
        <[u8; 32]>::try_from(bytes).map(Self).map_err(|_| KeyError::Length { got: bytes.len() })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|bytes| Self(*bytes))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A container's private key. It is neither printed nor serialised, and is wiped when dropped.
#[derive(Clone, ZeroizeOnDrop)]
pub struct PrivateKey(x25519_dalek::StaticSecret);

impl PrivateKey {
    /// A fresh key out of the caller's randomness.
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        let mut bytes = Zeroizing::new([0u8; 32]);
        rng.fill_bytes(bytes.as_mut());
        Self(x25519_dalek::StaticSecret::from(*bytes))
    }

    /// The key of these 32 bytes, clamped when used (RFC 7748, section 5). The caller's copy stays the caller's to wipe.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(x25519_dalek::StaticSecret::from(bytes))
    }

    /// The secret bytes, wiped when the returned value is dropped.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    /// The key in WireGuard's text form, wiped when the returned value is dropped.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(*self.to_bytes()))
    }

    /// Reads WireGuard's text form.
    ///
    /// # Errors
    /// [`KeyError::Encoding`] when the text is not the base64 of 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|bytes| Self::from_bytes(*bytes))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// A key that a pair of peers mixes into its handshake (WireGuard's white paper, section 5.2). Wiped when dropped.
#[derive(Clone, ZeroizeOnDrop)]
pub struct PresharedKey(Zeroizing<[u8; 32]>);

impl PresharedKey {
    /// The key of these 32 bytes. The caller's copy stays the caller's to wipe.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret bytes, wiped when the returned value is dropped.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        self.0.clone()
    }

    /// The key in WireGuard's text form, wiped when the returned value is dropped.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(*self.0))
    }

    /// Reads WireGuard's text form.
    ///
    /// # Errors
    /// [`KeyError::Encoding`] when the text is not the base64 of 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|bytes| Self::from_bytes(*bytes))
    }
}

impl PartialEq for PresharedKey {
    fn eq(&self, other: &Self) -> bool {
        subtle::ConstantTimeEq::ct_eq(self.0.as_slice(), other.0.as_slice()).into()
    }
}

impl Eq for PresharedKey {}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

/// The key with which a network signs its heads (Ed25519, RFC 8032). Wiped when dropped.
#[derive(ZeroizeOnDrop)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// A fresh key out of the caller's randomness.
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        let mut seed = Zeroizing::new([0u8; 32]);
        rng.fill_bytes(seed.as_mut());
        Self::from_seed(&seed)
    }

    /// The key of this 32-byte seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The seed, wiped when the returned value is dropped.
    pub fn to_seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The half that agents and tokens carry.
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(self.0.verifying_key())
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// The key against which an agent checks a network's heads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey(ed25519_dalek::VerifyingKey);

impl VerifyingKey {
    /// Reads the 32 bytes of RFC 8032, section 5.1.5.
    ///
    /// # Errors
    /// [`KeyError::Length`] for another number of bytes, [`KeyError::NotAPoint`] when they are no point of the curve.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, KeyError> {
        let array = <[u8; 32]>::try_from(bytes).map_err(|_| KeyError::Length { got: bytes.len() })?;
        ed25519_dalek::VerifyingKey::from_bytes(&array).map(Self).map_err(|_| KeyError::NotAPoint)
    }

    /// The key as its 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Whether `signature` is this key's over `message`; weak keys and malleable signatures are refused.
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        self.0.verify_strict(message, &ed25519_dalek::Signature::from_bytes(&signature.0)).is_ok()
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0.as_bytes()))
    }
}

impl Serialize for VerifyingKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0.as_bytes()))
    }
}

impl<'de> Deserialize<'de> for VerifyingKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let mut bytes = decode(&text).map_err(serde::de::Error::custom)?;
        let key = Self::from_slice(bytes.as_slice()).map_err(serde::de::Error::custom);
        bytes.zeroize();
        key
    }
}

/// An Ed25519 signature (RFC 8032), 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    /// The signature of these 64 bytes.
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// The signature as its 64 bytes.
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text.as_bytes()).map_err(serde::de::Error::custom)?;
        let bytes = bytes.try_into().map_err(|_| serde::de::Error::custom("not a signature of 64 bytes"))?;
        Ok(Self(bytes))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}
