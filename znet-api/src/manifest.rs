//! The file that `znet-ctl apply` reads: a network with its prefixes, tokens and reserved containers, as TOML or YAML.
//!
//! ```toml
//! [network]
//! name = "shop"
//! prefixes = ["10.77.0.0/16"]
//!
//! [[tokens]]
//! label = "nodes"
//! uses = 3
//! expires = "7d"
//!
//! [[containers]]
//! name = "db"
//! addresses = ["10.77.0.10"]
//! ```

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::rest::Lifetime;

/// Largest manifest in bytes.
pub const MAX_MANIFEST: usize = 1 << 20;

/// Why a text is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not TOML of the right shape.
    #[error("not a manifest in TOML: {0}")]
    Toml(#[from] toml::de::Error),
    /// Not YAML of the right shape.
    #[error("not a manifest in YAML: {0}")]
    Yaml(#[from] serde_norway::Error),
    /// Too large.
    #[error("the manifest has {0} bytes, the bound is {MAX_MANIFEST}")]
    TooLarge(usize),
    /// A duration that cannot be read.
    #[error("{text:?} is no duration: {why}; write for example 10m, 12h or 7d")]
    Duration {
        /// What was written.
        text: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The network.
    pub network: ManifestNetwork,
    /// Its join tokens, each found again by its label. A token that is not named here is left alone.
    #[serde(default)]
    pub tokens: Vec<ManifestToken>,
    /// Containers for which a name and addresses are kept. Reservations that are not named here are given up.
    #[serde(default)]
    pub containers: Vec<ManifestContainer>,
}

/// The network of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestNetwork {
    /// Its name.
    pub name: String,
    /// Its prefixes; cannot change once it exists.
    #[serde(default)]
    pub prefixes: Vec<IpNet>,
    /// Ranges out of which nothing is allocated unless asked for by address.
    #[serde(default)]
    pub reserved: Vec<IpNet>,
    /// How long a released address rests, as in `10m`.
    #[serde(default)]
    pub rest: Option<String>,
    /// How long an ephemeral node may stay away before it is removed, as in `5m`.
    #[serde(default)]
    pub ephemeral_ttl: Option<String>,
    /// How long a container's key pair is used before it is changed, as in `30d`; `0s` for ever.
    #[serde(default)]
    pub key_lifetime: Option<String>,
}

/// A join token of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestToken {
    /// The name by which it is found again.
    pub label: String,
    /// How often it can be used; any number of times when absent.
    #[serde(default)]
    pub uses: Option<u32>,
    /// How long it is accepted, as in `7d`; for ever when absent.
    #[serde(default)]
    pub expires: Option<String>,
    /// What becomes of nodes that join by it and stay away.
    #[serde(default)]
    pub lifetime: Lifetime,
}

/// A container of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestContainer {
    /// Its name.
    pub name: String,
    /// Addresses, at most one of each family; the missing ones are allocated.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

impl Manifest {
    /// Reads TOML.
    ///
    /// # Errors
    /// [`ManifestError`] with the line that is wrong.
    pub fn from_toml(text: &str) -> Result<Self, ManifestError> {
        Self::bounded(text)?;
        Ok(toml::from_str(text)?)
    }

    /// Reads YAML.
    ///
    /// # Errors
    /// [`ManifestError`] with the line that is wrong.
    pub fn from_yaml(text: &str) -> Result<Self, ManifestError> {
        Self::bounded(text)?;
        Ok(serde_norway::from_str(text)?)
    }

    fn bounded(text: &str) -> Result<(), ManifestError> {
        if text.len() > MAX_MANIFEST { Err(ManifestError::TooLarge(text.len())) } else { Ok(()) }
    }
}

/// Reads a duration such as `10m` or `7d` as whole seconds.
///
/// # Errors
/// [`ManifestError::Duration`].
pub fn seconds(text: &str) -> Result<u64, ManifestError> {
    let duration = humantime::parse_duration(text);
    duration
        .map(|duration| duration.as_secs())
        .map_err(|why| ManifestError::Duration { text: text.to_owned(), why: why.to_string() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn toml_and_yaml_say_the_same() {
        let toml = "[network]\nname = 'shop'\nprefixes = ['10.77.0.0/16']\n[[tokens]]\nlabel = 'nodes'\nuses = 3\n[[containers]]\nname = 'db'\naddresses = ['10.77.0.10']\n";
        let yaml = "network: {name: shop, prefixes: [10.77.0.0/16]}\ntokens: [{label: nodes, uses: 3}]\ncontainers: [{name: db, addresses: [10.77.0.10]}]\n";
        assert_eq!(Manifest::from_toml(toml).unwrap(), Manifest::from_yaml(yaml).unwrap());
    }

    #[test]
    fn a_misspelt_field_is_named_with_its_line() {
        let error =
            Manifest::from_toml("[network]\nname = 'a'\nprefix = ['10.0.0.0/8']\n").unwrap_err().to_string();
        assert!(error.contains("prefix") && error.contains("line 3"), "{error}");
    }
}
