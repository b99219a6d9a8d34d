//! The types of the operators' REST API. Times are RFC 3339 texts in UTC, identifiers hexadecimal texts, addresses and
//! prefixes their usual texts, durations whole seconds.
//!
//! Requests refuse unknown fields, so that a misspelt one is an error and not ignored; replies may grow fields.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use znet_core::controller as core;
use znet_core::map::ControllerRecord;
use znet_core::time::Timestamp;

/// A wall-clock time as RFC 3339 text.
pub fn rfc3339(time: Timestamp) -> String {
    let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| time.to_string(), |time| time.to_string())
}

/// Reads RFC 3339 text; `None` when it is none or before 1970.
pub fn from_rfc3339(text: &str) -> Option<Timestamp> {
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok().map(Timestamp::from_millis)
}

/// What a name looks like (`znet_core::name`), for the description.
const NAME: &str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";

mod described {
    //! What no type of the description says by itself.

    use utoipa::openapi::schema::{AnyOfBuilder, Array, ArrayBuilder, ObjectBuilder, SchemaFormat, Type};

    /// A list of names.
    pub(super) fn names() -> Array {
        let name = ObjectBuilder::new().schema_type(Type::String).pattern(Some(super::NAME));
        ArrayBuilder::new().items(name).build()
    }

    /// A list of addresses of either family.
    pub(super) fn addresses() -> Array {
        let family = |format: &str| {
            let format = SchemaFormat::Custom(format.to_owned());
            ObjectBuilder::new().schema_type(Type::String).format(Some(format))
        };
        ArrayBuilder::new().items(AnyOfBuilder::new().item(family("ipv4")).item(family("ipv6"))).build()
    }
}

mod whole {
    //! Whole numbers however they are written: to JSON Schema 5.0 is an integer, and some tooling writes them so.

    use serde::{Deserialize as _, Deserializer, de::Error as _};

    /// The largest below which every whole number has a form of its own as a floating point number: 2^53.
    const EXACT: f64 = 9_007_199_254_740_992.0;

    pub(super) fn optional<'de, D: Deserializer<'de>, T: TryFrom<u64>>(
        from: D,
    ) -> Result<Option<T>, D::Error> {
        let Some(number) = Option::<serde_json::Number>::deserialize(from)? else { return Ok(None) };
        let exact = |float: &f64| float.fract() == 0.0 && (0.0..EXACT).contains(float);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and in range")]
        let whole = number.as_u64().or_else(|| number.as_f64().filter(exact).map(|float| float as u64));
        let fits = whole.and_then(|whole| T::try_from(whole).ok());
        fits.map(Some).ok_or_else(|| D::Error::custom(format!("{number} is no whole number that fits here")))
    }
}

/// What becomes of nodes that stay away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Lifetime {
    /// They stay members.
    #[default]
    Lasting,
    /// They are removed.
    Ephemeral,
}

impl From<Lifetime> for core::NodeLifetime {
    fn from(lifetime: Lifetime) -> Self {
        match lifetime {
            Lifetime::Lasting => Self::Lasting,
            Lifetime::Ephemeral => Self::Ephemeral,
        }
    }
}

impl From<core::NodeLifetime> for Lifetime {
    fn from(lifetime: core::NodeLifetime) -> Self {
        match lifetime {
            core::NodeLifetime::Lasting => Self::Lasting,
            core::NodeLifetime::Ephemeral => Self::Ephemeral,
        }
    }
}

/// A network to create.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Its name: a DNS label, unique at the controller.
    #[schema(example = "acme", pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    pub name: String,
    /// Prefixes: at most one IPv6 Unique Local /48 (drawn at random when absent) and at most one private IPv4 prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, example = json!(["10.77.0.0/16"]))]
    pub prefixes: Vec<IpNet>,
    /// Ranges out of which nothing is allocated unless asked for by address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub reserved: Vec<IpNet>,
    /// Seconds that a released address rests before it is given again; 600 when absent.
    #[serde(default, deserialize_with = "whole::optional", skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3_153_600_000_i64)]
    pub rest_seconds: Option<u64>,
    /// Seconds that an ephemeral node may stay away before it is removed; 300 when absent.
    #[serde(default, deserialize_with = "whole::optional", skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3_153_600_000_i64)]
    pub ephemeral_ttl_seconds: Option<u64>,
    /// Seconds that a container's key pair is used before it is changed, at least 60; for ever when absent or 0.
    #[serde(default, deserialize_with = "whole::optional", skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3_153_600_000_i64)]
    pub key_lifetime_seconds: Option<u64>,
}

/// Settings of a network that may change; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeNetwork {
    /// Ranges out of which nothing is allocated unless asked for by address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub reserved: Option<Vec<IpNet>>,
    /// Seconds that a released address rests.
    #[serde(default, deserialize_with = "whole::optional", skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3_153_600_000_i64)]
    pub rest_seconds: Option<u64>,
    /// Seconds that an ephemeral node may stay away before it is removed.
    #[serde(default, deserialize_with = "whole::optional", skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3_153_600_000_i64)]
    pub ephemeral_ttl_seconds: Option<u64>,
    /// Seconds that a container's key pair is used before it is changed, at least 60; 0 for ever.
    #[serde(default, deserialize_with = "whole::optional", skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3_153_600_000_i64)]
    pub key_lifetime_seconds: Option<u64>,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// Its identifier: 32 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its IPv6 prefix.
    #[schema(value_type = String)]
    pub prefix6: IpNet,
    /// Its IPv4 prefix, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub prefix4: Option<IpNet>,
    /// Ranges out of which nothing is allocated unless asked for by address.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub reserved: Vec<IpNet>,
    /// Seconds that a released address rests.
    pub rest_seconds: u64,
    /// Seconds that an ephemeral node may stay away before it is removed.
    pub ephemeral_ttl_seconds: u64,
    /// Seconds that a container's key pair is used before it is changed; for ever when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_lifetime_seconds: Option<u64>,
    /// When it was created.
    pub created: String,
    /// The current epoch.
    pub epoch: u64,
    /// The current revision.
    pub revision: u64,
    /// Number of nodes.
    pub nodes: usize,
    /// Number of containers.
    pub containers: usize,
    /// That the controller was restored from an older backup; absent when nothing says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<Ahead>,
}

/// Nodes that know more of a network's history than its controller, which was restored from an older backup. They refuse
/// its map until a new epoch is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ahead {
    /// Number of such nodes.
    pub nodes: usize,
    /// The latest revision that one of them has applied.
    pub revision: u64,
}

/// One place at which agents reach a controller of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Controller {
    /// `HOST:PORT`.
    pub address: String,
    /// The pins of the TLS keys that agents believe there, the one that they ask for first.
    pub pins: Vec<String>,
}

impl From<&ControllerRecord> for Controller {
    fn from(record: &ControllerRecord) -> Self {
        Self { address: record.address.clone(), pins: record.pins.iter().map(ToString::to_string).collect() }
    }
}

/// Where agents look for a network's controllers from now on.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetControllers {
    /// `HOST:PORT` of each, at most 16, in the order in which agents try them.
    pub addresses: Vec<String>,
}

/// Places to add to where agents look for a network's controllers, and places to take out.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeControllers {
    /// `HOST:PORT` of those that come after all others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<String>,
    /// Those where agents look no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

/// The keys that sign a network's map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SigningKeys {
    /// The one that signs now, in base64.
    pub current: String,
    /// The revision from which on it does; absent for the one with which the network was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Those that lead to it, the first one first: whoever believes one of them follows.
    pub former: Vec<String>,
    /// The names of nodes that are not known to have applied a map under the present key, as far as the controller that was
    /// asked has seen since it started.
    pub not_followed: Vec<String>,
}

/// The TLS keys by which controllers are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TlsKeys {
    /// The pin of the one that is shown.
    pub current: String,
    /// The pin of the one that is announced to follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Those that another one has followed, and that are still shown to whoever asks for them.
    #[serde(default)]
    pub former: Vec<FormerTlsKey>,
}

/// A TLS key that another one has followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FormerTlsKey {
    /// Its pin.
    pub pin: String,
    /// Until when it is shown to whoever asks for it; until it is retired when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// How a TLS key is changed.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateTls {
    /// For how many seconds the present key is kept once the new one is shown; until it is retired when absent.
    #[serde(default, deserialize_with = "whole::optional", skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3_153_600_000_i64)]
    pub keep_seconds: Option<u64>,
}

/// A join token to create.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// A name by which tooling finds it again: a DNS label, unique among the network's valid tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    pub label: Option<String>,
    /// How often it can be used; any number of times when absent.
    #[serde(default, deserialize_with = "whole::optional", skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 2_147_483_647)]
    pub uses: Option<u32>,
    /// Seconds from now until it expires; never when absent.
    #[serde(default, deserialize_with = "whole::optional", skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3_153_600_000_i64)]
    pub expires_in_seconds: Option<u64>,
    /// What becomes of nodes that join by it and stay away.
    #[serde(default)]
    pub lifetime: Lifetime,
}

/// A join token as it can be shown at any time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its handle: 16 hexadecimal digits.
    pub id: String,
    /// The name by which tooling finds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// How often it can be used in all; any number of times when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// How often it was used.
    pub used: u32,
    /// When it expires; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// What becomes of nodes that joined by it and stay away.
    pub lifetime: Lifetime,
    /// Whether it was revoked.
    pub revoked: bool,
    /// When it was made.
    pub created: String,
}

impl From<&core::Token> for Token {
    fn from(token: &core::Token) -> Self {
        Self {
            id: token.id.to_string(),
            label: token.label.as_ref().map(ToString::to_string),
            uses: token.max_uses,
            used: token.used,
            expires: token.expires.map(rfc3339),
            lifetime: token.lifetime.into(),
            revoked: token.revoked,
            created: rfc3339(token.created),
        }
    }
}

/// A join token that was just made: the only time that its text is shown.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    /// The text to hand to the joining machine.
    pub join_token: String,
    /// What can be shown again.
    #[serde(flatten)]
    pub token: Token,
}

impl fmt::Debug for NewToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewToken").field("token", &self.token).finish_non_exhaustive()
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its identifier: 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where its WireGuard port of this network can be reached.
    pub endpoints: Vec<String>,
    /// Whether it is removed when it stays away.
    pub lifetime: Lifetime,
    /// The handle of the token by which it joined.
    pub token: String,
    /// When it joined.
    pub joined: String,
    /// Whether it gave a sign of life lately.
    pub live: bool,
    /// When it last did, since the controller was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<String>,
    /// The revision that it has applied, as far as it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<u64>,
    /// The later revision that it has applied, where the controller was restored from an older backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u64>,
    /// Whether it cannot do with a container that has two keys meanwhile: then no key in the network is changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_key_only: bool,
    /// Number of its containers.
    pub containers: usize,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Container {
    /// Its number within the network.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// The name of its node.
    pub node: String,
    /// Its WireGuard public key.
    pub public_key: String,
    /// Its addresses: IPv6, then IPv4 where the network has it.
    #[schema(schema_with = described::addresses)]
    pub addresses: Vec<IpAddr>,
    /// When it was attached first.
    pub attached: String,
    /// When its key came into use.
    pub key_since: String,
    /// How far the change of its key pair is; absent when it is not changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_change: Option<KeyChange>,
}

/// How far the change of a container's key pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyChange {
    /// It will be changed: others come first, or its node is away.
    Due,
    /// Its node is to make a new pair.
    Asked,
    /// All members learn to accept the new key.
    Offered,
    /// The new key is in use, and the former one still accepted.
    Promoted,
}

/// Containers whose key pairs are to be changed: some by name, those of a node, or all.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateKeys {
    /// These, by name; at most 256.
    #[schema(schema_with = described::names)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
    /// All of this node, by name or identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// All of the network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// Containers whose key pairs are being changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rotating {
    /// Their names; empty when all of the network are.
    pub containers: Vec<String>,
    /// The revision of the network from which on it is so.
    pub revision: u64,
}

/// Addresses to keep for a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reserve {
    /// At most one of each family; the missing ones are allocated.
    #[serde(default)]
    #[schema(schema_with = described::addresses)]
    pub addresses: Vec<IpAddr>,
}

/// A name and addresses kept for a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reservation {
    /// The container's name.
    pub name: String,
    /// The addresses kept.
    #[schema(schema_with = described::addresses)]
    pub addresses: Vec<IpAddr>,
    /// Whether a container of this name is attached.
    pub attached: bool,
}

/// What a network keeps and has no use for any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Garbage {
    /// Ephemeral nodes that stayed away beyond their time.
    pub nodes: Vec<Node>,
    /// Join tokens that admit nobody any more: revoked, used up or expired.
    pub tokens: Vec<Token>,
}

/// One entry of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    /// Its number; grows.
    pub seq: u64,
    /// When.
    pub at: String,
    /// Who: `local:UID`, `operator:ID`, `node:ID` or `controller`.
    pub actor: String,
    /// What, in one word.
    pub action: String,
    /// To what, in words.
    pub subject: String,
    /// The identifier of the network that was changed; absent when it was the controller itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The network's revision that resulted; zero when there is none.
    pub revision: u64,
}

/// How a network fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkStatus {
    /// The network.
    pub network: Network,
    /// The digest of the map at this revision.
    pub digest: String,
    /// Whether changes are taken; `false` while the store refuses to write.
    pub writable: bool,
    /// Number of containers whose key pair is being changed.
    #[serde(default)]
    pub keys_changing: usize,
    /// Its nodes.
    pub nodes: Vec<Node>,
}

/// What an operator's token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OperatorRole {
    /// Look.
    Read,
    /// And change what a deployment changes: tokens, containers, reservations.
    Deploy,
    /// And everything else.
    Admin,
}

/// An operator's token to create.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateOperator {
    /// For whom or what it is; a free text of at most 100 characters, none of them a control character.
    #[schema(max_length = 100, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    pub note: String,
    /// What it allows.
    pub role: OperatorRole,
    /// The name of the network in which it allows that; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// An operator's token as it can be shown at any time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operator {
    /// Its handle: 16 hexadecimal digits.
    pub id: String,
    /// For whom or what it is.
    pub note: String,
    /// What it allows.
    pub role: OperatorRole,
    /// The name of the network in which it allows that; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// When it was made.
    pub created: String,
}

/// An operator's token that was just made: the only time that its text is shown.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct NewOperator {
    /// The text to present as a bearer token.
    pub operator_token: String,
    /// The pin of the controller's TLS key, for `--pin`.
    pub pin: String,
    /// What can be shown again.
    #[serde(flatten)]
    pub operator: Operator,
}

impl fmt::Debug for NewOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewOperator").field("operator", &self.operator).finish_non_exhaustive()
    }
}

/// How the controller process fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`, or `read_only` while the store refuses to write.
    pub status: String,
    /// The version of znet.
    pub version: String,
    /// The pin of the controller's TLS key.
    pub pin: String,
    /// Number of networks.
    pub networks: usize,
}

/// How many of the removed there were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    /// Number of nodes that went away.
    pub nodes: usize,
    /// Number of containers that went away.
    pub containers: usize,
}

/// An access point to make: a person's device that is let into the network.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAccess {
    /// The node through which the device comes, by name or identifier. May be absent where the network has one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// The device's own WireGuard public key, in base64. The private half stays with the person.
    #[schema(
        example = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
        pattern = "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$"
    )]
    pub public_key: String,
    /// Explicit addresses, at most one of each family; the missing ones are allocated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(schema_with = described::addresses)]
    pub addresses: Vec<IpAddr>,
}

/// An access point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Access {
    /// The name as which the others see the device.
    pub name: String,
    /// The name of the node through which it comes.
    pub via: String,
    /// The device's own public key.
    pub public_key: String,
    /// Its addresses: IPv6, then IPv4 where the network has it.
    #[schema(schema_with = described::addresses)]
    pub addresses: Vec<IpAddr>,
    /// Where its node serves it; absent until the node has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<AccessPoint>,
    /// When it was made.
    pub created: String,
}

/// Where a node serves an access point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccessPoint {
    /// The public key of the node's end.
    pub public_key: String,
    /// The UDP port of the node's end.
    pub port: u16,
    /// The node's addresses with that port, best first; empty when others cannot reach the node first.
    pub endpoints: Vec<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_whole_number_may_be_written_with_a_fraction_of_zero() {
        let read = |text: &str| serde_json::from_str::<CreateToken>(text).map(|token| token.uses);
        for (text, uses) in [("5", Some(5)), ("5.0", Some(5)), ("5e0", Some(5)), ("null", None)] {
            assert_eq!(read(&format!("{{\"uses\":{text}}}")).unwrap(), uses, "{text}");
        }
        for text in ["5.5", "-5", "-5.0", "4294967296", "1e300", "\"5\"", "true", "[5]"] {
            assert!(read(&format!("{{\"uses\":{text}}}")).is_err(), "{text}");
        }
    }
}
