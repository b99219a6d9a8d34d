//! How an etcd cluster is named on a command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// How the text begins.
const SCHEME: &str = "etcd:";
/// Under which keys everything stands unless said otherwise.
const PREFIX: &str = "/znet";

/// The members of a cluster and how to talk to them: `etcd:http://A:2379,http://B:2379?prefix=/znet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdUrl {
    /// `HOST:PORT` of each member.
    pub members: Vec<String>,
    /// Under which keys everything stands.
    pub prefix: String,
    /// How members prove who they are; in the clear when absent.
    pub tls: Option<EtcdTls>,
}

/// Files for TLS to the members, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTls {
    /// The certificates that vouch for the members'.
    pub ca: PathBuf,
    /// The own certificate and key, where members ask for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Why a text names no cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no etcd cluster: {why}; write etcd:http://A:2379,http://B:2379,http://C:2379")]
pub struct EtcdUrlError {
    /// The text given.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl FromStr for EtcdUrl {
    type Err = EtcdUrlError;

    fn from_str(text: &str) -> Result<Self, EtcdUrlError> {
        let wrong = |why| EtcdUrlError { text: text.to_owned(), why };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong("it does not begin with etcd:"))?;
        let (members, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut prefix, mut ca, mut cert, mut key) = (PREFIX.to_owned(), None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| wrong("an option has no value"))?;
            match name {
                "prefix" => value.clone_into(&mut prefix),
                "ca" => ca = Some(PathBuf::from(value)),
                "cert" => cert = Some(PathBuf::from(value)),
                "key" => key = Some(PathBuf::from(value)),
                _ => return Err(wrong("the options are prefix, ca, cert and key")),
            }
        }
        let client = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(wrong("cert and key belong together")),
        };
        let secure = members.starts_with("https://");
        let scheme = if secure { "https://" } else { "http://" };
        let members = members.split(',').map(|member| {
            let member =
                member.strip_prefix(scheme).ok_or("members begin with http://, or all with https://");
            member.map(|member| member.trim_end_matches('/').to_owned())
        });
        let members = members.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
        let has_port = |member: &String| {
            member
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        if !members.iter().all(has_port) {
            return Err(wrong("a member is not HOST:PORT"));
        }
        let tls = match (secure, ca, client) {
            (true, Some(ca), client) => Some(EtcdTls { ca, client }),
            (true, None, _) => {
                return Err(wrong("https needs ?ca=FILE, as no other certificate is believed"));
            }
            (false, None, None) => None,
            (false, ..) => return Err(wrong("ca, cert and key are for https://")),
        };
        Ok(Self { members, prefix, tls })
    }
}

/// Without the names of files, as it is for logs.
impl fmt::Display for EtcdUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "https://" } else { "http://" };
        f.write_str(SCHEME)?;
        for (at, member) in self.members.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{scheme}{member}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_cluster_is_named_by_its_members_with_options_after_a_question_mark() {
        let plain: EtcdUrl = "etcd:http://a:2379,http://[::1]:2380/".parse().unwrap();
        assert_eq!(plain.members, ["a:2379", "[::1]:2380"]);
        assert_eq!((plain.prefix.as_str(), plain.tls.clone()), ("/znet", None));
        assert_eq!(plain.to_string(), "etcd:http://a:2379,http://[::1]:2380");
        let tls: EtcdUrl = "etcd:https://a:1?prefix=/x&ca=/c&cert=/p&key=/k".parse().unwrap();
        assert_eq!(tls.prefix, "/x");
        let client = Some((PathBuf::from("/p"), PathBuf::from("/k")));
        assert_eq!(tls.tls, Some(EtcdTls { ca: PathBuf::from("/c"), client }));
    }

    #[test]
    fn what_names_no_cluster_is_refused_with_the_reason() {
        for (text, why) in [
            ("sqlite:/x", "begin with etcd:"),
            ("etcd:a:2379", "begin with http://"),
            ("etcd:http://a", "HOST:PORT"),
            ("etcd:http://a:1,https://b:1", "begin with http://"),
            ("etcd:https://a:1", "ca=FILE"),
            ("etcd:http://a:1?ca=/c", "for https://"),
            ("etcd:https://a:1?ca=/c&cert=/p", "belong together"),
            ("etcd:http://a:1?color=red", "the options are"),
            ("etcd:http://a:1?prefix", "no value"),
        ] {
            let error = text.parse::<EtcdUrl>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
