//! Names of networks, nodes and containers: DNS labels, because each becomes part of a DNS name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// Longest name in bytes: a DNS label's limit (RFC 1035, section 2.3.4).
pub const MAX_NAME_LEN: usize = 63;

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a name must not be empty; use 1 to 63 of a-z, 0-9 and -")]
    Empty,
    /// Longer than a DNS label may be.
    #[error("the name has {len} characters; a DNS label has at most 63")]
    TooLong {
        /// Characters given.
        len: usize,
    },
    /// A character that no lower-case host name has.
    #[error("the name contains {found:?}; use a-z, 0-9 and -")]
    Character {
        /// The first offending character.
        found: char,
    },
    /// A hyphen at an end.
    #[error("the name begins or ends with a hyphen; begin and end it with a letter or a digit")]
    Hyphen,
}

/// A lower-case DNS label (RFC 1123, section 2.1): 1 to 63 of `a-z`, `0-9` and `-`, no hyphen at either end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if let Some(found) = text.chars().find(|&c| !allowed(c)) {
            return Err(NameError::Character { found });
        }
        if text.len() > MAX_NAME_LEN {
            return Err(NameError::TooLong { len: text.len() });
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(NameError::Hyphen);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_dns_labels_are_names() {
        for good in ["a", "web", "web-1", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        assert_eq!("".parse::<Name>(), Err(NameError::Empty));
        assert_eq!("x".repeat(64).parse::<Name>(), Err(NameError::TooLong { len: 64 }));
        assert_eq!("Web".parse::<Name>(), Err(NameError::Character { found: 'W' }));
        assert_eq!("a.b".parse::<Name>(), Err(NameError::Character { found: '.' }));
        assert_eq!("-a".parse::<Name>(), Err(NameError::Hyphen));
        assert_eq!("a-".parse::<Name>(), Err(NameError::Hyphen));
    }
}
